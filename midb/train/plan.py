"""Edits and a recipe → tokens, module names, steps and the record: everything about a training that needs no weights.

Loads a tokenizer and a model's configuration. A mistake raises before weights load, and a preview takes seconds.
"""

import math
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.chat import ChatFormat
from midb.distance import filter_by_edit_distance, left_out_line, standing
from midb.errors import require_extra
from midb.generators.adapter import AdapterRecord
from midb.generators.weights import resolve_adapter, weights_name
from midb.prompts import TAGS
from midb.train.recipe import Dtype, LoraRecipe, find_modules
from midb.train.training_set import TokenizedSet, as_training_set, check_stored, show_tokens, tokenize

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Plan:
    """One training, checked.

    Args:
        edits: As they were given; the recipe selects among them here.
        recipe: The hyper-parameters.
        model: Folder or Hub id of the base model.

    Raises:
        MissingExtraError: trl, peft, torch or what the recipe asks for is not installed.
        FileNotFoundError: The model's folder or the DeepSpeed file is missing.
        TypeError: The edits are streamed, or several splits.
        ValueError: The model is an adapter or lacks the modules, the batch cannot be spread, or there is no GPU for float16.
    """

    edits: "Dataset"
    recipe: LoraRecipe
    model: str

    def __post_init__(self) -> None:
        """Check; cheap checks come first."""
        for module in ("torch", "accelerate", "peft", "trl", "matplotlib"):
            require_extra(module, "train")
        if self.recipe.deepspeed and not Path(self.recipe.deepspeed).is_file():
            raise FileNotFoundError(f"deepspeed={self.recipe.deepspeed!r} is no file; see examples/deepspeed")
        _ = self.batch
        check_stored(self.edits, "edits")
        if resolve_adapter(self.model)[1]:
            raise ValueError(f"{self.model!r} is an adapter; train on its base model, or merge it into one first")
        _ = self.modules

    @cached_property
    def chat(self) -> ChatFormat:
        """How the model's tokenizer renders, as the recipe says."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=self.recipe.trust_remote_code)
        return ChatFormat(tokenizer, self.recipe.rendering, self.recipe.parity)

    @cached_property
    def tokens(self) -> TokenizedSet:
        """The rows that will be trained on."""
        return self.tokenized(self.edits, self.recipe.k, self.recipe.max_rows)

    def tokenized(self, edits: "Dataset", k: int | float | None = None, max_rows: int | None = None) -> TokenizedSet:
        """The edits that stand as this training reads them; of each language the `k` farthest and the first `max_rows`."""
        check_stored(edits, "eval_edits")
        statuses = self.recipe.statuses
        kept, left_out = standing(edits, statuses)
        if left_out and not len(kept):
            raise ValueError(
                f"there is no row to train on, as no edit stands ({left_out_line(left_out)}); "
                f"give edits that were boosted, or other statuses than {', '.join(statuses)}"
            )
        if k is not None:
            by = "language" if "language" in kept.column_names else None
            kept = filter_by_edit_distance(kept, k, by=by, statuses=statuses)
        if max_rows is not None:
            kept = _first_of_each_language(kept, max_rows)
        rows = as_training_set(kept, prompt=self.recipe.prompt, parity=self.recipe.parity)
        tokens = tokenize(rows, self.chat, max_length=self.recipe.max_length, overlong=self.recipe.overlong)
        return replace(tokens, not_standing=left_out)

    @cached_property
    def batch(self) -> dict[str, int]:
        """How the rows of a step are spread: processes × rows at a time × accumulated."""
        processes = int(os.environ.get("WORLD_SIZE", 1))
        rows, accumulated = self.recipe.per_device_train_batch_size, self.recipe.gradient_accumulation_steps
        if self.recipe.global_batch_size is not None:
            accumulated, left = divmod(self.recipe.global_batch_size, rows * processes)
            if left or not accumulated:
                raise ValueError(
                    f"global_batch_size={self.recipe.global_batch_size} is no multiple of {processes} processes × "
                    f"per_device_train_batch_size={rows}; change either"
                )
        return {"processes": processes, "per_device": rows, "accumulated": accumulated}

    @cached_property
    def dtype(self) -> Dtype:
        """The number format of the forward pass on this machine."""
        import torch

        if self.recipe.dtype != "auto":
            return self.recipe.dtype
        return (
            "bfloat16"
            if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            else "float32"
        )

    def check_machine(self) -> None:
        """Raise for what a training needs and a preview, on a machine that only submits it, does not."""
        import torch

        if self.recipe.dtype == "float16" and not torch.cuda.is_available():
            raise ValueError("dtype='float16' needs a GPU, and there is none; use 'auto', 'bfloat16' or 'float32'")
        if self.recipe.quantization:
            require_extra("bitsandbytes", "qlora")
        if self.recipe.deepspeed:
            require_extra("deepspeed", "deepspeed")

    @property
    def takes_flash(self) -> bool:
        """Whether the model's code knows flash attention."""
        return bool(self._skeleton._supports_flash_attn)  # transformers' own flag, for which it has no other word

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps, as the trainer counts them; of packed rows the least there can be."""
        rows = self.tokens.counts.kept
        if self.recipe.packing:
            rows = math.ceil(self.tokens_per_epoch / self.recipe.max_length)
        batches = math.ceil(math.ceil(rows / self.batch["processes"]) / self.batch["per_device"])
        return math.ceil(batches / self.batch["accumulated"])

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all rows, padding aside."""
        return self.tokens.counts.prompt_tokens + self.tokens.counts.completion_tokens

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        if self.recipe.max_steps > 0:
            return self.recipe.max_steps
        return math.ceil(self.recipe.num_train_epochs * self.steps_per_epoch)

    @property
    def record(self) -> AdapterRecord:
        """What is written beside the adapter; it holds no path of this machine."""
        recipe = {**self.recipe.to_dict(), "model": weights_name(self.model), "dtype": self.dtype}
        for name in ("deepspeed", "dataset"):
            # A Hub id stays; of what may be a path, here or on another machine, only the name stays.
            if recipe[name] and (
                Path(recipe[name]).exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", recipe[name])
            ):
                recipe[name] = Path(recipe[name]).name
        del recipe["output_dir"]
        return AdapterRecord(
            rendering=self.chat.rendering,
            chat_hash=self.chat.hash(),
            prompt=self.recipe.prompt,
            tags=TAGS,
            parity=self.recipe.parity,
            model=weights_name(self.model),
            recipe=recipe,
            data={
                "fingerprint": self.tokens.fingerprint,
                **asdict(self.tokens.counts),
                "languages": {name: counts.kept for name, counts in self.tokens.languages.items()},
            },
            batch=self.batch,
            versions={name: version(name) for name in ("midb", "trl", "peft", "transformers", "torch")},
        )

    @cached_property
    def _skeleton(self) -> Any:
        """The model without its weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = self.recipe.trust_remote_code
        config = AutoConfig.from_pretrained(self.model, trust_remote_code=trust)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)

    @cached_property
    def _layers(self) -> dict[str, tuple[int, int]]:
        """The linear layers by name, inputs and outputs; without the output layer, which TRL does not train."""
        import torch
        from transformers.pytorch_utils import Conv1D

        head = self._skeleton.get_output_embeddings()
        found = {}
        for name, layer in self._skeleton.named_modules():
            if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head:
                wide, high = layer.weight.shape
                found[name] = (wide, high)
        return found

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that LoRA adapts."""
        return find_modules(self.recipe.target_modules, self._layers)

    def preview(self) -> "Preview":
        """The plan for people to read."""
        row = self.tokens.dataset[0]
        return Preview(
            tokens=self.tokens,
            example=show_tokens(row["input_ids"], row["labels"], self.chat.tokenizer),
            modules=self.modules,
            trainable=sum(self.recipe.r * sum(self._layers[name]) for name in self.modules),
            parameters=sum(each.numel() for each in self._skeleton.parameters()),
            batch=self.batch,
            steps=self.steps,
            trained_tokens=round(self.tokens_per_epoch * self.steps / self.steps_per_epoch),
        )


