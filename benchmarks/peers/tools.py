"""The tools that are compared, the virtual environment of each, and one run of one of them, watched from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from boost_overhead import pairs

from midb.booster import Booster
from midb.generators import OpenAIGenerator

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
PACKAGES = {
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],
    "curator": ["bespokelabs-curator==0.1.31"],
    "datatrove": ["datatrove[io]==0.10.1", "aiofiles", "aiosqlite", "httpx"],
    "bare": ["datasets==5.2.0", "aiohttp==3.14.5"],
}
INSTALLING = {
    "distilabel": "imports requests without declaring it: `from distilabel.pipeline import Pipeline` fails on a fresh "
    "install with ModuleNotFoundError; requests was added",
    "curator": "counts tokens with a table that tiktoken downloads; the same file, which its dependency litellm brings, "
    "was used",
    "datatrove": "the extra `inference` brings vLLM and SGLang; only what an endpoint needs of it was installed",
}
# Nothing but the local server is asked, and nothing is drawn on the screen.
QUIET = {
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
    "PYTHONWARNINGS": "ignore",
    "TELEMETRY_ENABLED": "false",
}


@dataclass(frozen=True)
class Tool:
    """One line of a table.

    Args:
        name: For people.
        runner: `run_NAME.py`, and the environment of that name where there is one.
        how: Its settings in words.
        settings: What the runner is told.
    """

    name: str
    runner: str
    how: str
    settings: dict[str, Any] = field(default_factory=dict)


MIDB = Tool("midb", "midb", "Booster.map, all guards, journal on disk")
MIDB_BARE = Tool(
    "midb, no guards, no journal",
    "midb",
    "Booster.map without both: parsing and the new dataset remain",
    {"journal": False, "guards": False},
)
DISTILABEL = Tool(
    "distilabel",
    "distilabel",
    "Pipeline of a dataset and TextGeneration with OpenAILLM, one replica, input_batch_size and dataset_batch_size = "
    "concurrency, use_cache=True, max_retries 6 (default)",
)
CURATOR = Tool(
    "curator",
    "curator",
    "LLM with backend openai, max_concurrent_requests = concurrency, 10**7 requests and 10**11 tokens a minute, cache "
    "on, max_retries 10 and require_all_responses=True (defaults), viewer and telemetry off",
)
CURATOR_PARTIAL = Tool(
    "curator, require_all_responses=False", "curator", "the same, but for that", {"require_all_responses": False}
)
DATATROVE = Tool(
    "datatrove",
    "datatrove",
    "InferenceRunner with server_type endpoint in a LocalPipelineExecutor, max_concurrent_generations = concurrency, "
    "checkpoints_local_dir, request cache, records_per_chunk 50, skip_completed=True",
)
DATATROVE_BARE = Tool(
    "datatrove, no checkpoints",
    "datatrove",
    "the same without checkpoints_local_dir, and so without its request cache",
    {"checkpoints": False},
)
MAP = Tool(
    "Dataset.map(async)",
    "bare",
    "an async function with aiohttp and a connector that lets concurrency requests through; the cache of datasets on",
    {"map": True},
)
LOOP = Tool("aiohttp", "bare", "a bare loop with concurrency workers: the floor")


def python_of(runner: str) -> str:
    """The interpreter for a runner; its environment is made on first use."""
    if runner not in PACKAGES:
        return sys.executable
    folder = ENVIRONMENTS / runner
    python, made = folder / "bin" / "python", folder / "packages.json"
    if not (made.exists() and json.loads(made.read_text()) == PACKAGES[runner]):
        print(f"making {folder.relative_to(HERE.parents[1])}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (ENVIRONMENTS / ".gitignore").write_text("*\n")
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[runner]], check=True)
        made.write_text(json.dumps(PACKAGES[runner]))
    return str(python)


def versions(runners: set[str]) -> dict[str, dict[str, str]]:
    """The packages of each environment that say most."""
    names = ["aiohttp", "bespokelabs-curator", "datasets", "datatrove", "distilabel", "midb", "openai", "pyarrow"]
    code = (
        "import json, sys, importlib.metadata as m; have = {d.name.lower(): d.version for d in m.distributions()};"
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    return {
        runner: json.loads(subprocess.check_output([python_of(runner), "-I", "-c", code, *names], text=True))
        for runner in sorted(runners)
    }


def write_rows(path: Path, rows: int, marks: dict[int, str] | None = None) -> None:
    """The pairs of `boost_overhead.py` and the messages that midb makes of them; a mark goes into the instruction."""
    dataset = pairs(rows).map(
        lambda row, number: {"instruction": f"{row['instruction']} {(marks or {}).get(number, '')}".strip()},
        with_indices=True,
    )
    chats = Booster(generator=OpenAIGenerator("tiny", base_url="http://127.0.0.1/v1")).preview(dataset, rows)
    with path.open("w", encoding="utf-8") as file:
        for number, (row, messages) in enumerate(zip(dataset, chats, strict=True)):
            said = {"number": number, "prompt": messages[-1]["content"], "messages": messages, **row}
            file.write(json.dumps(said) + "\n")


@dataclass
class Run:
    """What one run did: the runner's report, and what was seen from outside."""

    report: dict[str, Any]
    started: float
    peak_mib: float
    end: str  # "ended", "killed" by the caller, or out of "time"
    log: str


def play(
    tool: Tool,
    url: str,
    rows: Path,
    folder: Path,
    concurrency: int,
    *,
    seconds: float = 120,
    kill_when: Callable[[], bool] | None = None,
    watch: float = 0.2,
) -> Run:
    """Run a tool in a process of its own; kill it with all its children at `kill_when`, or when it takes too long."""
    with tempfile.TemporaryDirectory() as place:
        job, report, log = (Path(place, name) for name in ("job.json", "report.json", "log.txt"))
        folder.mkdir(parents=True, exist_ok=True)
        job.write_text(
            json.dumps(
                {
                    "url": url,
                    "rows": str(rows),
                    "folder": str(folder),
                    "report": str(report),
                    "concurrency": concurrency,
                    "settings": tool.settings,
                }
            )
        )
        environment = os.environ | QUIET | {"HF_HOME": f"{place}/hf"}
        command = [python_of(tool.runner), str(HERE / f"run_{tool.runner}.py"), str(job)]
        with log.open("w") as output:
            started, end, peak = time.time(), "ended", 0.0
            process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.005 if kill_when else watch)
                    break
                if kill_when is None:
                    peak = max(peak, memory(process.pid))
                elif kill_when():
                    end = "killed"
                if time.time() - started > seconds:
                    end = "time"
                if end != "ended":
                    kill(process.pid)
                    process.wait()
                    break
        told = json.loads(report.read_text()) if report.exists() else {"error": None, "rows": []}
        if end == "ended" and not report.exists():
            told["error"] = f"the process ended with status {process.returncode}"
        return Run(told, started, round(peak, 1), end, log.read_text(errors="replace")[-4000:])


def tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def memory(pid: int) -> float:
    """MiB of a process and its children; pages that they share count once (PSS)."""
    total = 0
    for each in tree(pid):
        with suppress(psutil.Error, OSError):
            total += each.memory_full_info().pss
    return total / 2**20


def kill(pid: int) -> None:
    """`kill -9` a process and all its children, at once, as the server goes on answering whoever still lives."""
    everybody = tree(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for each in everybody:  # who left the group
        with suppress(psutil.Error):
            each.kill()
