"""`midb boost` and `midb preview`."""

from typing import Annotated, Any, Literal

import typer

from midb.booster import Booster
from midb.cli.asking import ask, count_by_language, finish
from midb.cli.options import Asked, OutOrNone, Picked, Source, read_columns, read_price
from midb.cli.terminal import show_message
from midb.files import check_out
from midb.generators import FunctionGenerator
from midb.generators.weights import adapter_record
from midb.prompts import PROMPT
from midb.schema import as_pairs

Fields = Annotated[Literal["all", "response"], typer.Option(help="'response' keeps instruction and input as they are.")]
_PROMPT = "What the model is told before the pair."


def boost(
    source: Source,
    rows: Picked,
    asked: Asked,
    out: OutOrNone = None,
    language: Annotated[str | None, typer.Option(help="Language of a dataset that has no language column.")] = None,
    fields: Fields = "all",
    prompt: Annotated[
        str | None, typer.Option(help=_PROMPT, show_default="as it was trained, else the published prompt")
    ] = None,
) -> None:
    """Boost a dataset; run the same command again to ask only for what failed."""
    asked.check(out)
    if out is not None:
        check_out(out, sources=[source], journal=asked.place(source))
    model = asked.resolved()
    record = adapter_record(model[1]) if model[1] else None
    trained: dict[str, Any] = {"prompt": record.prompt, "tags": record.tags} if record else {}
    booster = Booster(
        generator=asked.silent, fields=fields, language=language, price=read_price(asked.price),
        **trained | ({} if prompt is None else {"prompt": prompt}),
    )  # fmt: skip
    counts, edits = ask(booster, _named(rows.read(source), rows.columns), asked, model, [source], out, rows.config)
    if edits is not None:
        count_by_language(edits, "boost_status", ("boosted", "unchanged", "rejected", "failed", "not_run"))
    finish(counts, asked, out, "and keep their raw text (boost_reason says why)")


def preview(
    source: Source,
    rows: Picked,
    fields: Fields = "all",
    prompt: Annotated[str, typer.Option(help=_PROMPT, show_default="the published prompt")] = PROMPT,
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows.")] = 3,
) -> None:
    """Show the exact messages of the first rows; calls nothing."""
    booster = Booster(generator=FunctionGenerator(lambda messages: ""), fields=fields, prompt=prompt)
    for row, messages in enumerate(booster.preview(_named(rows.read(source), rows.columns), n)):
        for message in messages:
            show_message(f"row {row} · {message['role']}", message["content"])


def _named(dataset: Any, columns: str | None) -> Any:
    return as_pairs(dataset, columns=read_columns(columns)) if columns else dataset  # a booster knows the usual shapes
