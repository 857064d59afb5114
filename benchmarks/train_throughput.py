"""How many tokens a second a training reads, and its peak memory, beside a bare TRL script and LLaMA-Factory.

    python benchmarks/train_throughput.py [--model small|8b] [--rows 240] [--batch 8] [--repeats 3] [--packing]
                                          [--llamafactory PYTHON]     (the interpreter of an environment that has it)

All sides train the same LoRA on the same rows, in the same Llama 3 text, with the same batch, in processes of their own,
in turn, and medians are reported. The model has random weights: `small` is 4 layers of 256, `8b` is Llama 3.1 8B's
configuration (r=64, all linear layers, cutoff 4096; needs a GPU). Rows are made of random words, as long as the published
ones (METHOD figures of French: source p50 150 tokens, target p50 170). Tokens are those of the rows, padding aside; the
first two steps are not timed. On a GPU the model FLOPs utilisation counts 4 FLOPs a weight and token (a LoRA needs no
gradients of the frozen weights) and attention, and no recomputation.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/train_throughput.json"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
CONFIGURATIONS = {
    "small": {**SMALL, "vocab_size": 2048},
    "8b": {**LARGE, "vocab_size": 128_256, "rope_theta": 500_000.0},
}
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s without sparsity, as published by NVIDIA
SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def prepare(folder: Path, model: str, rows: int) -> None:
    """Write the model without its weights, its tokenizer, and the rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from midb.prompts import PROMPT, render_pair
    from midb.schema import PAIR, RAW, Pair

    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(400)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([" ".join(words)] * 3, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet))
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[4], pad_token=SPECIAL[4]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    LlamaConfig(
        max_position_embeddings=8192, bos_token_id=2000, eos_token_id=2004, **CONFIGURATIONS[model]
    ).save_pretrained(folder)

    def text(median: float) -> str:  # log-normal, as the published lengths nearly are
        return " ".join(chance.choices(words, k=max(3, round(chance.lognormvariate(0, 0.6) * median / 2))))

    edits, triples = [], []
    for _ in range(rows):
        raw, new = Pair(text(30), "", text(60)), Pair(text(30), "", text(130))
        edits.append(dict(zip((*PAIR, *RAW), (*new, *raw), strict=True)))
        triples.append({"instruction": PROMPT, "input": render_pair(raw), "output": render_pair(new)})
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    (folder / "alpaca.json").write_text(json.dumps(triples))  # the same rows, as LLaMA-Factory wants them
    (folder / "dataset_info.json").write_text(json.dumps({"edits": {"file_name": "alpaca.json"}}))


def count(folder: Path) -> int:
    """The tokens of all rows."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from midb.chat import ChatFormat
    from midb.train.training_set import as_training_set, tokenize

    edits = load_dataset("json", data_files=str(folder / "edits.jsonl"), split="train")
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder), "llama3")
    counts = tokenize(as_training_set(edits), chat).counts
    return counts.prompt_tokens + counts.completion_tokens


def weights(folder: Path) -> None:
    """Random weights, saved once for all sides."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=kind).save_pretrained(folder)


class Clock:
    """When each step ended, without the transfers that a step's end does not need."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def callback(self) -> Any:
        """What a trainer calls at the end of a step."""
        import torch
        from transformers import TrainerCallback

        ends = self.ends

        class Ends(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        return Ends()


def run_midb(folder: Path, settings: dict[str, Any], clock: Clock) -> Any:
    """`midb.train.lora_trainer`."""
    from datasets import load_dataset

    from midb.train import LoraRecipe, lora_trainer

    edits = load_dataset("json", data_files=str(folder / "edits.jsonl"), split="train")
    recipe = LoraRecipe(
        model=str(folder), k=None, rendering="llama3", r=settings["r"], lora_alpha=32, num_train_epochs=1, max_length=4096,
        per_device_train_batch_size=settings["batch"], gradient_accumulation_steps=1, packing=settings["packing"], logging_steps=10,
        save_steps=10_000, gradient_checkpointing=settings["checkpointing"],
    )  # fmt: skip
    trainer = lora_trainer(edits, recipe, output_dir=folder / "midb")
    trainer.add_callback(clock.callback())
    trainer.train()
    return trainer.state


def run_trl(folder: Path, settings: dict[str, Any], clock: Clock) -> Any:
    """What someone would write with TRL alone."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from midb.train import as_training_set

    edits = load_dataset("json", data_files=str(folder / "edits.jsonl"), split="train")
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=0.1, num_train_epochs=1,
        per_device_train_batch_size=settings["batch"], gradient_accumulation_steps=1, max_length=4096, packing=settings["packing"],
        logging_steps=10, save_strategy="no", bf16=on_gpu, use_cpu=not on_gpu, gradient_checkpointing=settings["checkpointing"],
        report_to="none", seed=42,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16" if on_gpu else "float32"),
        args=arguments,
        train_dataset=as_training_set(edits),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=settings["r"], lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(clock.callback())
    trainer.train()
    return trainer.state