@dataclass(frozen=True)
class Preview:
    """What a training would do, before any weights are loaded.

    Args:
        tokens: What the rows are in tokens, and which were left out or cut.
        example: The first row token by token, and which are trained.
        modules: The names of the layers that LoRA will stand beside.
        trainable: Parameters that are trained.
        parameters: Parameters of the model.
        batch: How the rows of a step are spread: processes, rows at a time, accumulated.
        steps: Optimiser steps; with packing the least there can be.
        trained_tokens: Tokens that go through the model in all, padding aside.
    """

    tokens: TokenizedSet
    example: str
    modules: tuple[str, ...]
    trainable: int
    parameters: int
    batch: dict[str, int]
    steps: int
    trained_tokens: int

    def __str__(self) -> str:
        """The example, then the numbers."""
        kinds = Counter(name.rpartition(".")[2] for name in self.modules)
        listed = ", ".join(f"{kind} ×{count}" for kind, count in kinds.items())
        share = self.trainable / self.parameters
        return (
            f"{self.example}\n\n{printable(self.tokens)}\n\n"
            f"steps: {self.steps:,} of {' × '.join(f'{each} {name}' for name, each in self.batch.items())}; tokens through the model: {self.trained_tokens:,}\n"
            f"trainable: {self.trainable:,} parameters beside {self.parameters:,} ({share:.2%})\n"
            f"LoRA beside {len(self.modules)} layers: {listed}"
        )


def printable(report: object) -> str:
    """A report as text that cannot command a terminal: the names of languages in it come with the dataset."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in str(report))


def _first_of_each_language(edits: "Dataset", n: int) -> "Dataset":
    if "language" not in edits.column_names:
        return edits.take(n)
    languages = edits.select_columns("language").with_format("pandas")[:]
    return edits.select((languages.groupby("language", dropna=False).cumcount() < n).to_numpy().nonzero()[0])
