"""distilabel: a pipeline of the dataset and one `TextGeneration`, with its cache on.

Its requests in flight are one batch (`asyncio.gather` over `input_batch_size` rows), so that is the concurrency.
"""

import datasets
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps.tasks import TextGeneration
from job import Job, Rows, play


def work(job: Job) -> Rows:
    rows = datasets.Dataset.from_list([{"number": row["number"], "instruction": row["prompt"]} for row in job.read()])
    with Pipeline(name="peers", cache_dir=job.folder) as pipeline:
        TextGeneration(
            name="answer",
            llm=OpenAILLM(
                model="tiny",
                base_url=job.url,
                api_key="none",
                generation_kwargs={"temperature": 0.0, "max_new_tokens": 2048},
            ),
            input_batch_size=job.concurrency,
            add_raw_input=False,
            add_raw_output=False,
        )
    distiset = pipeline.run(dataset=rows, dataset_batch_size=job.concurrency, use_cache=True)
    return ((row["number"], row["generation"]) for row in distiset["default"]["train"])


if __name__ == "__main__":
    datasets.disable_progress_bars()
    play(work)
