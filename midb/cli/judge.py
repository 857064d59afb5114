"""`midb answer`, `midb judge` and `midb report`: answers to questions, verdicts on them, and what those are worth."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from midb import release
from midb.cli.asking import ask, count_by_language, finish
from midb.cli.data import SETS
from midb.cli.options import (
    Asked,
    Languages,
    OutOrNone,
    Picked,
    PriceOption,
    Rows,
    read_columns,
    read_list,
    read_names,
    read_price,
)
from midb.cli.terminal import note
from midb.errors import require_extra
from midb.files import check_out
from midb.judging.answers import Answering
from midb.judging.comparisons import Missing, Mode, as_comparisons
from midb.judging.judge import Judge


def answer(
    questions: Annotated[
        str, typer.Argument(help="mt-bench, alpaca-eval, or a file, folder or Hub dataset with questions.")
    ],
    rows: Picked,
    asked: Asked,
    out: OutOrNone = None,
    files: Annotated[
        str | None,
        typer.Option(
            help="A local copy of the files of mt-bench or alpaca-eval.", show_default="the published repository"
        ),
    ] = None,
    languages: Languages = None,
) -> None:
    """Answer questions, turn after turn; run the same command again to ask only for what failed."""
    asked.check(out)
    sources = [questions]
    if out is not None:
        check_out(out, sources=[] if questions in SETS else sources, journal=asked.place(questions))
    if questions in SETS:
        if rows.config or rows.split or rows.stream:
            raise typer.BadParameter(
                f"{questions} has no splits and configurations; choose with --languages and --limit"
            )
        dataset = rows.first(SETS[questions](files or release.UPSTREAM, read_list(languages)))
    else:
        if files or languages:
            raise typer.BadParameter(f"--files and --languages are for {' and '.join(SETS)}; leave them out")
        dataset = rows.read(questions)
    task = Answering(generator=asked.silent, columns=read_columns(rows.columns), price=read_price(asked.price))
    counts, answers = ask(task, dataset, asked, asked.resolved(), sources, out, rows.config)
    if answers is not None:
        count_by_language(answers, "answer_status", ("answered", "truncated", "empty", "failed", "not_run"))
    finish(counts, asked, out, "(answer_error says why)")


def judge(
    source_a: Annotated[
        str, typer.Argument(metavar="A", help="Answers of one system, one version of a training set, or edits alone.")
    ],
    rows: Rows,
    asked: Asked,
    source_b: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="The other system's or version; left out, edits are judged against their raw side."
        ),
    ] = None,
    out: OutOrNone = None,
    on: Annotated[str, typer.Option(help="The column that names a question, in both.")] = "id",
    mode: Annotated[Mode, typer.Option(help="Two answers to a question, or two versions of a training row.")] = "auto",
    missing: Annotated[
        Missing, typer.Option(help="A row that one side lacks: no verdict, an error, or a point lost.")
    ] = "keep",
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Half the calls, but the judge's preference for a place stays in.")
    ] = False,
    labels: Annotated[
        Literal["published", "random"],
        typer.Option(help="'random' gives each call verdict words that no answer can know."),
    ] = "published",
    name_language: Annotated[
        bool, typer.Option("--name-language", help="Name the language an answer should be in.")
    ] = False,
    controls: Annotated[int, typer.Option(min=0, help="Comparisons of each kind whose outcome is known.")] = 8,
) -> None:
    """Judge A against B in both orders, write the verdicts, and say what they are worth."""
    from midb.judging import summarize

    for library in ("scipy", "statsmodels"):  # the report at the end needs them: say so before anything is paid
        require_extra(library, "judge")
    asked.check(out)
    sources = [source for source in (source_a, source_b) if source]
    if out is not None:
        check_out(out, sources=sources, journal=asked.place(source_a))
    price = read_price(asked.price)
    task = Judge(
        generator=asked.silent, sampling=asked.sampling, swap=not one_order, labels=labels, controls=controls,
        price=price, name_language=name_language,
    )  # fmt: skip
    side_a, side_b = rows.read_one(source_a), rows.read_one(source_b) if source_b else None
    joined = as_comparisons(side_a, side_b, on=on, mode=mode, missing=missing, controls=controls, seed=task.seed)
    counts, verdicts = ask(task, joined, asked, asked.resolved(), sources, out, rows.config)
    counts["failed"] = sum(map(bool, verdicts["error"]))  # of either order
    if not asked.shard:
        names = Path(source_a).stem, Path(source_b).stem if source_b else "raw"
        print(summarize(verdicts, names=names, price=price and price[:2]))
        note(f"the whole report: midb report {out}")
    finish(counts, asked, out, "(the column error says why)")


def report(
    verdicts: Annotated[str, typer.Argument(help="What `midb judge` wrote: a file, a folder, or a Hub dataset.")],
    rows: Rows,
    out: Annotated[Path | None, typer.Option(help="A .md or .json file.", show_default="print Markdown")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file for the picture.")] = None,
    names: Annotated[str, typer.Option(help="What the two sides are called: boosted,raw.")] = "A,B",
    by: Annotated[str, typer.Option(help="Columns to tell apart besides: language,category.")] = "language",
    rule: Annotated[
        Literal["conservative", "average", "decisive"],
        typer.Option(help="How two orders that disagree become one verdict."),
    ] = "conservative",
    price: PriceOption = None,
) -> None:
    """Say what stored verdicts are worth: rates with intervals, the judge's health, cost; calls nothing."""
    from midb.judging import summarize

    sides = read_names(names)
    if out is not None and out.suffix not in (".md", ".json"):
        raise typer.BadParameter(f"--out {out}: a report is a .md or .json file")
    if plot is not None and plot.suffix != ".png":
        raise typer.BadParameter(f"--plot {plot}: a picture is a .png file")
    for path in filter(None, (out, plot)):
        if not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}; make it first")
    paid = read_price(price)
    made = summarize(rows.read_one(verdicts), by=tuple(by.split(",")), names=sides, rule=rule, price=paid and paid[:2])
    if out and out.suffix == ".json":
        text = json.dumps(made.to_dict(), ensure_ascii=False, indent=1)
    else:
        text = made.to_markdown()
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for path in filter(None, (out, made.plot(plot) if plot else None)):
        note(f"written to {path}")
