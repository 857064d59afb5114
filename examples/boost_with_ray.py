"""Boost on many machines with Ray Data; a lost process or node costs what was in flight, and a rerun asks only the rest.

python examples/boost_with_ray.py raw.parquet --model my-org/my-booster --journal /shared/journal/ --out boosted --workers 8 --gpus 1

On several machines: `ray start --head` on one, `ray start --address HEAD:6379` on the others, then the command with
RAY_ADDRESS=HEAD:6379 before it. The journal is a folder that all machines see, or a URL such as s3://bucket/run/. With
--base-url the workers ask a server. The rows, which may be more than memory holds, are read in pieces of --piece rows; each
piece becomes a Parquet file in --out, in the order of the rows.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from datasets import load_dataset

from midb import Booster, as_pairs
from midb.generators import Journal, OpenAIGenerator


class Boost:
    """One worker: an engine of its own, and the journal that all share."""

    def __init__(self, model, base_url, journal):
        if base_url:
            self.booster = Booster(generator=Journal(OpenAIGenerator(model, base_url=base_url), journal))
        else:
            self.booster = Booster.from_pretrained(model, journal=journal)

    def __call__(self, batch):
        """Boost one batch of columns."""
        return self.booster(batch)


def main():
    """Read the options, and boost piece by piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a json, jsonl or parquet file")
    for name in ("--model", "--journal", "--out", "--base-url"):
        parser.add_argument(name, required=name != "--base-url")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--piece", type=int, default=100_000)
    chosen = parser.parse_args()
    kind = "parquet" if chosen.source.endswith(".parquet") else "json"
    pairs = as_pairs(load_dataset(kind, data_files=chosen.source, split="train", streaming=True))
    Path(chosen.out).mkdir(exist_ok=True)
    for number, table in enumerate(pairs.with_format("arrow").iter(batch_size=chosen.piece)):
        table = table.append_column("row", pa.array(range(table.num_rows)))  # Ray Data does not keep the order
        blocks = [table.slice(start, 256) for start in range(0, table.num_rows, 256)]
        how = {"fn_constructor_args": (chosen.model, chosen.base_url, chosen.journal), "num_gpus": chosen.gpus}
        boosted = ray.data.from_arrow(blocks).map_batches(Boost, batch_size=256, concurrency=chosen.workers, **how)
        edits = pa.concat_tables(ray.get(boosted.to_arrow_refs()), promote_options="permissive").sort_by("row")
        pq.write_table(edits.drop_columns("row"), Path(chosen.out, f"part-{number:05}.parquet"))


if __name__ == "__main__":
    main()
