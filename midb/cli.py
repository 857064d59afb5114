"""The command line: thin commands over the public API, errors without tracebacks, exit codes for scripts.

0 done · 1 stopped by an error · 2 wrong usage · 3 done, but rows failed: run it again · 4 the engine gave up: run it
again, what was answered is in the journal · 130 interrupted.
"""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from midb.booster import Booster
from midb.distance import filter_by_edit_distance
from midb.errors import ColumnError, GenerationError, MidbError, require_extra
from midb.files import HUB, check_out, read_dataset, write_dataset
from midb.generators import (
    FunctionGenerator,
    Generator,
    Journal,
    OpenAIGenerator,
    Sampling,
    TransformersGenerator,
    VLLMGenerator,
)
from midb.generators.transformers import Dtype
from midb.generators.vllm import is_preferred
from midb.generators.weights import resolve_adapter
from midb.hub.commands import COMMANDS as PUSH
from midb.hub.commands import NO_HUB, asked_as_trained
from midb.judging.comparisons import Missing, Mode
from midb.prompts import PROMPT
from midb.schema import as_edits, as_pairs
from midb.train.__main__ import train

app = typer.Typer(
    help="Boost multilingual instruction data: rewrite the bad rows of a dataset with a tuned LLM.",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 3 done but rows failed, 4 the engine gave up, 130 interrupted.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
)  # fmt: skip
_KEY = "OPENAI_API_KEY"
_NOBODY = FunctionGenerator(lambda messages: "", name="nobody")  # for a booster that only shows what it would send

Source = Annotated[
    str,
    typer.Argument(help="A json, jsonl, csv or parquet file, a folder saved to disk, or a Hub dataset (owner/name)."),
]
Config = Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")]
Split = Annotated[str | None, typer.Option(help="Split to take; all of them when left out.")]
Columns = Annotated[
    str | None, typer.Option(help="Which column is which: instruction=question,response=answer,language=lang.")
]
Out = Annotated[str, typer.Option(help="A json, jsonl, csv or parquet file, a folder, or hf://datasets/owner/name.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first rows.")]
Fields = Annotated[Literal["all", "response"], typer.Option(help="'response' keeps instruction and input as they are.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server, such as http://localhost:8000/v1; the key is read from the environment."
    ),
]
ApiKeyEnv = Annotated[str, typer.Option(help="The environment variable that holds the key.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds a request may take, with --base-url.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests in flight, with --base-url.")]
Engine = Annotated[
    Literal["vllm", "transformers"] | None,
    typer.Option(
        help="What runs the model on this machine, without --base-url.",
        show_default="vllm where it is installed and sees a GPU",
    ),
]
Precision = Annotated[
    Dtype | None,
    typer.Option(help="Precision of a model on this machine.", show_default="bfloat16 on a GPU, else float32"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per forward pass of transformers.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="New tokens per row at most.")]
JournalPath = Annotated[Path | None, typer.Option(help="Where completions are kept.", show_default="OUT.journal")]
NoJournal = Annotated[bool, typer.Option("--no-journal", help="Keep nothing: a crash or rerun pays again.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be sent, one JSON line per row, and call nothing.")
]
Prompt = Annotated[
    str, typer.Option(help="What the model is told before the pair.", show_default="the published prompt")
]


def _plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        from datasets.exceptions import DatasetsError
        from huggingface_hub.utils import httpx

        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            _stop("interrupted", 130)
        except GenerationError as error:
            _stop(str(error), 4)
        except BrokenPipeError:  # `midb ... | head`: the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except ColumnError as error:
            hint = (
                "\nOn the command line: --columns instruction=question,response=answer"
                if "columns=" in str(error) and "columns" in options
                else ""
            )
            _stop(f"{error}{hint}", 1)
        except httpx.TransportError as error:  # of the Hub: a generator tells its own
            _stop(NO_HUB.format(error), 1)
        except (MidbError, DatasetsError, ValueError, OSError) as error:
            _stop(str(error), 1)

    return wrapped


