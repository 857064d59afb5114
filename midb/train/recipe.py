"""How a booster is trained, as one value: the published hyper-parameters, presets of them, and which values can work.

Loads no model and no data: `plan.py` and `trainer.py` do what a recipe says, `recipe_file.py` reads one from a file.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from midb.chat import Rendering
from midb.distance import BOOSTED
from midb.prompts import PROMPT
from midb.train.recipe_file import OTHERWISE, read_settings
from midb.train.training_set import Overlong

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Everything that decides which adapter comes out of a set of edits.

        recipe = LoraRecipe.preset("midb-readme")
        small = dataclasses.replace(recipe, model="meta-llama/Llama-3.2-3B", num_train_epochs=2)

    The defaults are the set that MIDB's README prints ("MIDB README"), completed by what the software it was run with
    does when told nothing ("LLaMA-Factory default"). "AAAI version" stands for secondary notes of the later paper, which
    we could not check; "ours" for choices of this package.

    Args:
        model: Base model, a Hub id or a folder. MIDB README. (AAAI version: Llama-3.1-8B-Instruct; CoachLM: ChatGLM2-6B.)
        r: Rank of the adapter. MIDB README, CoachLM.
        lora_alpha: The adapter is scaled by lora_alpha / r, here 0.5. MIDB README, CoachLM.
        lora_dropout: Share of the adapter's inputs set to zero, in [0, 1). LLaMA-Factory default. (CoachLM, inferred: 0.1.)
        target_modules: "all-linear" (every linear layer but the output), or names of modules. Inferred: the README's key
            is misspelt and its names are ChatGLM's, so that only all linear layers can have been trained.
        k: How many edits of each language to keep, those that changed the most; a float in (0, 1] is a share; None keeps
            all. Of boosted rows only those that stand are ranked and counted. MIDB README: 720 of 2301; that it counts per language is inferred. (AAAI version, CoachLM: 0.3.)
        statuses: Of boosted rows, the values of `boost_status` to learn from; the others hold their raw pair. "boosted", or
            several. Rows without a status are experts' edits and all taken. Ours.
        max_rows: Rows of each language at most, the first in file order after the distance filter; None has no limit.
            LLaMA-Factory's `max_samples`, which counts per dataset entry: at an entry per language the two are the same.
            MIDB README: 1000, which never bites at 720 edits a language.
        learning_rate: Highest learning rate. MIDB README, CoachLM. (AAAI version: 4e-4.)
        lr_scheduler_type: How it falls, a name of transformers. MIDB README, CoachLM.
        warmup_ratio: Share of all steps over which it rises, in [0, 1). MIDB README. (CoachLM, inferred: 0.)
        num_train_epochs: Passes over the edits. MIDB README. (AAAI version: 3; CoachLM: 7.)
        max_steps: Optimiser steps, instead of epochs; -1 leaves it to them. LLaMA-Factory default.
        per_device_train_batch_size: Rows per device and forward pass. MIDB README.
        gradient_accumulation_steps: Passes per optimiser step. MIDB README.
        global_batch_size: Rows per optimiser step over all devices; when set, the accumulation follows from it and the
            number of processes. None in MIDB README, which prints 4 × 2 × devices. (AAAI version: 128; CoachLM: 32.)
        weight_decay: Of AdamW. LLaMA-Factory default, as the four below.
        adam_beta1: Of AdamW, in [0, 1).
        adam_beta2: Of AdamW, in [0, 1).
        adam_epsilon: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them.
        seed: Of the adapter's first weights and of the order of rows. LLaMA-Factory default.
        max_length: Tokens of a row at most, prompt and completion together. MIDB README (`cutoff_len`).
        overlong: What becomes of a longer row: "leave_out" and count it; "cut" its right ends, as LLaMA-Factory does,
            which takes the end of the answer; "refuse" the whole set. Ours: at 4096 no published row is longer.
        rendering: How a chat becomes text, see `midb.chat`. Ours; MIDB README: "llama3".
        parity: Train on control tokens inside the texts as the reference does, instead of on their letters. Ours.
        prompt: What the model is asked, ahead of each pair. MIDB's published template.
        dtype: Number format of the forward pass; "auto" is bfloat16 where a GPU has it, else float32. Ours; MIDB README:
            bfloat16. (CoachLM: float16.)
        gradient_checkpointing: Less memory for more time, same numbers. LLaMA-Factory default.
        packing: Several rows in one sequence. LLaMA-Factory default.
        quantization: "4bit" keeps the frozen weights in four bits (QLoRA). LLaMA-Factory default.
        deepspeed: Path of a DeepSpeed JSON file. MIDB README: ZeRO-3, which changes the memory needed and not the method.
        logging_steps: Steps between two lines of the log. MIDB README.
        save_steps: Steps between two checkpoints. LLaMA-Factory default; MIDB README: 100.
        save_total_limit: Checkpoints to keep; None keeps all, and with 1 a kill while it is replaced leaves none. Ours.
        trust_remote_code: Run Python code that comes with the model. Ours: nobody but you turns it on. MIDB README: true,
            which Llama does not need.
        dataset: For the command line: a file, a folder, a Hub id, or "midb" for the published edits. Never read here.
        output_dir: For the command line: where the adapter goes. Never read here.

    Raises:
        ValueError: A value has the wrong kind or is out of bounds; one line for each that is.
    """

    model: str = "meta-llama/Llama-3.1-8B"
    r: int = 64
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    k: int | float | None = 720
    statuses: str | tuple[str, ...] = BOOSTED
    max_rows: int | None = None
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1
    num_train_epochs: float = 1.0
    max_steps: int = -1
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    global_batch_size: int | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    seed: int = 42
    max_length: int = 4096
    overlong: Overlong = "leave_out"
    rendering: Rendering = "auto"
    parity: bool = False
    prompt: str = PROMPT
    dtype: Dtype = "auto"
    gradient_checkpointing: bool = True
    packing: bool = False
    quantization: Literal["4bit"] | None = None
    deepspeed: str | None = None
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int | None = 2
    trust_remote_code: bool = False
    dataset: str | None = None
    output_dir: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _plain(each.name, each.type, getattr(self, each.name)))
        if faults := _faults(vars(self)):
            raise ValueError("\n".join(faults))

    @classmethod
    def preset(cls, name: str) -> Self:
        """A published set: "midb-readme", "midb-paper-v2" or "coachlm".

        - `midb-readme`: published, MIDB's README. That all linear layers are trained is inferred: the names it prints for
          them are not Llama's, under a misspelt key. Left out are ZeRO-3, which is about memory, and running remote code.
        - `midb-paper-v2`: from secondary notes of the AAAI version, so probable and not confirmed: the Instruct model,
          three epochs, 4e-4, 128 rows a step, the 30 % that changed the most. The rest is as in `midb-readme`.
        - `coachlm`: published, CoachLM's README: ChatGLM2-6B and its module names, r, alpha, seven epochs, 2e-4, 32 rows a
          step, float16, "around the first 30%", and its own prompt. Dropout and warmup are inferred: the defaults of the
          tool it names (ChatGLM-Efficient-Tuning). `max_length` is ours. CoachLM wrote pairs as `Instruction: … Input: …
          Response: …`; here they keep MIDB's tags and the rendering "plain", so this is its training and not its text.
          ChatGLM2 brings code of its own: set `trust_remote_code` if you trust it, or take another `model` with
          `target_modules="all-linear"`.

        Raises:
            ValueError: There is no such preset.
        """
        if name not in _PRESETS:
            raise ValueError(f"there is no preset {name!r}; use {', '.join(_PRESETS)}")
        return cls(**_PRESETS[name])

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe from a file with the names above, those of LLaMA-Factory, or both.

        Whatever could not mean here what it means there is refused, all of it in one error. Keys without an effect here
        are named in one warning. What the file leaves out has the default of this class; where a file of LLaMA-Factory's
        names leaves out what would be another number there, the warning says so. As there, paths start from the working
        directory.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no YAML mapping, or has faults; one line for each.
            MissingExtraError: PyYAML is not installed.
        """
        kinds = {each.name: str(each.type) for each in fields(cls)}
        values, sources, faults, said, is_foreign = read_settings(path, kinds)
        complete = {
            each.name: _plain(each.name, each.type, values.get(each.name, each.default)) for each in fields(cls)
        }
        faults += _faults(complete, sources)
        if faults:
            raise ValueError(f"{path} cannot be used as it is; mend each of these\n  " + "\n  ".join(faults))
        left = [f"{name}={complete[name]!r}" for name in OTHERWISE if name not in values]
        if left and is_foreign:
            said.append("left out, and set otherwise than by LLaMA-Factory: " + ", ".join(left))
        if said:
            warnings.warn(f"{path}: " + ". ".join(said), stacklevel=2)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; `LoraRecipe(**recipe.to_dict())` is the same recipe."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def find_modules(target_modules: str | Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """The full names of the modules to train; a name that the model lacks is refused, as PEFT would train the others only.

    Args:
        target_modules: As in `LoraRecipe`: "all-linear", or last parts of names.
        available: The full names of the modules that LoRA can adapt.

    Raises:
        ValueError: The model has no such modules; says which it has.
    """
    names, wanted = tuple(available), _module_names(target_modules)
    if wanted == "all-linear":
        return names
    found = {end: [name for name in names if f".{name}".endswith(f".{end}")] for end in wanted}
    if missing := [end for end, matches in found.items() if not matches]:
        kinds = sorted(kind for kind in {name.rpartition(".")[2] for name in names} if not kind.isdigit())
        raise ValueError(
            f"the model has no modules named {', '.join(missing)}; it has {', '.join(kinds)}. Name some of these, or take "
            "all of them: target_modules: all-linear (in a LLaMA-Factory file, lora_target: all)"
        )
    chosen = {name for matches in found.values() for name in matches}
    return tuple(name for name in names if name in chosen)


# --- what a field may be ----------------------------------------------------------------------------------------------

_Rule = tuple[str, Callable[[Any], bool]]  # in words, and as a test that any value survives


def _whole(least: int) -> _Rule:
    return f"a whole number of at least {least}", lambda value: type(value) is int and value >= least


def _number(words: str, test: Callable[[float], bool]) -> _Rule:
    """Neither a bool nor nan nor infinity."""
    return f"a number {words}", lambda v: type(v) in (int, float) and abs(v) < 1e300 and test(v)


def _one_of(options: Sequence[str]) -> _Rule:
    return f"one of {', '.join(options)}", lambda value: isinstance(value, str) and value in options


def _or_none(rule: _Rule) -> _Rule:
    words, test = rule
    return f"{words}, or nothing (None, in a file null)", lambda value: value is None or test(value)


def _is_k(value: Any) -> bool:
    return (type(value) is int and value >= 1) or (type(value) is float and 0 < value <= 1)


def _are_statuses(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(each in _STATUSES for each in value)


def _are_modules(value: Any) -> bool:
    """As `_module_names` leaves them."""
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        return isinstance(value, str) and value == "all-linear"
    return bool(value) and all(re.fullmatch(r"(?!all(-linear)?$)[\w.-]+", name) for name in value)


_STATUSES = ("boosted", "unchanged", "rejected", "failed", "not_run")
_TEXT: _Rule = ("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
_SWITCH: _Rule = ("true or false", lambda value: isinstance(value, bool))
_SCHEDULES = (  # those of transformers that need no settings of their own
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip

_RULES: dict[str, _Rule] = {
    name: rule
    for names, rule in (
        ("model prompt", _TEXT),
        ("deepspeed dataset output_dir", _or_none(_TEXT)),
        ("parity gradient_checkpointing packing trust_remote_code", _SWITCH),
        ("r lora_alpha per_device_train_batch_size gradient_accumulation_steps logging_steps save_steps", _whole(1)),
        ("max_rows global_batch_size save_total_limit", _or_none(_whole(1))),
        ("max_length", _whole(2)),
        ("max_steps", ("a whole number of at least 1, or -1", lambda v: type(v) is int and (v >= 1 or v == -1))),
        ("seed", ("a whole number from 0 to 4294967295", lambda v: type(v) is int and 0 <= v < 2**32)),
        ("k", _or_none(("a whole number of at least 1 or a share such as 0.3", _is_k))),
        ("learning_rate num_train_epochs adam_epsilon", _number("above 0", lambda v: v > 0)),
        ("weight_decay max_grad_norm", _number("of at least 0", lambda v: v >= 0)),
        ("lora_dropout warmup_ratio adam_beta1 adam_beta2", _number("from 0 to below 1", lambda v: 0 <= v < 1)),
        ("lr_scheduler_type", _one_of(_SCHEDULES)),
        ("overlong", _one_of(get_args(Overlong))),
        ("rendering", _one_of(get_args(Rendering))),
        ("dtype", _one_of(get_args(Dtype))),
        ("quantization", _or_none(_one_of(("4bit",)))),
        ("statuses", (f"some of {', '.join(_STATUSES)}", _are_statuses)),
        ("target_modules", ("all-linear, or names of modules such as q_proj, v_proj (no patterns)", _are_modules)),
    )
    for name in names.split()
}


def _names(value: Any) -> Any:
    """The one form of several names: lists and "q_proj, v_proj" become tuples."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(","))
    return tuple(value) if isinstance(value, list) else value


