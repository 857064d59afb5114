"""`midb train` and `midb serve-command`: a booster from edits, and behind a server."""

import os
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midb import release
from midb.cli.terminal import note
from midb.errors import ColumnError
from midb.files import read_dataset
from midb.generators.adapter import ADAPTER_FILE
from midb.schema import as_edits
from midb.train.plan import Plan
from midb.train.recipe import LoraRecipe
from midb.train.trainer import OUTPUT_DIR, build, last_checkpoint, remove_training, training_in

if TYPE_CHECKING:
    from datasets import Dataset

PUBLISHED = "midb"  # as a dataset's name: the published edits


def train(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file: our names, or LLaMA-Factory's.")],
    edits: Annotated[
        str | None,
        typer.Option(
            help="A file, folder or Hub dataset of edits, or 'midb' for the published ones; else the recipe's."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder of the booster; else the recipe's, or 'booster'.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of the base model; else the recipe's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one example token by token, counts and steps; load no weights.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the training in the output folder and start over.")
    ] = False,
) -> None:
    """Train a LoRA booster; run the same command again to resume where it stopped."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recipe = LoraRecipe.from_yaml(recipe_file)
    for warning in told if os.environ.get("RANK", "0") == "0" else []:  # once, not in every process
        print(f"midb: {warning.message}", file=sys.stderr)
    recipe = replace(recipe, dataset=edits or recipe.dataset)
    if recipe.dataset is None:
        raise ValueError(f"{recipe_file} names no dataset; add one, or give --edits")
    plan = Plan(_read_edits(recipe.dataset), recipe, model or recipe.model)
    if dry_run:
        print(plan.preview())
        return
    folder = Path(out or recipe.output_dir or OUTPUT_DIR)
    starts_over = restart and (folder / ADAPTER_FILE).is_file()  # only what midb trained is ever deleted
    before = None if starts_over else training_in(folder, plan.record)
    use = f"use it: midb boost SOURCE --model {shlex.quote(str(folder))} --out OUT"
    if before and before.metrics:
        print(f"this booster is fully trained; {use}, or --restart to train it again", file=sys.stderr)
        return
    trainer = build(plan, folder, starts_over=starts_over)
    from accelerate.utils import broadcast_object_list  # the plan has seen that it is installed

    checkpoint = broadcast_object_list([last_checkpoint(folder) if before else None])[0]
    if checkpoint and trainer.is_world_process_zero():
        print(f"resuming from {checkpoint}", file=sys.stderr)
    if starts_over and trainer.is_world_process_zero():
        remove_training(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    is_stopped = state.global_step < state.max_steps  # by SIGTERM
    if state.is_world_process_zero:
        how, what = ("stopped after", "the same command resumes") if is_stopped else ("trained", use)
        print(f"{how} {state.global_step:,} steps; {what}", file=sys.stderr)
    if is_stopped:
        raise KeyboardInterrupt


def serve_command(
    model: Annotated[str, typer.Argument(help="A model or adapter: folder or Hub id.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of `vllm serve`: --tensor-parallel-size 4, --data-parallel-size 2, --host, ..."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where the server listens, on this machine alone.")
    ] = 8000,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Prompt and answer together.", show_default="what model and memory allow")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where its two files are written.", show_default="./booster-HASH")
    ] = None,
) -> None:
    """Print the `vllm serve` command for a booster, and what asks it; write its chat template and end tokens."""
    from midb.generators.serve import serve_command as command_of

    served = command_of(model, *(options or []), port=port, max_model_len=max_model_len, folder=folder)
    print(shlex.join(served.command))
    note(f"and, when it is up: {served.client}")


def _read_edits(source: str) -> "Dataset":
    """The published edits, a local copy of them, or any dataset that holds texts before and after."""
    if source == PUBLISHED:
        return release.load_training()
    if any(Path(source, part).is_dir() for part in ("data/MIDB_train", "MIDB_train")):
        return release.load_training(source)
    edits = read_dataset(source)
    if isinstance(edits, dict):
        raise ColumnError(f"{source} has the splits {', '.join(edits)}; give a place that holds the one to train on")
    return as_edits(edits)
