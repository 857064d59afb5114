"""Plan → `trl.SFTTrainer`, whose output folder becomes a booster; and which checkpoints in a folder are this training's.

The home of trl and peft.
"""

import os
import shutil
import signal
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.generators.adapter import ADAPTER_FILE, AdapterRecord, read_record
from midb.generators.weights import ADAPTER_CONFIG
from midb.train.log import LOG, PLOT, append_log, plot_log, write_log
from midb.train.plan import Plan, Preview, printable
from midb.train.recipe import LoraRecipe

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTTrainer

OUTPUT_DIR = "booster"  # the default
STATE = "trainer_state.json"  # in a checkpoint, written by the trainer


def lora_trainer(
    edits: "Dataset",
    recipe: LoraRecipe,
    *,
    model: str | Path | None = None,
    output_dir: str | Path | None = None,
    eval_edits: "Dataset | None" = None,
) -> "SFTTrainer":
    """Build a trainer that turns edits into a booster: `lora_trainer(edits, recipe).train()`.

    Reads: the pair columns, their `raw_` twins, and `language` and `boost_status` where they are.
    Rows: those whose edit stands (the recipe's `statuses`) and that its distance filter and `max_length` keep. A report on
    stderr counts what is left out, and none is cut unless the recipe says so.

    Returns TRL's own trainer, with everything a plain one can do. The loss is over the completion and its end token.
    When the training ends, `output_dir` is a booster: `Booster.from_pretrained(output_dir)`. SIGTERM ends `.train()` early
    with a checkpoint, and `.train(resume_from_checkpoint=last_checkpoint(output_dir))` resumes.
    A folder holds the checkpoints of one training: another training in it is refused, and no checkpoint is lost.

    Args:
        edits: What experts or a booster changed; the recipe selects among them, so give them all.
        recipe: The hyper-parameters.
        model: A folder or Hub id in place of the recipe's.
        output_dir: Where checkpoints and the adapter go; the recipe's, or `booster`.
        eval_edits: Edits held out: their loss is measured with every checkpoint. Only `statuses` selects among them.

    Raises:
        MissingExtraError: trl, peft, torch or what the recipe asks for is not installed.
        ColumnError: The edits lack a column.
        TypeError: The edits are streamed, or several splits.
        FileNotFoundError: There is no such model or DeepSpeed file.
        ValueError: The model has no such modules, cannot be rendered as the recipe says, no row fits, or `output_dir` holds
            another training or a model that midb did not train.

    Source: MIDB (arXiv 2505.17671); the optimiser and loss are those of its training fork, LLaMA-Factory 0.9.3.
    """
    plan, folder = Plan(edits, recipe, str(model or recipe.model)), output_dir or recipe.output_dir or OUTPUT_DIR
    return build(plan, folder, eval_edits)


def preview(edits: "Dataset", recipe: LoraRecipe, *, model: str | Path | None = None) -> Preview:
    """Return what `lora_trainer` would do with the same arguments; loads a tokenizer and no weights.

    Reads: as `lora_trainer`.  `print` it: one example token by token, counts, steps, and the layers that LoRA will touch.

    Raises:
        MissingExtraError, ColumnError, TypeError, FileNotFoundError, ValueError: As `lora_trainer`.
    """
    return Plan(edits, recipe, str(model or recipe.model)).preview()


def build(
    plan: Plan, output_dir: str | Path, eval_edits: "Dataset | None" = None, starts_over: bool = False
) -> "SFTTrainer":
    """The trainer of a plan; with `starts_over` the caller deletes what is in the folder before the training begins."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    recipe = plan.recipe
    if recipe.deepspeed and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "DeepSpeed needs a launcher, for one GPU too: accelerate launch --use_deepspeed -m midb train RECIPE; or "
            "leave out deepspeed, which a model that fits on one GPU does not need"
        )
    plan.check_machine()
    tokens = plan.tokens
    if not starts_over:
        training_in(output_dir, plan.record)
    held_out = None if eval_edits is None else plan.tokenized(eval_edits)
    # Before the model is loaded: under DeepSpeed ZeRO-3 this is what lets it load in parts.
    arguments = SFTConfig(output_dir=str(output_dir), **_arguments(plan, held_out is not None))
    if arguments.n_gpu > 1:  # TRL says so too, after the weights are loaded
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start one for each with `accelerate launch -m midb train`, or show it "
            "one: CUDA_VISIBLE_DEVICES=0"
        )
    if arguments.process_index == 0:
        for report in filter(None, (tokens, held_out)):
            print(printable(report), file=sys.stderr)
    targets = recipe.target_modules
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(plan.model, **_loading(plan, arguments)),
        args=arguments,
        train_dataset=_packed(tokens.dataset, recipe),
        eval_dataset=held_out and _packed(held_out.dataset, recipe),
        processing_class=plan.chat.tokenizer,
        peft_config=LoraConfig(
            r=recipe.r,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        ),
    )
    if recipe.quantization:  # TRL makes the adapter bfloat16 beside quantized weights; the method trains it in float32
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    trainer.add_callback(_folder_callback(trainer, plan.record, recipe.save_total_limit))
    return trainer


def _packed(rows: "Dataset", recipe: LoraRecipe) -> "Dataset":
    """Several rows in one sequence where the recipe says so; not by the trainer, whose cache may hold another midb's rows."""
    if not recipe.packing:
        return rows
    from trl import pack_dataset

    return pack_dataset(rows, recipe.max_length, "bfd", map_kwargs={"load_from_cache_file": False})


