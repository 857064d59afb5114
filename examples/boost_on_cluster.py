"""Boost a dataset on many GPUs and machines, larger than memory and disk if need be; a death costs what was in flight.

With Ray, one process reads and writes, and workers with an engine each stand wherever there are GPUs:

python examples/boost_on_cluster.py my-org/my-data --model my-booster --ledger ledger --workers 8 --gpus 1

On several machines: `ray start --head` on one, `ray start --address HEAD:6379` on the others, then the command with
RAY_ADDRESS=HEAD:6379 before it; all with RAY_AUTH_MODE=token and the same ~/.ray/auth_token. With Slurm, and no Ray,
each job of an array does its share of the same ledger, which is a folder that all see, or s3://bucket/run:

sbatch --array 0-15 --gpus 1 --requeue --wrap '
python examples/boost_on_cluster.py my-org/my-data --model my-booster --ledger /data/ledger --shard $SLURM_ARRAY_TASK_ID/16'

The same command again does only what is missing. One without --shard gives the whole, and with --retry-failed asks
again for the rows to which no answer came. Where one machine has GPUs and another has none (the driver, or a login
node that gathers), name --engine vllm --dtype bfloat16 in every call: a finished row is known by them too. For a
dataset that fits the disk, `midb boost --ledger` is all this in a command.
"""

import argparse
from dataclasses import replace

from datasets import Dataset, load_dataset

from midb import Booster, as_pairs
from midb.cluster import Workers, map_on_cluster
from midb.review import summarize


def main():
    """Read the options, boost and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a Hub dataset, or a folder with json, csv or parquet files")
    parser.add_argument("--model", required=True, help="a booster: a model or adapter, folder or Hub id")
    parser.add_argument("--ledger", required=True, help="where finished shards lie: a folder, or s3://, gs://, ...")
    parser.add_argument("--stream", action="store_true", help="never hold the dataset on this machine")
    parser.add_argument("--workers", type=int, help="Ray workers; without it this process works alone")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--engine", choices=["vllm", "transformers"], help="vllm where it sees a GPU, unless named")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="bfloat16 on GPUs, unless named")
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n shares, from 0")
    parser.add_argument("--rows-per-shard", type=int, default=4096)
    parser.add_argument("--retry-failed", action="store_true")
    chosen = parser.parse_args()
    pairs = as_pairs(load_dataset(chosen.dataset, split="train", streaming=chosen.stream))
    booster = Booster.from_pretrained(chosen.model, engine=chosen.engine)  # each worker loads its own weights, not this
    booster = replace(booster, generator=replace(booster.generator, dtype=chosen.dtype))
    booster.preview(pairs, 0)  # what cannot be boosted is told before a worker starts
    pool = Workers(chosen.workers, gpus=chosen.gpus) if chosen.workers else None
    how = {"rows_per_shard": chosen.rows_per_shard, "retry_failed": chosen.retry_failed}
    share = tuple(map(int, chosen.shard.split("/")))
    edits = map_on_cluster(pairs, booster, chosen.ledger, workers=pool, shard=share, **how)
    if isinstance(edits, Dataset):  # a stream comes back as one, for edits.push_to_hub or to be read in order
        print(summarize(edits))


if __name__ == "__main__":  # vLLM starts processes, which read this file
    main()
