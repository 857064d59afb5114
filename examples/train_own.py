"""Train a booster on revisions of your own: alpaca rows with one more column, the answer as it should have been.

python examples/train_own.py                 (a dozen rows that come along, and a small model: minutes on a CPU)
python examples/train_own.py mine.jsonl --model Qwen/Qwen2.5-7B-Instruct
"""

import argparse
from pathlib import Path

from datasets import load_dataset

from midb import Booster, as_edits, as_pairs
from midb.train import LoraRecipe, lora_trainer

OWN = Path(__file__).parent / "train_own" / "revised.jsonl"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("edits", nargs="?", default=str(OWN), help="rows with instruction, input, output, revised_output")
parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or Hub id")
parser.add_argument("--out", default="own-booster", help="the folder of the booster")
parser.add_argument("--epochs", type=float, default=3)
chosen = parser.parse_args()

rows = load_dataset("json", data_files=chosen.edits, split="train")
edits = as_edits(rows)  # finds `revised_output`; of other names: as_edits(rows, columns={"response": "my_column"})

# k=None keeps every edit; with thousands of them, k=0.3 keeps the 30 % of each language that changed the most.
recipe = LoraRecipe(model=chosen.model, k=None, num_train_epochs=chosen.epochs, per_device_train_batch_size=2)
lora_trainer(edits, recipe, output_dir=chosen.out).train()

booster = Booster.from_pretrained(chosen.out)
before = {"instruction": "raw_instruction", "input": "raw_input", "response": "raw_response"}
for row in booster.map(as_pairs(edits.select(range(2)), columns=before)):
    print(f"\n{row['instruction']}\n  before: {row['raw_response']}\n  {row['boost_status']}: {row['response']}")
