"""midb: `Booster.map`, with a journal and all guards unless the settings say otherwise."""

import datasets
from job import Job, Rows, play

from midb.booster import Booster
from midb.generators import Generator, Journal, OpenAIGenerator
from midb.guards import DEFAULT_GUARDS

COLUMNS = ("number", "language", "instruction", "input", "response")


def work(job: Job) -> Rows:
    generator: Generator = OpenAIGenerator("tiny", base_url=job.url, concurrency=job.concurrency)
    if job.settings.get("journal", True):
        generator = Journal(generator, f"{job.folder}/answers.journal")
    rows = datasets.Dataset.from_list([{name: row[name] for name in COLUMNS} for row in job.read()])
    edits = Booster(generator=generator, guards=DEFAULT_GUARDS if job.settings.get("guards", True) else ()).map(rows)
    return ((edit["number"], None if edit["boost_status"] == "failed" else edit["response"]) for edit in edits)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    play(work)
