"""datatrove: an `InferenceRunner` against an endpoint, with `skip_completed`, checkpoints and their request cache."""

import json
import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter
from job import Job, Rows, play
from loguru import logger


async def answer(document: Document, generate: Any) -> Any:
    return await generate({"messages": document.metadata["messages"], "temperature": 0, "max_tokens": 2048})


def work(job: Job) -> Rows:
    documents = [
        Document(text=row["prompt"], id=str(row["number"]), metadata={"messages": row["messages"]})
        for row in job.read()
    ]
    runner = InferenceRunner(
        rollout_fn=answer,
        config=InferenceConfig(
            server_type="endpoint",
            endpoint_url=job.url.removesuffix("/v1"),  # it adds that itself
            model_name_or_path="tiny",
            max_concurrent_generations=job.concurrency,
        ),
        output_writer=JsonlWriter(
            f"{job.folder}/out", output_filename="${rank}_chunk_${chunk_index}.jsonl", compression=None
        ),
        checkpoints_local_dir=f"{job.folder}/checkpoints" if job.settings.get("checkpoints", True) else None,
        records_per_chunk=50,
    )
    LocalPipelineExecutor(
        pipeline=[documents, runner], logging_dir=f"{job.folder}/logs", skip_completed=True, tasks=1, workers=1
    ).run()
    return found(Path(job.folder, "out"))


def found(folder: Path) -> Rows:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            results = document["metadata"]["rollout_results"]
            yield int(document["id"]), results[0]["text"] if results else None


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    play(work)
