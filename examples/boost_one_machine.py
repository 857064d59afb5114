"""Boost a file through a server, within a budget; run it again to continue, and for rows that failed.

python examples/boost_one_machine.py raw.jsonl --model my-model --base-url http://localhost:8000/v1 --out boosted.parquet

The journal keeps every answer the moment it arrives: kill the script, run it again, and only what is missing is asked.
"""

import argparse

from datasets import load_dataset

from midb import Booster
from midb.generators import Journal, OpenAIGenerator


def main():
    """Read the options, show what is sent and what it costs, boost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a jsonl file with instruction, input and response (or output)")
    for name in ("--model", "--base-url", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--max-cost", type=float, help="in USD")
    chosen = parser.parse_args()
    dataset = load_dataset("json", data_files=chosen.source, split="train")
    generator = Journal(OpenAIGenerator(chosen.model, base_url=chosen.base_url), "boost.journal")
    booster = Booster(generator=generator, price=(0.15, 0.60, "USD"))  # per million prompt and completion tokens
    print(booster.preview(dataset, 1))
    print(booster.estimate(dataset))
    edits = booster.map(dataset, max_cost=chosen.max_cost)
    edits.to_parquet(chosen.out)


if __name__ == "__main__":
    main()