def _print_version(asked: bool) -> None:
    if asked:
        print(version("midb"))
        raise typer.Exit


@app.callback()
def _midb(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before the command."""


@app.command()
@_plain_errors
def boost(
    source: Source,
    model: Annotated[
        str, typer.Option(help="A model or adapter (folder or Hub id); with --base-url, the name the server knows.")
    ],
    out: Annotated[
        str | None, typer.Option(help="A json, jsonl, csv or parquet file, a folder, or hf://datasets/owner/name.")
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = _KEY,
    config: Config = None,
    split: Split = None,
    columns: Columns = None,
    language: Annotated[str | None, typer.Option(help="Language of a dataset that has no language column.")] = None,
    fields: Fields = "all",
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the model is told before the pair.", show_default="as it was trained, else the published prompt"
        ),
    ] = None,
    limit: Limit = None,
    timeout: Timeout = 600,
    concurrency: Concurrency = 64,
    engine: Engine = None,
    dtype: Precision = None,
    batch_size: BatchSize = 8,
    max_tokens: MaxTokens = 2048,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    journal: JournalPath = None,
    no_journal: NoJournal = False,
    dry_run: DryRun = False,
) -> None:
    """Boost a dataset; run the same command again to ask only for what failed."""
    if out is None and not dry_run:
        raise typer.BadParameter("give --out, where the result goes")
    if out is not None:
        check_out(out, sources=[source])
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    pairs = _first(_named(read_dataset(source, config, split), columns), limit)
    if out is not None:
        check_out(out, pairs)
    base, adapter = (model, None) if base_url or dry_run else resolve_adapter(model)
    if dry_run and not base_url and Path(model).is_dir():  # a dry run asks no Hub what a name stands for
        adapter = model
    booster = Booster(generator=_NOBODY, fields=fields, language=language, **asked_as_trained(adapter, prompt))
    if dry_run:
        for ask in booster.requests(pairs):
            print(json.dumps({"model": model, "messages": ask.messages, **asdict(sampling)}, ensure_ascii=False))
        return
    generator: Generator
    if base_url is not None:
        key = _read_key(api_key_env)
        generator = OpenAIGenerator(
            model, base_url=base_url, api_key=key, concurrency=concurrency, timeout=timeout, sampling=sampling
        )
    else:
        generator = _local(base, adapter, engine, dtype, batch_size, sampling)
    if not no_journal and (kept := journal or (_journal_of(out) if out else None)):
        generator = Journal(generator, kept)
    edits = replace(booster, generator=generator).map(pairs)
    splits = _splits(edits)
    write_dataset(edits, str(out), config)
    _report(splits)
    _console().print(f"written to {plain(str(out))}")
    if failed := sum(each["boost_status"][:].count("failed") for each in splits):
        _stop(
            f"{failed:,} rows failed and keep their raw text (boost_reason says why); the same command asks again for those alone",
            3,
        )


@app.command()
@_plain_errors
def preview(
    source: Source,
    config: Config = None,
    split: Split = None,
    columns: Columns = None,
    fields: Fields = "all",
    prompt: Prompt = PROMPT,
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows.")] = 3,
) -> None:
    """Show the exact messages of the first rows; calls nothing."""
    pairs = _named(read_dataset(source, config, split), columns)
    booster = Booster(generator=_NOBODY, fields=fields, prompt=prompt)
    for row, messages in enumerate(booster.preview(pairs, n)):
        for message in messages:
            _console(stderr=False).rule(f"row {row} · {message['role']}")
            print(_visible(message["content"]))


@app.command("filter")
@_plain_errors
def filter_(
    source: Source,
    k: Annotated[
        str, typer.Option("-k", "--k", help="How many edits to keep per language: a count (720) or a share (0.3).")
    ],
    out: Out,
    config: Config = None,
    split: Split = None,
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
    edits = as_edits(read_dataset(source, config, split), columns=_columns(columns) if columns else None)
    check_out(out, edits)
    if not pooled and any(by not in part.column_names for part in _splits(edits)):
        raise ColumnError(
            f"there is no column {by!r}; name the one that tells languages apart with --by, or use --pooled"
        )
    kept = filter_by_edit_distance(edits, keep, by=None if pooled else by)
    write_dataset(kept, out, config)
    counted = [sum(map(len, _splits(each))) for each in (kept, edits)]
    _console().print(f"kept {counted[0]:,} of {counted[1]:,} edits, written to {plain(out)}")


@app.command()
@_plain_errors
def data(
    out: Out,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A local copy of the published repository, or a URL.", show_default="the published repository"
        ),
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="Such as fr,ja or French,Japanese; all that are there when left out.")
    ] = None,
    coachlm: Annotated[bool, typer.Option("--coachlm", help="CoachLM's English edits instead.")] = False,
) -> None:
    """Write the published expert edits as one clean dataset, saying row by row what was mended."""
    from midb import release

    check_out(out, sources=[source or ""])
    wanted = [name.strip() for name in languages.split(",")] if languages else None
    if coachlm:
        edits = release.load_coachlm(source) if source else release.load_coachlm()
    else:
        edits = release.load_training(source, wanted) if source else release.load_training(languages=wanted)
    write_dataset(edits, out)
    mended = sum(bool(repair) for repair in edits["repair"])
    _console().print(f"{len(edits):,} edits, {mended:,} with a repair (column 'repair'), written to {plain(out)}")


@app.command()
@_plain_errors
def judge(
    source_a: Annotated[
        str, typer.Argument(metavar="A", help="Answers of one system, one version of a training set, or edits alone.")
    ],
    model: Annotated[
        str, typer.Option(help="Who judges: a model (folder or Hub id); with --base-url, the name the server knows.")
    ],
    out: Out,
    source_b: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="The other system's or version; left out, edits are judged against their raw side."
        ),
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = _KEY,
    config: Config = None,
    split: Split = None,
    on: Annotated[str, typer.Option(help="The column that names a question, in both.")] = "id",
    mode: Annotated[Mode, typer.Option(help="Two answers to a question, or two versions of a training row.")] = "auto",
    missing: Annotated[
        Missing, typer.Option(help="A row that one side lacks: no verdict, an error, or a point lost.")
    ] = "keep",
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Half the calls, and the judge's taste for a place.")
    ] = False,
    labels: Annotated[
        Literal["published", "random"],
        typer.Option(help="'random' gives each call verdict words that no answer can know."),
    ] = "published",
    name_language: Annotated[
        bool, typer.Option("--name-language", help="Tell the judge in which language an answer should be.")
    ] = False,
    controls: Annotated[int, typer.Option(min=0, help="Comparisons of each kind whose outcome is known.")] = 8,
    price: Annotated[
        str | None,
        typer.Option(help="Per million prompt,completion tokens, such as 0.15,0.60; the estimate says what it makes."),
    ] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Stop before more is spent; needs --price.")] = None,
    timeout: Timeout = 600,
    concurrency: Concurrency = 64,
    engine: Engine = None,
    dtype: Precision = None,
    batch_size: BatchSize = 8,
    max_tokens: MaxTokens = 2048,
    journal: JournalPath = None,
    no_journal: NoJournal = False,
    dry_run: DryRun = False,
) -> None:
    """Judge A against B in both orders, write the verdicts, and say what they are worth."""
    from midb.judging import Judge, summarize

    for library in ("scipy", "statsmodels"):  # the report at the end needs them: say so before anything is paid for
        require_extra(library, "judge")
    if Path(out).suffix == ".csv":
        raise typer.BadParameter(f"--out {out}: csv cannot hold the controls of verdict rows; use .jsonl or .parquet")
    if max_cost is not None and price is None:
        raise typer.BadParameter(
            "--max-cost needs --price, such as 0.15,0.60 for a million prompt and completion tokens"
        )
    check_out(out, sources=[source_a])
    if source_b:
        check_out(out, sources=[source_b])
    sampling = Sampling(max_tokens=max_tokens)
    asker = Judge(
        generator=_NOBODY, sampling=sampling, swap=not one_order, labels=labels, controls=controls, price=_price(price),
        name_language=name_language,
    )  # fmt: skip
    side_a = _only_split(read_dataset(source_a, config, split))
    side_b = _only_split(read_dataset(source_b, config, split)) if source_b else None
    if dry_run:
        for messages in asker.preview(side_a, side_b, None, on=on, mode=mode, missing=missing):
            print(json.dumps({"model": model, "messages": messages, **asdict(sampling)}, ensure_ascii=False))
        _console().print(plain(str(asker.estimate(side_a, side_b, on=on, mode=mode, missing=missing))))
        return
    generator: Generator
    if base_url is not None:
        generator = OpenAIGenerator(
            model, base_url=base_url, api_key=_read_key(api_key_env), concurrency=concurrency, timeout=timeout
        )
    else:
        base, adapter = resolve_adapter(model)
        generator = _local(base, adapter, engine, dtype, batch_size, Sampling())
    if not no_journal:
        generator = Journal(generator, journal or _journal_of(out))
    _console().print(plain(str(asker.estimate(side_a, side_b, on=on, mode=mode, missing=missing))))
    verdicts = replace(asker, generator=generator).compare(
        side_a, side_b, on=on, mode=mode, missing=missing, max_cost=max_cost
    )
    check_out(out, verdicts)
    write_dataset(verdicts, out, config)
    print(
        summarize(verdicts, names=(Path(source_a).stem, Path(source_b).stem if source_b else "raw"), price=asker.price)
    )
    _console().print(f"verdicts written to {plain(out)}; the whole report: midb report {plain(out)}")
    not_run = sum(status == "not_run" for status in verdicts["status_ab"])
    failed = sum(map(bool, verdicts["error"]))
    if failed or not_run:
        _stop(
            f"{failed:,} rows failed and {not_run:,} were not run; the same command asks for what is missing alone", 3
        )


@app.command()
@_plain_errors
def report(
    verdicts: Annotated[str, typer.Argument(help="What `midb judge` wrote: a file, a folder, or a Hub dataset.")],
    out: Annotated[Path | None, typer.Option(help="A .md or .json file.", show_default="print Markdown")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file for the picture.")] = None,
    names: Annotated[str, typer.Option(help="What the two sides are called: boosted,raw.")] = "A,B",
    by: Annotated[str, typer.Option(help="Columns to tell apart besides: language,category.")] = "language",
    rule: Annotated[
        Literal["conservative", "average", "decisive"],
        typer.Option(help="How two orders that disagree become one verdict."),
    ] = "conservative",
    price: Annotated[str | None, typer.Option(help="Per million prompt,completion tokens, such as 0.15,0.60.")] = None,
    config: Config = None,
    split: Split = None,
) -> None:
    """Say what stored verdicts are worth: rates with intervals, the judge's health, cost; calls nothing."""
    from midb.judging import summarize

    sides = names.split(",")
    if len(sides) != 2:
        raise typer.BadParameter(f"--names {names!r} is not two names; write boosted,raw")
    if out is not None and out.suffix not in (".md", ".json"):
        raise typer.BadParameter(f"--out {out}: a report is a .md or .json file")
    if plot is not None and plot.suffix != ".png":
        raise typer.BadParameter(f"--plot {plot}: a picture is a .png file")
    for path in filter(None, (out, plot)):
        if not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}; make it first")
    rows = _only_split(read_dataset(verdicts, config, split))
    made = summarize(rows, by=tuple(by.split(",")), names=(sides[0], sides[1]), rule=rule, price=_price(price))
    text = (
        json.dumps(made.to_dict(), ensure_ascii=False, indent=1)
        if out and out.suffix == ".json"
        else made.to_markdown()
    )
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for path in filter(None, (out, made.plot(plot) if plot else None)):
        _console().print(f"written to {plain(str(path))}")


