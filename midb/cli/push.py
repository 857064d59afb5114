"""`midb push dataset`, `adapter`, `eval-set` and `metric`, each with `--dry-run`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from midb import release
from midb.cli.data import SETS
from midb.cli.options import Rows, read_names
from midb.files import read_dataset

RepoId = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where it goes; made where it is missing.")]
SourceDataset = Annotated[
    list[str] | None, typer.Option(help="Hub id of what the raw rows were taken from; may be given again.")
]


@dataclass(frozen=True)
class Sent:
    """How a commit is made; the fields are the arguments of every `push_*`."""

    revision: Annotated[str | None, typer.Option(help="A branch, made where it is missing.")] = None
    private: Annotated[
        bool | None, typer.Option("--private", help="Make the repository private, if it is new.", show_default=False)
    ] = None
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it all as one pull request.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, the files, and what they would replace; send nothing.")
    ] = False


@dataclass(frozen=True)
class Carded(Sent):
    """The same, with a card."""

    license: Annotated[
        str | None,
        typer.Option(
            help="An identifier of the Hub's list, such as apache-2.0; without it the one that the source states, if any."
        ),
    ] = None
    template: Annotated[Path | None, typer.Option(help="Your own Jinja file for the card.")] = None


@dataclass(frozen=True)
class Judged:
    """Verdicts whose figures go into the card."""

    verdicts: Annotated[
        str | None, typer.Option(help="What `midb judge` wrote of it: its figures go into the card.")
    ] = None
    names: Annotated[str, typer.Option(help="What the two sides of the verdicts are called.")] = "boosted,raw"

    def report(self) -> Any:
        """The report of the verdicts, if there are any."""
        from midb.judging.report import summarize

        sides = read_names(self.names)
        return None if self.verdicts is None else summarize(read_dataset(self.verdicts), names=sides)


def dataset(
    source: Annotated[str, typer.Argument(help="Edits: a file, a folder, or a Hub dataset.")],
    repo_id: RepoId,
    rows: Rows,
    sent: Carded,
    judged: Judged,
    source_dataset: SourceDataset = None,
    language: Annotated[str | None, typer.Option(help="The language of rows that do not say one.")] = None,
) -> None:
    """Publish edits: one configuration per language and `all`, a card made of the rows, and a picture."""
    from midb.hub import push_dataset

    how = {"source_datasets": source_dataset, "report": judged.report(), "language": language, **asdict(sent)}
    print(push_dataset(rows.read(source), repo_id, **how))


def eval_set(
    source: Annotated[
        str, typer.Argument(help="mt-bench, alpaca-eval, or a file, folder or Hub dataset of that shape.")
    ],
    repo_id: RepoId,
    sent: Carded,
    files: Annotated[
        str, typer.Option(help="A local copy of the published files; else they are downloaded.")
    ] = release.UPSTREAM,
    source_dataset: SourceDataset = None,
) -> None:
    """Publish an evaluation set in all its languages."""
    from midb.hub import push_eval_set

    questions = SETS[source](files) if source in SETS else read_dataset(source)
    print(push_eval_set(questions, repo_id, source_datasets=source_dataset, **asdict(sent)))


def adapter(
    folder: Annotated[Path, typer.Argument(help="What a training wrote.")],
    repo_id: RepoId,
    sent: Carded,
    judged: Judged,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base model, where the adapter was trained on a local folder.")
    ] = None,
    trained_on: Annotated[
        list[str] | None, typer.Option(help="Hub id of a dataset that it was trained on; may be given again.")
    ] = None,
    judged_on: Annotated[str | None, typer.Option(help="Hub id of the dataset that was judged.")] = None,
) -> None:
    """Publish a trained booster."""
    from midb.hub import push_adapter

    how = {"base_model": base_model, "datasets": trained_on, "report": judged.report(), "judged_on": judged_on}
    print(push_adapter(folder, repo_id, **how, **asdict(sent)))


def metric(
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/METRIC", help="Its last part is pairwise_judge or judge_agreement.")
    ],
    sent: Sent,
) -> None:
    """Publish one of midb's metrics as a Space."""
    from midb.hub import push_metric

    print(push_metric(repo_id, **asdict(sent)))
