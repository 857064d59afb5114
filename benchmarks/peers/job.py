"""What every runner shares: the job that it is given and the report that it writes. Standard library only.

A runner, in the virtual environment of its tool, is called as `PYTHON run_NAME.py JOB.json`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Args:
        url: Of the server, up to and including `/v1`.
        rows: A JSONL file of pairs, each with its `number`, its `messages` and their text as `prompt`.
        folder: For whatever the tool keeps between runs.
        report: Where the report goes.
        concurrency: Requests in flight.
        settings: For the runner.
    """

    url: str
    rows: str
    folder: str
    report: str
    concurrency: int
    settings: dict[str, Any]

    def read(self) -> list[dict[str, Any]]:
        """The rows."""
        return [json.loads(line) for line in Path(self.rows).read_text(encoding="utf-8").splitlines()]


Rows = Iterable[tuple[int, str | None]]


def cpu() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def play(work: Callable[[Job], Rows]) -> None:
    """Do the job. `work` returns the rows of the tool's result: number, and text or None where it has no answer.

    The clock stops when `work` returns, so what it returns should be lazy.
    """
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    report: dict[str, Any] = {"begun": time.time(), "error": None, "rows": []}
    before = cpu()
    try:
        rows = work(job)
        report |= {"ended": time.time(), "cpu": cpu() - before}
        report["rows"] = list(rows)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        report |= {"ended": time.time(), "cpu": cpu() - before}
        report["error"] = f"{type(error).__name__}: {said[0][:300]}"
    Path(job.report).write_text(json.dumps(report))
