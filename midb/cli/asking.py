"""How a command runs a task: check, show or estimate, ask, write, and say what is left. The same for every task."""

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import typer

from midb.cli.options import Asked, read_price
from midb.cli.terminal import note, show_counts, stop
from midb.files import check_out, write_dataset
from midb.run import Run, sampling_of
from midb.schema import column_names


def ask(
    task: Any,
    dataset: Any,
    asked: Asked,
    model: tuple[str, str | None],
    sources: list[str],
    out: str | None,
    config: str | None,
) -> tuple[Counter[str], Any]:
    """Run a task on the rows and write what they become.

    Args:
        task: The task, with a generator that answers nothing.
        dataset: The rows.
        asked: Who answers.
        model: The model and adapter.
        sources: Where the rows come from; the first names the journal.
        out: Where the result goes.
        config: The configuration it gets on the Hub.

    Returns:
        How many rows have each status, and the rows, None of a stream. A dry run ends the command.
    """
    dataset = asked.part(dataset)
    splits = dataset if isinstance(dataset, dict) else {"": dataset}
    is_stream = not all(hasattr(split, "__len__") for split in splits.values())
    shown = {name: _without(task.prepare(split), task.drops) for name, split in splits.items()}
    if out is not None:
        whole = shown if isinstance(dataset, dict) else shown[""]
        check_out(out, whole, sources=sources, journal=asked.place(sources[0]), adds=task.adds())
    if asked.dry_run:
        for request in task.requests(dataset):
            sampling = asdict(sampling_of(task.generator, request))
            print(json.dumps({"model": asked.model, "messages": request.messages, **sampling}, ensure_ascii=False))
        note("a stream has no known length, and so no estimate" if is_stream else task.estimate(dataset))
        raise typer.Exit
    task = replace(task, generator=asked.remembering(asked.generator(*model), sources[0]))
    if is_stream:
        return _stream(task, dataset, asked, out, config), None
    note(task.estimate(dataset))
    result = task.map(dataset, max_cost=asked.max_cost)
    if out is not None:
        write_dataset(result, out, config)
    counts: Counter[str] = Counter()
    for split in result.values() if isinstance(result, dict) else [result]:
        counts.update(split[task.counted[0]][:])
    return counts, result


def count_by_language(result: Any, column: str, statuses: tuple[str, ...]) -> None:
    """Print a table of what became of the rows."""
    counts: dict[str, dict[str, int]] = {}
    for split in result.values() if isinstance(result, dict) else [result]:
        languages = split["language"] if "language" in split.column_names else ["(not said)"] * len(split)
        for language, status in zip(languages, split[column], strict=True):
            row = counts.setdefault(str(language), {})
            row[status] = row.get(status, 0) + 1
    seen = {status for row in counts.values() for status in row}
    show_counts(counts, tuple(name for name in statuses if name != "not_run" or name in seen))


def finish(counts: Counter[str], asked: Asked, out: str | None, why: str) -> None:
    """Say where the result is, and end with exit code 3 where a rerun has something to do.

    Args:
        counts: How many rows have each status.
        asked: Who answered.
        out: Where the result went.
        why: What became of failed rows.
    """
    if out is not None:
        note(f"written to {out}")
    if asked.shard:
        note(
            f"the answers of part {asked.shard} are in the journal; the same command without --shard puts the rows together"
        )
    left = []
    if counts["not_run"]:
        price = read_price(asked.price)
        budget = price.money(asked.max_cost or 0) if price else "0"
        left.append(
            f"the budget of {budget} ended the run: {counts['not_run']:,} of {counts.total():,} rows were not asked; the same "
            "command with a higher --max-cost goes on from here"
        )
    if counts["failed"]:
        left.append(f"{counts['failed']:,} rows failed {why}; the same command asks again for those alone")
    if left:
        stop("; ".join(left) + (", but for all rows, as --no-journal keeps no answer" if asked.no_journal else ""), 3)


def _stream(task: Any, dataset: Any, asked: Asked, out: str | None, config: str | None) -> Counter[str]:
    run = Run(task, asked.max_cost)
    splits = dataset if isinstance(dataset, dict) else {"": dataset}
    flowing = {name: run.over(task.prepare(split), False, {"batch_size": None}) for name, split in splits.items()}
    if out is None:  # a part of many: its answers are in the journal
        for split in flowing.values():
            for _ in split:
                pass
    else:
        write_dataset(type(dataset)(flowing) if isinstance(dataset, dict) else flowing[""], out, config)
    note(run.summary())
    counts: Counter[str] = Counter()
    for (status, _), count in run.outcomes.items():
        counts[status] += count
    return counts


def _without(split: Any, drops: tuple[str, ...]) -> Any:
    names = [name for name in drops if name in column_names(split)] if drops else []
    return split.remove_columns(names) if names else split