@app.command(context_settings={"ignore_unknown_options": True})
@_plain_errors
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
    _console().print(plain(f"and, when it is up: {served.client}"))


app.command()(_plain_errors(train))
push = typer.Typer(help="Publish to the Hub, with a card that tells the truth.", no_args_is_help=True)
for _name, _command in PUSH.items():
    push.command(_name)(_plain_errors(_command))
app.add_typer(push, name="push")


def _local(
    model: str, adapter: str | None, engine: str | None, dtype: Dtype | None, batch_size: int, sampling: Sampling
) -> Generator:
    """The model on this machine, in the engine that was named or else fits."""
    if engine == "vllm" or (engine is None and is_preferred()):
        return VLLMGenerator(model, adapter=adapter, dtype=dtype, sampling=sampling)
    return TransformersGenerator(model, adapter=adapter, dtype=dtype, batch_size=batch_size, sampling=sampling)


def _read_key(api_key_env: str) -> str | None:
    key = os.environ.get(api_key_env)
    if key is None and api_key_env != _KEY:
        raise typer.BadParameter(f"--api-key-env {api_key_env}: there is no such environment variable")
    return key


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        prompt, completion = map(float, text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--price {text!r} is not two numbers; write 0.15,0.60 for the price of a million prompt and completion tokens"
        ) from None
    return prompt, completion