def _module_names(value: Any) -> Any:
    """The one form of `target_modules`, in which LLaMA-Factory's "all" is ours."""
    names = _names(value)
    return "all-linear" if isinstance(value, str) and names in (("all",), ("all-linear",)) else names


def _plain(name: str, kind: Any, value: Any) -> Any:
    """One way to write each value, so that equal recipes are equal and JSON can hold them."""
    if name == "target_modules":
        return _module_names(value)
    if name == "statuses":
        names = _names(value)
        return tuple(sorted(set(names))) if _are_statuses(names) else names
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value


def _faults(values: dict[str, Any], sources: dict[str, str] | None = None) -> list[str]:
    """What is wrong, a line each; `sources` says under which other name a value was given."""
    named = {name: (sources or {}).get(name, name) for name in _RULES}
    faults = [
        f"{named[name]}: {values[name]!r:.80} cannot be used; give {words}"
        for name, (words, test) in _RULES.items()
        if not test(values[name])
    ]
    rows, step = values["per_device_train_batch_size"], values["global_batch_size"]
    if not faults and step is not None and step % rows:
        faults.append(
            f"global_batch_size: {step} is no multiple of per_device_train_batch_size, {rows}; change one of the two"
        )
    return faults


# --- what is published ------------------------------------------------------------------------------------------------

_README: dict[str, Any] = {"rendering": "llama3", "dtype": "bfloat16", "max_rows": 1000, "save_steps": 100}
_PRESETS: dict[str, dict[str, Any]] = {
    "midb-readme": _README,
    "midb-paper-v2": {
        **_README, "model": "meta-llama/Llama-3.1-8B-Instruct", "k": 0.3, "max_rows": None, "learning_rate": 4e-4,
        "num_train_epochs": 3.0, "global_batch_size": 128,
    },
    "coachlm": {
        "model": "zai-org/chatglm2-6b", "k": 0.3, "num_train_epochs": 7.0, "global_batch_size": 32, "dtype": "float16",
        "target_modules": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        "lora_dropout": 0.1, "warmup_ratio": 0.0, "rendering": "plain",
        "prompt": "Improve the following instruction, input and response pair to be more specific, detailed with more logical "
        "steps and grammarly corrected.",
    },
}  # fmt: skip