def _arguments(plan: Plan, evaluated: bool) -> dict[str, Any]:
    """The recipe in the words of `trl.SFTConfig`."""
    import torch
    from transformers.utils import is_liger_kernel_available
    from trl import SFTConfig

    recipe = plan.recipe
    # transformers 5 renames it on the way: TRL sets the old name by default, which warns where there is a new one.
    checkpointing = {"activation_checkpointing", "gradient_checkpointing"} & {each.name for each in fields(SFTConfig)}
    same = (
        "learning_rate lr_scheduler_type num_train_epochs max_steps per_device_train_batch_size weight_decay adam_beta1 "
        "adam_beta2 adam_epsilon max_grad_norm seed packing max_length deepspeed logging_steps save_steps"
    )
    return {
        **{name: getattr(recipe, name) for name in same.split()},
        "warmup_steps": recipe.warmup_ratio,  # below 1, as a recipe's always is, it is a share of all steps
        "per_device_eval_batch_size": recipe.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.batch["accumulated"],
        "optim": "adamw_torch",
        "data_seed": recipe.seed,  # else the row order depends on what drew numbers between building and training
        "bf16": plan.dtype == "bfloat16",
        "fp16": plan.dtype == "float16",
        "use_cpu": not torch.cuda.is_available(),
        **dict.fromkeys(checkpointing, recipe.gradient_checkpointing),
        "dataset_kwargs": {"skip_prepare_dataset": True},  # our rows are ids and labels, and none is longer than that
        "pad_to_multiple_of": 8,
        # Of Liger TRL takes the layers' kernels; it has a loss of its own that needs no logits either.
        "use_liger_kernel": torch.cuda.is_available() and is_liger_kernel_available(),
        "save_strategy": "steps",
        "save_total_limit": None,  # transformers deletes by file time; `_remove_older` deletes by step
        "eval_strategy": "steps" if evaluated else "no",
        "eval_steps": recipe.save_steps if evaluated else None,
        "prediction_loss_only": True,
        "report_to": "none",
    }


def _loading(plan: Plan, arguments: Any) -> dict[str, Any]:
    """How the weights are loaded: precision, 4-bit, and flash attention where it is installed."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    how: dict[str, Any] = {"dtype": plan.dtype, "trust_remote_code": plan.recipe.trust_remote_code}
    if plan.recipe.quantization == "4bit":
        from transformers import BitsAndBytesConfig

        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, plan.dtype),
        )
        how["device_map"] = {"": arguments.device}
    if torch.cuda.is_available() and is_flash_attn_2_available() and plan.dtype != "float32" and plan.takes_flash:
        how["attn_implementation"] = "flash_attention_2"
    return how


def _folder_callback(trainer: "SFTTrainer", record: AdapterRecord, limit: int | None) -> Any:
    """What makes the trainer's folder a booster: log and plot during the training, record and adapter at the end.

    SIGTERM, which a cluster sends before it takes a machine back, ends the training with a checkpoint after the current
    step. (`enable_jit_checkpoint` of transformers saves in mid-step, so that a resumed training draws other dropout, lets
    each process choose its own step, and handles the signal from the moment a trainer is built.)
    """
    from accelerate.utils import broadcast_object_list
    from transformers import TrainerCallback, set_seed

    class Folder(TrainerCallback):
        told_to_stop = False  # this process
        is_stopping = False  # all of them, at the same step
        is_training = False
        is_over = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            fault: list[Any] = [None]
            if state.is_world_process_zero:  # one process looks, and all of them stop
                try:
                    training_in(args.output_dir, record)
                except ValueError as error:
                    fault = [error]
            if broadcast_object_list(fault)[0]:
                raise fault[0]
            set_seed(args.seed)  # whatever drew numbers since the trainer was built
            # TRL starts this count at zero when a training resumes.
            trainer._total_train_tokens = max((entry.get("num_tokens", 0) for entry in state.log_history), default=0)
            self.told_to_stop, self.is_stopping, self.is_training = False, False, True
            self.is_over = state.global_step >= state.max_steps
            if threading.current_thread() is threading.main_thread():  # no other can take signals
                self.before = signal.signal(signal.SIGTERM, self.stop) or signal.SIG_DFL
            if state.is_world_process_zero:
                record.write(args.output_dir)
                write_log(args.output_dir, state.log_history)  # of a resumed training: up to its checkpoint

        def stop(self, *signal_and_frame: Any) -> None:
            self.told_to_stop = True  # may come twice: from a scheduler, and moments later from its launcher

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.is_over:  # resumed from the checkpoint of the last step, and the trainer takes one more
                for group in kwargs["optimizer"].param_groups:
                    group["lr"] = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.is_over:
                state.global_step = state.max_steps
                control.should_log = control.should_evaluate = control.should_save = False
                return
            self.is_stopping = self.told_to_stop
            if args.world_size > 1:
                if self.told_to_stop:
                    trainer.accelerator.set_trigger()
                self.is_stopping = trainer.accelerator.check_trigger()
            if self.is_stopping:
                control.should_save = control.should_training_stop = True
            if control.should_save or control.should_training_stop:
                control.should_log = True  # a checkpoint does not hold the losses since the last line of the log

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero and self.is_training and not self.is_over:
                append_log(args.output_dir, state.log_history[-1])

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes its part; the record says that all are there
            if state.is_world_process_zero:
                plot_log(args.output_dir)
                checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
                if (checkpoint / STATE).is_file():  # else it was deleted since
                    _remove_paths(checkpoint)
                    record.write(checkpoint)  # it boosts too
                    _remove_older(checkpoint, limit, state.best_model_checkpoint)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self.before)
            self.is_training = False
            if state.is_world_process_zero:
                plot_log(args.output_dir)
            if self.is_stopping and state.global_step < state.max_steps:
                return  # the folder becomes a booster when the training ends; it resumes from its checkpoint
            trainer.save_model(args.output_dir)  # every process: under ZeRO-3 each holds a part
            if state.is_world_process_zero:
                _remove_paths(Path(args.output_dir))
                replace(record, metrics=_metrics(state)).write(args.output_dir)

    return Folder()


def _remove_paths(folder: Path) -> None:
    """Delete TRL's card and arguments, which hold paths of this machine and which nothing reads."""
    for name in ("README.md", "training_args.bin"):
        Path(folder, name).unlink(missing_ok=True)