def _only_split(dataset: Any) -> Any:
    return next(iter(dataset.values())) if isinstance(dataset, dict) and len(dataset) == 1 else dataset


def _splits(dataset: Any) -> list[Any]:
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def _first(dataset: Any, limit: int | None) -> Any:
    if limit is None:
        return dataset
    if isinstance(dataset, dict):
        return type(dataset)({name: split.take(min(limit, len(split))) for name, split in dataset.items()})
    return dataset.take(min(limit, len(dataset)))


def _named(dataset: Any, columns: str | None) -> Any:
    return as_pairs(dataset, columns=_columns(columns)) if columns else dataset  # the booster finds known shapes itself


def _columns(text: str) -> dict[str, str]:
    named = dict(each.split("=", 1) for each in text.split(",") if "=" in each)
    if len(named) != len(text.split(",")):
        raise typer.BadParameter(
            f"--columns {text!r} is not a list of ours=theirs; write instruction=question,response=answer"
        )
    return {ours.strip(): theirs.strip() for ours, theirs in named.items()}


def _journal_of(out: str) -> Path:
    return (
        Path(out.removeprefix(HUB).replace("/", "-") + ".journal")
        if out.startswith(HUB)
        else Path(out.rstrip("/") + ".journal")
    )


def _report(splits: list[Any]) -> None:
    """A table of what became of the rows, by language."""
    table = Table(title="rows by language", title_justify="left")
    for name in ("language", "boosted", "unchanged", "rejected", "failed"):
        table.add_column(name, justify="left" if name == "language" else "right")
    counts: dict[str, dict[str, int]] = {}
    for edits in splits:
        languages = edits["language"] if "language" in edits.column_names else ["(not said)"] * len(edits)
        for language, status in zip(languages, edits["boost_status"], strict=True):
            row = counts.setdefault(str(language), {})
            row[status] = row.get(status, 0) + 1
    for language, row in sorted(counts.items()):
        table.add_row(
            plain(language), *(f"{row.get(name, 0):,}" for name in ("boosted", "unchanged", "rejected", "failed"))
        )
    _console().print(table)


def _visible(text: str) -> str:
    """Text of a dataset with its control characters written out, so that it cannot command a terminal."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)


def _console(*, stderr: bool = True) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def _stop(message: str, code: int) -> None:
    print(f"midb: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
