"""The laws of the house: floors, weights, the door, names that shall not exist."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI
from hub_process import at_hub
from huggingface_hub import HfApi
from test_evaluation_sets import mt_bench
from test_release import published
from test_transformers import make_model
from typer.testing import CliRunner

import midb
from midb.cli import app

HOUSE = Path(midb.__file__).parent
# Imports go down only; rooms on one floor never import each other.
FLOORS = [
    {"errors", "languages", "identify"},
    {"schema", "progress"},
    {"cost", "prompts", "chat", "guards", "distance", "files"},
    {"generators", "release"},
    {"run"},
    {"booster", "judging", "train"},
    {"hub"},
    {"metric", "cli"},
    {"__main__"},
]
# The floors inside a room: a file imports only files of the lines before its own.
INSIDE = {
    "cli": [{"options", "terminal"}, {"asking", "data", "model"}, {"boost", "judge", "push"}, {"__init__"}],
    "generators": [
        {"adapter", "base"}, {"wire", "memory", "weights"}, {"endpoint"}, {"openai", "segments", "transformers"}, {"journal", "vllm"},
        {"serve", "__init__"},
    ],
    "judging": [
        {"statistics", "verdict", "fidelity", "controls"},
        {"agreement", "comparisons", "length", "rows", "prompts", "ranking"},
        {"answers", "judge", "health"}, {"figures"}, {"markdown"}, {"plot"}, {"report"}, {"__init__"},
    ],
    "hub": [
        {"provenance", "text", "readme"}, {"facts"}, {"questions", "picture"}, {"cards"}, {"shipment"}, {"push"}, {"__init__"},
    ],
    "train": [{"log", "training_set", "recipe_file"}, {"recipe"}, {"plan"}, {"trainer"}, {"__init__"}],
    "release": [{"files"}, {"evaluation", "training"}, {"__init__"}],
}  # fmt: skip
HOMES = {
    "torch": {"generators/transformers.py", "train/plan.py", "train/trainer.py"},
    "transformers": {"generators/transformers.py", "train/plan.py", "train/trainer.py"},
    "peft": {"generators/transformers.py", "train/trainer.py"},
    "trl": {"train/trainer.py"},
    "openai": {"generators/openai.py"},
    "vllm": {"generators/vllm.py"},
    "matplotlib": {"train/log.py", "judging/plot.py", "hub/picture.py"},
    "ray": set(),  # stock Ray Data runs a task: examples/boost_with_ray.py
    "scipy": {"judging/statistics.py", "judging/health.py"},
    "statsmodels": {"judging/statistics.py", "judging/agreement.py"},
    "evalica": {"judging/ranking.py"},
    "evaluate": {
        "metric/judge_agreement/app.py",
        "metric/pairwise_judge/pairwise_judge.py",
        "metric/judge_agreement/judge_agreement.py",
        "metric/pairwise_judge/app.py",
    },
}
SOURCES = sorted(HOUSE.rglob("*.py"))


def imports(path):
    """What a file imports, also where only a type checker does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            inside = HOUSE.parent / node.module.replace(".", "/")
            files = [f"{node.module}.{alias.name}" for alias in node.names if (inside / f"{alias.name}.py").exists()]
            yield from files or [node.module]


def module_of(path):
    return ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts)


def floor(floors, name):
    (found,) = [number for number, names in enumerate(floors) if name in names]
    return found


@pytest.mark.parametrize("path", [path for path in SOURCES if path != HOUSE / "__init__.py"], ids=module_of)
def test_imports_go_down_only(path):
    room, *inside = module_of(path).split(".")[1:]
    for module in imports(path):
        if module == "midb":  # the door, whose names are resolved on first use
            assert room in ("cli", "metric", "__main__"), f"{path.name} imports midb"
        elif module.startswith("midb."):
            there, *file = module.split(".")[1:]
            if there != room:
                assert floor(FLOORS, there) < floor(FLOORS, room), f"{module_of(path)} imports {module}"
            elif room in INSIDE:
                here, other = (inside or ["__init__"])[0], (file or ["__init__"])[0]
                assert floor(INSIDE[room], other) < floor(INSIDE[room], here), f"{module_of(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_heavy_library_has_one_home(path):
    for module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or str(path.relative_to(HOUSE)) in homes, f"{path} imports {module}"