def _metrics(state: Any) -> dict[str, float]:
    """The last of what was measured of the model; not of this process, which may have trained only the end."""
    measured = [entry for entry in state.log_history if "loss" in entry or "eval_loss" in entry]
    last = {name: value for entry in measured for name, value in entry.items()}
    names = ("loss", "entropy", "mean_token_accuracy")
    kept = {name: last[name] for each in names for name in (each, f"eval_{each}") if name in last}
    return {"steps": state.global_step, "epoch": last["epoch"], **kept} if measured else {"steps": state.global_step}


def _checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder in the order of their steps, whole or not."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def _remove_older(newest: Path, limit: int | None, best: str | None) -> None:
    """Delete checkpoints of earlier steps beyond the limit, in their order, but not the best one.

    By step and after the newest is whole: file times differ between machines, and some file systems have none.
    """
    found = _checkpoints(newest.parent)
    earlier = found[: found.index(newest)]
    excess = len(earlier) + 1 - limit if limit else 0
    for path in [path for path in earlier if str(path) != best][: max(excess, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in a training's folder, for `trainer.train(resume_from_checkpoint=...)`.

    A checkpoint that a kill left unfinished is skipped (the record is the last file that is written, when every process
    has written its own), and so is a checkpoint of another training.
    """
    record = read_record(folder)
    for path in reversed(_checkpoints(folder)):
        own = read_record(path)
        if own and (path / STATE).is_file() and not (record and record.differences(own)):
            return str(path)
    return None


def training_in(folder: str | Path, record: AdapterRecord) -> AdapterRecord | None:
    """The record that this training left in a folder; None in a folder without checkpoints and adapter.

    Raises:
        ValueError: The folder, or a checkpoint in it, is of another training, or of none that midb did.
    """
    checkpoints = _checkpoints(folder)
    records = {path: found for path in (Path(folder), *checkpoints) if (found := read_record(path))}
    files = (ADAPTER_CONFIG,) if records else (ADAPTER_CONFIG, "config.json")
    if not (checkpoints or any(Path(folder, name).is_file() for name in files)):
        return None
    if not records:
        raise ValueError(f"{folder} holds a model that midb did not train; give another output_dir (--out)")
    for path, found in records.items():
        if differences := record.differences(found):
            where = f"{path.name}: " if path in checkpoints else ""
            raise ValueError(
                f"{folder} holds another training ({where}{'; '.join(differences):.500}); give another output_dir (--out), "
                "or delete what is there (--restart)"
            )
    return next(iter(records.values()))


def remove_training(folder: str | Path) -> None:
    """Delete what an earlier training wrote, and nothing else: checkpoints, adapter, record, log and picture."""
    for path in _checkpoints(folder):
        shutil.rmtree(path)
    for name in (ADAPTER_CONFIG, "adapter_model.safetensors", ADAPTER_FILE, LOG, PLOT):
        Path(folder, name).unlink(missing_ok=True)
