"""What several test files need."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

# Each process of a parallel run has caches of its own and one thread a core.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"
    CACHE = tempfile.TemporaryDirectory(prefix=f"midb-tests-{worker}-", ignore_cleanup_errors=True)
    os.environ["HF_DATASETS_CACHE"] = CACHE.name

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs begin without it, and so their children


@pytest.fixture(scope="session")
def shared() -> Path:
    """The published data beside the repository, or where MIDB_SHARED says; tests that read it are marked `shared`."""
    folder = Path(os.environ.get("MIDB_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the published data is not at {folder}; MIDB_SHARED may say where it is")
    return folder


# Rooms whose tests load models, start servers and processes, or draw: `make test-fast` leaves them out.
HEAVY = {
    "adapter", "cards", "cli", "cli_judge", "evaluation_sets", "examples", "hub", "journal", "journeys", "judge_run", "metric",
    "openai", "plot", "release", "report", "segments", "train", "train_distributed", "training_set", "transformers", "vllm",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in HEAVY:
            item.add_marker("heavy")
