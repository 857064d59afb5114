"""Publish MT-Bench and AlpacaEval in sixteen languages: mended, typed, one configuration per language.

python examples/publish_eval_sets.py my-name --dry-run     (prints both cards and what would be sent)
python examples/publish_eval_sets.py my-name               (needs `hf auth login`, or HF_TOKEN)

Then anyone has them:  load_dataset("my-name/mt-bench-16-languages", "fr", split="test")
"""

import argparse

from midb import release
from midb.hub import push_eval_set

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("namespace", help="your user or organisation on the Hub")
parser.add_argument("--files", default=release.UPSTREAM, help="a local copy of the published repository")
parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
parser.add_argument("--dry-run", action="store_true", help="print the cards and the lists of files, and send nothing")
chosen = parser.parse_args()

for name, load in (("mt-bench", release.load_mt_bench), ("alpaca-eval", release.load_alpaca_eval)):
    questions = load(chosen.files)
    repo_id = f"{chosen.namespace}/{name}-16-languages"
    # The card states the licence of the published repository, which comes along with the rows.
    print(push_eval_set(questions, repo_id, private=chosen.private, dry_run=chosen.dry_run))
