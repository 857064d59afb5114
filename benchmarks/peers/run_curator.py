"""curator: one `LLM` with the OpenAI backend and its cache on; rate limits far above what a local server reaches."""

import os
from importlib.metadata import files

import datasets
from bespokelabs import curator
from job import Job, Rows, play

# The counts that curator limits its rate by need a table, which it would download; litellm brings the same file.
[TABLE] = (file for file in files("litellm") or () if file.name == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")


class Answer(curator.LLM):
    """Sends the messages as they are and keeps the row's number."""

    def prompt(self, input: dict) -> list[dict[str, str]]:
        """The request."""
        return input["messages"]

    def parse(self, input: dict, response: str) -> dict:
        """The row."""
        return {"number": input["number"], "text": response}


def work(job: Job) -> Rows:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(TABLE.locate().parent)
    rows = datasets.Dataset.from_list([{name: row[name] for name in ("number", "messages")} for row in job.read()])
    llm = Answer(
        model_name="tiny",
        backend="openai",
        generation_params={"temperature": 0, "max_tokens": 2048},
        backend_params={
            "base_url": job.url,
            "max_concurrent_requests": job.concurrency,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**11,
            **job.settings,
        },
    )
    found = llm(rows, working_dir=job.folder).dataset
    return ((row["number"], row["text"]) for row in found)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    play(work)
