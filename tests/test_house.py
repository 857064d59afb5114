"""The laws of the house: floors, weights, the door, names that shall not exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import midb

HOUSE = Path(midb.__file__).parent
# Imports go down only; rooms on one floor never import each other.
FLOORS = {
    "midb.errors": 0, "midb.languages": 0, "midb.schema": 0,
    "midb.prompts": 1, "midb.chat": 1, "midb.guards": 1, "midb.distance": 1,
    "midb.generators": 2, "midb.release": 2,
    "midb.booster": 3,
    "midb.cli": 5,
}  # fmt: skip
# Inside a floor-0 room errors may be raised, and a room with an inside is one room.
ALLOWED = {("midb.schema", "midb.errors")}
HOMES = {
    "torch": "generators/transformers.py",
    "transformers": "generators/transformers.py",
    "openai": "generators/openai.py",
}
SOURCES = sorted(HOUSE.rglob("*.py"))


def room(module):
    return "midb.generators" if module.startswith("midb.generators") else ".".join(module.split(".")[:2])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module_of(path):
    return "midb." + ".".join(path.relative_to(HOUSE).with_suffix("").parts)


@pytest.mark.parametrize("path", [path for path in SOURCES if path != HOUSE / "__init__.py"], ids=module_of)
def test_imports_go_down_only(path):
    here = room(module_of(path))
    for module in imports(path):
        there = room(module)
        if module.startswith("midb.") and there != here and (here, there) not in ALLOWED:
            assert FLOORS[there] < FLOORS[here], f"{here} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_heavy_library_has_one_home(path):
    for module in imports(path):
        home = HOMES.get(module.split(".")[0])
        assert home in (None, str(path.relative_to(HOUSE))), f"{path} imports {module}"


@pytest.mark.parametrize("door", ["midb", "midb.generators", "midb.cli"])
def test_opening_a_door_loads_nothing_heavy(door):
    script = f"import sys, {door}; print([m for m in ('torch', 'transformers', 'openai', 'datasets', 'pandas', 'peft') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_door_holds_exactly_these_names():
    assert set(midb.__all__) == {
        "Booster", "Sampling", "add_edit_distance", "filter_by_edit_distance", "as_pairs", "as_edits", "as_alpaca", "as_messages",
        "MidbError", "ColumnError", "GenerationError", "MissingExtraError",
    }  # fmt: skip
    for name in midb.__all__:
        assert getattr(midb, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = midb.Pipeline


def test_there_are_no_drawers():
    drawers = {"utils.py", "common.py", "helpers.py", "constants.py", "config.py", "misc.py", "core"}
    assert not drawers & {path.name for path in HOUSE.rglob("*")}


def test_every_import_is_declared():
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = (
        {re.match(r"[\w-]+", line)[0].replace("-", "_").lower() for line in lines}
        | {"midb"}
        | set(sys.stdlib_module_names)
    )
    for path in SOURCES:
        for module in imports(path):
            assert module.split(".")[0].lower() in declared, (
                f"{path.name} imports {module}, which pyproject.toml does not declare"
            )
