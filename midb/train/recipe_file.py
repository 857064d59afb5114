"""A recipe from a YAML file: with our names, those of a LLaMA-Factory training file, or both.

Knows keys and what each means here, works here or cannot; `recipe.py` knows what a value may be.
"""

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from midb.errors import require_extra


class Settings(NamedTuple):
    """What a file says: values by field, the key that each came from, what is wrong, what has no effect, whose keys."""

    values: dict[str, Any]
    sources: dict[str, str]
    faults: list[str]
    said: list[str]
    is_foreign: bool


def read_settings(path: str | os.PathLike[str], kinds: Mapping[str, str]) -> Settings:
    """Read a file as settings of a recipe.

    Args:
        path: The file.
        kinds: The recipe's fields and their types.

    Raises:
        FileNotFoundError, ValueError, MissingExtraError: As `LoraRecipe.from_yaml`.
    """
    entries, faults = _read(path)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    aside: dict[str, list[str]] = {}
    for key, value in entries.items():
        meaning: dict[str, Any] = {}
        if (name := _RENAMED.get(key, key)) in kinds:
            meaning = {name: _as_number(value) if re.search(r"\bfloat\b", kinds[name]) else value}
        elif key in _CHOICES:
            choices, advice = _CHOICES[key]
            found = [each for choice, each in choices.items() if choice == value]
            if not found and value is not None:
                faults.append(f"{key}: {value!r:.80} cannot be done; {advice}")
            meaning = found[0] if found else {}
        elif key in _ASIDE:
            aside.setdefault(_ASIDE[key], []).append(key)
        else:
            faults.append(_unknown(key, [*kinds, *_RENAMED, *_CHOICES, *_ASIDE]))
        for name, each in meaning.items():
            if name in values:
                faults.append(f"{key} and {sources[name]} both set {name}; keep one of them")
            values[name], sources[name] = each, key
    if isinstance(values.get("dataset"), str):
        faults += _dataset_faults(values["dataset"], Path(str(entries.get("dataset_dir") or "data")))
    if isinstance(values.get("deepspeed"), str) and not os.path.isfile(values["deepspeed"]):
        faults.append(
            f"deepspeed: there is no file {values['deepspeed']} here; give the path of a DeepSpeed JSON file, or remove "
            "the line: a model that fits on one GPU needs none"
        )
    if values.get("global_batch_size") is not None and "gradient_accumulation_steps" in values:
        faults.append("gradient_accumulation_steps follows from global_batch_size; keep one of them")
    said = [f"{', '.join(keys)} ({why})" for why, keys in aside.items()]
    said = ["no effect here: " + "; ".join(said)] if said else []
    return Settings(values, sources, faults, said, is_foreign=not entries.keys() <= kinds.keys())


_RENAMED = {
    "model_name_or_path": "model", "lora_rank": "r", "lora_target": "target_modules", "cutoff_len": "max_length",
    "max_samples": "max_rows",
}  # fmt: skip

# Its key → what each value that works here sets, and what to do about any other. null is always "not set".
_CHOICES: dict[str, tuple[dict[Any, dict[str, Any]], str]] = {
    "stage": ({"sft": {}}, "a booster is fine-tuned on its answers: write stage: sft"),
    "do_train": ({True: {}}, "a recipe is for training: write do_train: true, or remove the line"),
    "finetuning_type": ({"lora": {}}, "midb trains LoRA adapters: write finetuning_type: lora"),
    "template": ({"llama3": {"rendering": "llama3"}}, "write template: llama3; or remove it and write rendering: template (the "
                 "model's own chat template), plain (for base models without one) or auto (whichever of llama3 and template fits)"),
    "train_on_prompt": ({False: {}}, "the loss is over the answer only, as published; remove the line"),
    "bf16": ({True: {"dtype": "bfloat16"}, False: {}}, "write true or false"),
    "fp16": ({True: {"dtype": "float16"}, False: {}}, "write true or false"),
    "pure_bf16": ({False: {}}, "the adapter's own weights stay float32: write bf16: true"),
    "disable_gradient_checkpointing": (
        {True: {"gradient_checkpointing": False}, False: {"gradient_checkpointing": True}}, "write true or false"),
    "quantization_bit": ({4: {"quantization": "4bit"}}, "write 4, or remove the line"),
    "quantization_method": ({"bnb": {}, "bitsandbytes": {}}, "midb quantizes with bitsandbytes; remove the line"),
    "quantization_type": ({"nf4": {}}, "midb quantizes to nf4; remove the line"),
    "double_quantization": ({True: {}}, "it is always on; remove the line"),
    "warmup_steps": ({0: {}}, "write warmup_ratio, a share of all steps"),
    "optim": ({"adamw_torch": {}, "adamw_torch_fused": {}}, "midb trains with AdamW; remove the line"),
    "neat_packing": ({False: {}}, "write packing: true, or remove the line"),
    "mix_strategy": ({"concat": {}}, "there is one dataset; remove the line"),
    "val_size": ({0: {}}, "no rows are held back; remove the line, or train in Python and hand eval_edits to lora_trainer"),
    "save_strategy": ({"steps": {}}, "write save_steps, or remove the line"),
    "logging_strategy": ({"steps": {}}, "write logging_steps, or remove the line"),
    "model_revision": ({"main": {}}, "download that revision and give its folder as the model"),
    "resume_from_checkpoint": ({False: {}}, "midb train goes on by itself where output_dir stopped; remove the line"),
    **dict.fromkeys(
        ("adapter_name_or_path", "additional_target", "use_rslora", "use_dora", "loraplus_lr_ratio", "pissa_init",
         "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_llama_pro", "neftune_noise_alpha",
         "shift_attn", "rope_scaling", "resize_vocab", "add_tokens", "add_special_tokens", "upcast_layernorm", "streaming",
         "interleave_probs", "default_system", "disable_shuffling", "group_by_length", "load_best_model_at_end",
         "label_smoothing_factor", "lr_scheduler_kwargs", "fp8", "fsdp", "push_to_hub"),
        ({False: {}}, "midb trains without it; remove the line")),
}  # fmt: skip

