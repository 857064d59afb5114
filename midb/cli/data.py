"""`midb filter` and `midb data`: the edits that changed the most, the published ones, and the published questions."""

from typing import Annotated

import typer

from midb import release
from midb.cli.options import Columns, Languages, Out, Rows, Source, read_columns, read_list
from midb.cli.terminal import note
from midb.distance import filter_by_edit_distance
from midb.errors import ColumnError
from midb.files import check_out, write_dataset
from midb.schema import as_edits

SETS = {"mt-bench": release.load_mt_bench, "alpaca-eval": release.load_alpaca_eval}


def filter_(
    source: Source,
    rows: Rows,
    k: Annotated[
        str, typer.Option("-k", "--k", help="How many edits to keep per language: a count (720) or a share (0.3).")
    ],
    out: Out,
    columns: Columns = None,
    by: Annotated[str, typer.Option(help="The column that tells languages apart.")] = "language",
    pooled: Annotated[
        bool, typer.Option("--pooled", help="Rank all languages together; favours the wordy ones.")
    ] = False,
) -> None:
    """Keep the edits that changed the most, by edit distance."""
    check_out(out, sources=[source])
    try:
        keep: int | float = int(k) if k.isdigit() else float(k)
    except ValueError:
        raise typer.BadParameter(
            f"-k {k!r} is not a number; give a count such as 720, or a share such as 0.3"
        ) from None
    edits = as_edits(rows.read(source), columns=read_columns(columns) or None)
    parts = edits.values() if isinstance(edits, dict) else [edits]
    if not pooled and any(by not in part.column_names for part in parts):
        raise ColumnError(
            f"there is no column {by!r}; name the one that tells languages apart with --by, or use --pooled"
        )
    kept = filter_by_edit_distance(edits, keep, by=None if pooled else by)
    check_out(out, kept, sources=[source])
    write_dataset(kept, out, rows.config)
    left, all_rows = (sum(map(len, each.values())) if isinstance(each, dict) else len(each) for each in (kept, edits))
    note(f"kept {left:,} of {all_rows:,} edits, written to {out}")


def data(
    out: Out,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A local copy of the published repository, or a URL.", show_default="the published repository"
        ),
    ] = None,
    languages: Languages = None,
    coachlm: Annotated[bool, typer.Option("--coachlm", help="CoachLM's English edits instead.")] = False,
) -> None:
    """Write the published expert edits as one clean dataset, saying row by row what was mended."""
    check_out(out, sources=[source] if source else [])
    wanted = read_list(languages)
    if coachlm and wanted:
        raise typer.BadParameter("--coachlm is English alone; leave out --languages")
    where = source or release.UPSTREAM
    edits = release.load_coachlm(where) if coachlm else release.load_training(where, wanted)
    check_out(out, edits)
    write_dataset(edits, out)
    mended = sum(bool(repair) for repair in edits["repair"])
    note(f"{len(edits):,} edits, {mended:,} with a repair (column 'repair'), written to {out}")