def run_llamafactory(folder: Path, settings: dict[str, Any], clock: Clock) -> Any:
    """The reference's software, in its own environment: this file is run by that environment's interpreter."""
    import torch
    from llamafactory.train.tuner import run_exp

    on_gpu = torch.cuda.is_available()
    clocked = clock.callback()
    run_exp(
        {
            "model_name_or_path": str(folder), "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": settings["r"],
            "lora_alpha": 32, "lora_target": "all", "template": "llama3", "dataset": "edits", "dataset_dir": str(folder),
            "cutoff_len": 4096, "output_dir": str(folder / f"llamafactory-{os.getpid()}"), "per_device_train_batch_size": settings["batch"],
            "gradient_accumulation_steps": 1, "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
            "num_train_epochs": 1, "bf16": on_gpu, "use_cpu": not on_gpu, "packing": settings["packing"], "save_strategy": "no",
            "logging_steps": 10, "report_to": "none", "seed": 42, "disable_gradient_checkpointing": not settings["checkpointing"],
        },
        callbacks=[clocked],
    )  # fmt: skip
    return None


def work(side: str, folder: Path, settings: dict[str, Any]) -> None:
    """One side, in this process: seconds per timed step and peak memory, as a line of JSON."""
    import torch

    clock = Clock()
    {"midb": run_midb, "trl": run_trl, "llamafactory": run_llamafactory}[side](folder, settings, clock)
    steps = [after - before for before, after in zip(clock.ends[1:], clock.ends[2:], strict=False)]
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\nRESULT " + json.dumps({"seconds": sum(steps), "steps": len(steps), "peak_gib": peak}))


def run(python: str, side: str, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """One side in a process of its own."""
    command = [python, __file__, "--side", side, "--folder", str(folder), "--settings", json.dumps(settings)]
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = [line for line in said.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        sys.exit(f"{side} failed:\n{said.stdout[-2000:]}\n{said.stderr[-4000:]}")
    return json.loads(found[0].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="small")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="keep activations instead of computing them twice"
    )
    parser.add_argument("--llamafactory", help="the Python of an environment with llamafactory 0.9.5")
    for name in ("--side", "--folder", "--settings"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, Path(arguments.folder), json.loads(arguments.settings))
        return
    import torch

    if arguments.model == "8b" and not torch.cuda.is_available():
        sys.exit("--model 8b needs a GPU; without one leave it out")
    settings = {
        "r": 64,
        "batch": arguments.batch,
        "packing": arguments.packing,
        "checkpointing": not arguments.no_checkpointing,
    }
    sides = {"midb": sys.executable, "trl": sys.executable}
    if arguments.llamafactory:
        sides["llamafactory"] = arguments.llamafactory
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, arguments.model, arguments.rows)
        tokens = count(folder)
        weights(folder)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, python in sides.items():
                runs[side].append(run(python, side, folder, settings))
                print(side, runs[side][-1], file=sys.stderr)
        parameters = sum(each.numel() for each in skeleton(folder).parameters())
    result: dict[str, Any] = {
        "hardware": hardware(),
        "command": " ".join(
            ["python benchmarks/train_throughput.py"]
            + ["PYTHON" if each == arguments.llamafactory else each for each in sys.argv[1:]]
        ),
        "model": {"name": arguments.model, "parameters": parameters, **CONFIGURATIONS[arguments.model]},
        "settings": {**settings, "rows": arguments.rows, "tokens": tokens, "repeats": arguments.repeats},
        "sides": {},
    }
    for side, each in runs.items():
        # Every side reads every row once: a timed step stands for its share of all tokens.
        rates = [tokens * timed["steps"] / (timed["steps"] + 2) / timed["seconds"] for timed in each]
        result["sides"][side] = {
            "tokens_per_second": round(statistics.median(rates), 1),
            "spread": round(max(rates) / min(rates), 2),
            "peak_gib": round(statistics.median(timed["peak_gib"] for timed in each), 2),
        }
    ours = result["sides"]["midb"]["tokens_per_second"]
    for side in list(sides)[1:]:
        result[f"midb_to_{side}"] = round(ours / result["sides"][side]["tokens_per_second"], 3)
    result["mfu"] = utilisation(ours, parameters, arguments.model, tokens / arguments.rows)
    print(json.dumps(result, indent=1))
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    key = f"{arguments.model}{', packed' if arguments.packing else ''}, {'GPU' if torch.cuda.is_available() else 'CPU'}"
    RESULTS.write_text(json.dumps({**before, key: result}, indent=1) + "\n")


def utilisation(tokens_per_second: float, parameters: int, model: str, length: float) -> float | str:
    """Share of the GPU's published bf16 peak that the model's own arithmetic takes."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for chip, value in PEAK_BF16.items() if chip in name), None)
    if peak is None:
        return "not measured: no GPU with a known peak"
    shape = CONFIGURATIONS[model]
    embeddings = shape["vocab_size"] * shape["hidden_size"]  # looked up, not multiplied
    attention = (
        2 * shape["num_hidden_layers"] * shape["hidden_size"] * length
    )  # causal: half of all pairs, twice 2 FLOPs
    forward = 2 * (parameters - embeddings) + attention
    return round(tokens_per_second * (2 * forward + attention) / peak, 3)


def skeleton(folder: Path) -> Any:
    """The model without weights, to count its parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def hardware() -> str:
    """The GPU, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