# Its keys that change nothing about the adapter here, and why.
_ASIDE = {
    key: why
    for why, keys in {
        "dataset names the place itself": "dataset_dir media_dir",
        "rows are prepared in memory": "overwrite_cache preprocessing_num_workers preprocessing_batch_size tokenized_path "
        "dataloader_num_workers dataloader_pin_memory buffer_size remove_unused_columns",
        "a row is one question and one answer": "mask_history ignore_pad_token_for_loss",
        "no file names rows to evaluate on": "eval_dataset do_eval eval_strategy evaluation_strategy eval_steps "
        "eval_on_each_dataset per_device_eval_batch_size eval_num_beams compute_accuracy do_predict predict_with_generate",
        "log and loss curve are always written": "plot_loss report_to run_name logging_dir logging_first_step "
        "include_num_input_tokens_seen include_tokens_per_second",
        "nothing is overwritten unasked, and checkpoints are whole": "overwrite_output_dir save_only_model",
        "another way to the same numbers, which midb does not take": "use_unsloth use_unsloth_gc use_reentrant_gc",
        "what is installed is used": "flash_attn enable_liger_kernel tf32 "
        "low_cpu_mem_usage use_fast_tokenizer use_v1_kernels ddp_find_unused_parameters",
        "the environment decides": "ddp_timeout cache_dir hf_hub_token local_rank print_param_status",
    }.items()
    for key in keys.split()
}

# Where its default is another than ours.
OTHERWISE = (
    "k", "r", "lora_alpha", "learning_rate", "lr_scheduler_type", "warmup_ratio", "num_train_epochs", "max_length",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]]:
    """The lines of a YAML file, and what is wrong with them as lines."""
    require_extra("yaml", "train")
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of a recipe, a YAML file")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it first, e.g. with iconv") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML ({error}); mend that place") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {content!r:.40} instead of settings; write lines such as learning_rate: 2.0e-4")
    keys = [key.value for key, _ in root.value]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return {str(key): value for key, value in content.items()}, [f"{key} is there twice; keep one" for key in twice]


def _as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text, and only 1.0e-4 as a number; whoever writes either means a number."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value


def _unknown(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key.strip().lower().replace("-", "_"), known, 1, 0.7)
    what = f"did you mean {close[0]}?" if close else "remove the line"
    if key == "loar_target":  # printed in MIDB's README, with the names of ChatGLM's modules
        what += " (MIDB's published file can only have run with it ignored, as lora_target: all)"
    return f"{key} is no setting that midb knows; {what}"


def _dataset_faults(name: str, folder: Path) -> list[str]:
    """A place is a file or folder that is there, a name on the Hub, or the published edits."""
    on_hub = re.fullmatch(r"(hf://datasets/)?\w[\w.-]*/\w[\w.-]*", name)
    is_file = name.endswith((".json", ".jsonl", ".ndjson", ".csv", ".parquet"))
    if name == "midb" or os.path.exists(name) or (on_hub and not is_file):
        return []
    if name.lower().startswith("meb"):
        return [
            f"dataset: {name} was never published; published are machine translations of CoachLM's English edits: "
            "write dataset: midb for those, or the path of a file that `midb data` has written"
        ]
    place: Any = "midb (the published edits)"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
        place = entry.get("hf_hub_url") or folder / entry["file_name"]
    return [
        f"dataset: there is no {name} here; give one file, folder or Hub dataset (owner/name), e.g. dataset: {place}"
    ]
