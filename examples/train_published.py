"""Train a booster on the published expert edits, with the published numbers.

python examples/train_published.py           (one GPU with 80 GB, and access to Llama 3.1 on the Hub)
python examples/train_published.py --model Qwen/Qwen2.5-0.5B-Instruct --languages French Japanese -k 100

Several GPUs, or a training that must go on after a kill: examples/train_many_gpus.yaml.
"""

import argparse

from midb import release
from midb.train import LoraRecipe, lora_trainer, preview

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="meta-llama/Llama-3.1-8B", help="a folder or Hub id")
parser.add_argument("--edits", default=release.UPSTREAM, help="a local copy of the published repository")
parser.add_argument("--languages", nargs="+", help="names or codes; else all that were audited")
parser.add_argument("-k", type=int, default=720, help="how many edits of each language: those that changed the most")
parser.add_argument("--out", default="booster", help="the folder of the booster")
chosen = parser.parse_args()

edits = release.load_training(chosen.edits, chosen.languages)
recipe = LoraRecipe(model=chosen.model, k=chosen.k)  # every number that is not given here is the published one

print(preview(edits, recipe))  # one row token by token, counts per language, steps; loads no weights
lora_trainer(edits, recipe, output_dir=chosen.out).train()  # a plain trl.SFTTrainer
print(f"A booster: Booster.from_pretrained({chosen.out!r}); how it learnt: {chosen.out}/loss.png")
