"""`midb push dataset`, `adapter`, `eval-set` and `metric`, each with `--dry-run`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from midb import release
from midb.cli.data import SETS
from midb.cli.options import read_names
from midb.files import read_dataset

RepoId = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where it goes; made where it is missing.")]
License = Annotated[
    str | None,
    typer.Option(
        help="An identifier of the Hub's list, such as apache-2.0; without it the one that the source states, if any."
    ),
]
SourceDataset = Annotated[
    list[str] | None, typer.Option(help="Hub id of what the raw rows were taken from; may be given again.")
]
Template = Annotated[Path | None, typer.Option(help="Your own Jinja file for the card.")]
Revision = Annotated[str | None, typer.Option(help="A branch, made where it is missing.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Propose it all as one pull request.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the card, the files, and what they would replace; send nothing.")
]
Verdicts = Annotated[str | None, typer.Option(help="What `midb judge` wrote of it: its figures go into the card.")]
Names = Annotated[str, typer.Option(help="What the two sides of the verdicts are called.")]


def dataset(
    source: Annotated[str, typer.Argument(help="Edits: a file, a folder saved to disk, or a Hub dataset.")],
    repo_id: RepoId,
    license: License = None,
    source_dataset: SourceDataset = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    language: Annotated[str | None, typer.Option(help="The language of rows that do not say one.")] = None,
    verdicts: Verdicts = None,
    names: Names = "boosted,raw",
    template: Template = None,
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
) -> None:
    """Publish edits: one configuration per language and `all`, a card made of the rows, and a picture."""
    from midb.hub import push_dataset

    pushed = push_dataset(
        read_dataset(source, config), repo_id, license=license, source_datasets=source_dataset,
        report=_report(verdicts, names), language=language, template=template, revision=revision,
        private=private or None, create_pr=create_pr, dry_run=dry_run,
    )  # fmt: skip
    print(pushed)


def eval_set(
    source: Annotated[
        str, typer.Argument(help="mt-bench, alpaca-eval, or a file, folder or Hub dataset of that shape.")
    ],
    repo_id: RepoId,
    files: Annotated[
        str, typer.Option(help="A local copy of the published files; else they are downloaded.")
    ] = release.UPSTREAM,
    license: License = None,
    source_dataset: SourceDataset = None,
    template: Template = None,
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
) -> None:
    """Publish an evaluation set in all its languages."""
    from midb.hub import push_eval_set

    pushed = push_eval_set(
        SETS[source](files) if source in SETS else read_dataset(source), repo_id, license=license,
        source_datasets=source_dataset, template=template, revision=revision, private=private or None,
        create_pr=create_pr, dry_run=dry_run,
    )  # fmt: skip
    print(pushed)


def adapter(
    folder: Annotated[Path, typer.Argument(help="What a training wrote.")],
    repo_id: RepoId,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base model, where the adapter was trained on a local folder.")
    ] = None,
    license: License = None,
    trained_on: Annotated[
        list[str] | None, typer.Option(help="Hub id of a dataset that it was trained on; may be given again.")
    ] = None,
    verdicts: Verdicts = None,
    names: Names = "boosted,raw",
    judged_on: Annotated[str | None, typer.Option(help="Hub id of the dataset that was judged.")] = None,
    template: Template = None,
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a trained booster."""
    from midb.hub import push_adapter

    pushed = push_adapter(
        folder, repo_id, base_model=base_model, license=license, datasets=trained_on, report=_report(verdicts, names),
        judged_on=judged_on, template=template, revision=revision, private=private or None, create_pr=create_pr,
        dry_run=dry_run,
    )  # fmt: skip
    print(pushed)


def metric(
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/METRIC", help="Its last part is pairwise_judge or judge_agreement.")
    ],
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
) -> None:
    """Publish one of midb's metrics as a Space."""
    from midb.hub import push_metric

    print(push_metric(repo_id, revision=revision, private=private or None, create_pr=create_pr, dry_run=dry_run))


def _report(verdicts: str | None, names: str) -> Any:
    from midb.judging.report import summarize

    sides = read_names(names)
    return None if verdicts is None else summarize(read_dataset(verdicts), names=sides)
