"""The command: `midb train recipe.yaml` on one GPU, `accelerate launch -m midb.train recipe.yaml` on many."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midb import release
from midb.errors import ColumnError, MidbError
from midb.files import read_dataset
from midb.generators.adapter import AdapterRecord, read_record
from midb.generators.weights import ADAPTER_CONFIG
from midb.recipe import LoraRecipe
from midb.schema import as_edits
from midb.train.plan import Plan
from midb.train.trainer import build, last_checkpoint

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
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew where another training began.")] = False,
) -> None:
    """Train a LoRA booster; run the same command again to go on where it stopped."""
    recipe = LoraRecipe.from_yaml(recipe_file)
    source = edits or recipe.dataset
    if source is None:
        raise ValueError(f"{recipe_file} names no dataset; add one, or give --edits")
    plan = Plan(_read_edits(source), recipe, model or recipe.model)
    if dry_run:
        print(plan.preview())
        return
    folder = Path(out or recipe.output_dir or "booster")
    checkpoint = _checkpoint_to_resume(folder, plan.record, restart)
    trainer = build(plan, folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if state.global_step < state.max_steps:
        raise KeyboardInterrupt  # by SIGTERM: the checkpoint is kept, and the same command goes on
    if state.is_world_process_zero:
        print(f"trained {state.global_step:,} steps; use it: Booster.from_pretrained({str(folder)!r})", file=sys.stderr)


def _checkpoint_to_resume(folder: Path, record: AdapterRecord, restart: bool) -> str | None:
    """Where to go on in a folder that may hold an earlier training, which nothing may overwrite by accident."""
    checkpoint, before = last_checkpoint(folder), read_record(folder)
    is_done = Path(folder, ADAPTER_CONFIG).is_file()
    if restart or before is None or not (checkpoint or is_done):
        return None
    if differences := record.differences(before):
        listed = "; ".join(differences)
        raise ValueError(
            f"{folder} holds another training ({listed:.500}); give another --out, or --restart to overwrite it"
        )
    if before.metrics:
        raise ValueError(f"{folder} holds this booster, trained to its end; use it, or --restart to train it again")
    return checkpoint


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


if __name__ == "__main__":
    try:
        typer.run(train)
    except KeyboardInterrupt:
        sys.exit(130)
    except (MidbError, ValueError, OSError) as error:
        sys.exit(f"midb: {error}")