@pytest.mark.parametrize("door", ["midb", "midb.generators", "midb.train", "midb.judging", "midb.metric", "midb.cli"])
def test_opening_a_door_loads_nothing_heavy(door):
    script = f"import sys, {door}; print([m for m in ('torch', 'transformers', 'vllm', 'openai', 'datasets', 'pandas', 'peft', 'trl', 'matplotlib', 'yaml', 'scipy', 'statsmodels', 'evalica', 'evaluate') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_door_holds_exactly_these_names():
    assert set(midb.__all__) == {
        "Booster", "Judge", "Sampling", "add_edit_distance", "filter_by_edit_distance", "as_pairs", "as_edits", "as_alpaca", "as_messages",
        "push_adapter", "push_dataset", "push_eval_set", "push_metric",
        "MidbError", "ColumnError", "GenerationError", "MissingExtraError",
    }  # fmt: skip
    for name in midb.__all__:
        assert getattr(midb, name).__name__ == name
    assert midb.__version__ == tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = midb.Pipeline


def test_there_are_no_drawers():
    drawers = {"utils.py", "common.py", "helpers.py", "constants.py", "config.py", "misc.py", "core"}
    assert not drawers & {path.name for path in HOUSE.rglob("*")}


def test_every_import_is_declared():
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = (
        {re.match(r"[\w-]+", line)[0].replace("-", "_").lower().removeprefix("py") for line in lines}  # PyYAML is yaml
        | {re.match(r"[\w-]+", line)[0].replace("-", "_").lower() for line in lines}
        | {"midb"}
        | set(sys.stdlib_module_names)
    )
    for path in SOURCES:
        own = {"gradio"} if path.name == "app.py" else set()  # a Space runs it, and its SDK brings that
        for module in imports(path):
            assert module.split(".")[0].lower() in declared | own, (
                f"{path.name} imports {module}, which pyproject.toml does not declare"
            )


README = (HOUSE.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_readme_begins_with_the_two_commands():
    first = next(body for kind, body in BLOCKS if kind == "sh")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make quickstart", "make test"]


@pytest.mark.heavy
@at_hub
def test_every_block_of_the_readme_runs(tmp_path):
    os.chdir(tmp_path)
    sample = HOUSE.parent / "examples/quickstart/sample.jsonl"
    Path("raw.jsonl").write_text(sample.read_text(encoding="utf-8"), encoding="utf-8")
    make_model(tmp_path / "my-booster")
    make_model(tmp_path / "my-base-model", context=4096)
    for name, code in (("French", "fr"), ("Japanese", "ja")):
        for folder, rows in (("MIDB_train", published()), ("mt_bench", mt_bench(code))):
            path = Path("MIDB/data", folder, f"{name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))
    HfApi().create_repo("tester/base")
    HfApi().upload_folder(repo_id="tester/base", folder_path="my-base-model")
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    targets = re.findall(r"^([\w-]+):", (HOUSE.parent / "Makefile").read_text(), re.MULTILINE)
    names: dict = {}
    with FakeOpenAI() as server:
        for kind, body in BLOCKS:
            body = body.replace("http://localhost:8000/v1", server.url).replace("my-org/my-booster", "my-booster")
            body = body.replace("my-name/", "tester/").replace("my-org/my-base", "tester/base")
            body = body.replace("num_train_epochs=3", "max_steps=2")
            if kind == "python":
                exec(compile(body, "README.md", "exec"), names)
            if kind == "yaml":
                Path("recipe.yaml").write_text(body)
                names["experts"].select(range(16)).to_json("edits.jsonl", force_ascii=False)
            for line in body.splitlines() if kind == "sh" else []:
                words = shlex.split(line, comments=True)
                if words[0] == "accelerate":  # many processes: test_train_distributed.py; here the same as one
                    words = ["midb", "train", words[-1], "--restart"]
                if words[0] == "sbatch":  # an array of one job; real ones: test_examples.py
                    words = shlex.split(words[-1].replace("$SLURM_ARRAY_TASK_ID/16", "0/1"))
                    words += ["--base-url", server.url]
                if words[0] == "make":
                    assert words[1] in targets
                elif words[0] == "pip":
                    assert re.search(r"\[(.*)\]", words[-1])[1] in project["optional-dependencies"]
                else:
                    said = CliRunner().invoke(app, words[1:])
                    assert (words[0], said.exit_code) == ("midb", 0), f"{line}: {said.output}"
    assert len(names["top"]) == 2 * 720
    assert Path("boosted.parquet").exists()
    assert Path("top720.jsonl").exists()
    assert all(Path(folder, "adapter_config.json").exists() for folder in ("my-adapter", "my-booster-2"))


def test_every_file_of_the_house_is_captioned_in_the_architecture():
    tree = re.findall(r"```text\n(.*?)```", (HOUSE.parent / "ARCHITECTURE.md").read_text(), re.DOTALL)[1]
    captioned = set(re.findall(r"([\w]+\.py)  +\S", tree))
    assert captioned == {path.name for path in SOURCES} - {"__init__.py"}
