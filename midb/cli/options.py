"""Options that several commands have, each declared once. A command takes a group of them as one dataclass."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from midb.cost import Price
from midb.files import HUB, read_dataset
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

_KEY = "OPENAI_API_KEY"
_rows, _who, _money, _memory = (
    functools.partial(typer.Option, rich_help_panel=title)
    for title in ("Rows", "Who answers", "Money", "Memory and parts")
)

Source = Annotated[
    str, typer.Argument(help="A json, jsonl, csv or parquet file, a folder, or a Hub dataset (owner/name).")
]
_OUT = "A json, jsonl, csv or parquet file, a folder, or hf://datasets/owner/name."
Out = Annotated[str, typer.Option(help=_OUT)]
OutOrNone = Annotated[str | None, typer.Option(help=_OUT, show_default="needed, but for --shard and --dry-run")]
Columns = Annotated[str | None, _rows(help="Which column is which: instruction=question,response=answer.")]
Languages = Annotated[
    str | None, typer.Option(help="Such as fr,ja or French,Japanese; all that are there when left out.")
]
PriceOption = Annotated[str | None, _money(help="Per million prompt,completion tokens: 0.15,0.60 or 0.15,0.60,USD.")]


@dataclass(frozen=True)
class Rows:
    """Which rows of a source."""

    config: Annotated[str | None, _rows(help="Configuration of a Hub dataset.")] = None
    split: Annotated[
        str | None,
        _rows(
            help="What to take: test, train[:20], train[10%:20%], train[:5]+test. A file is the split train.",
            show_default="all splits",
        ),
    ] = None

    def read(self, source: str) -> Any:
        """The rows."""
        return read_dataset(source, self.config, self.split)

    def read_one(self, source: str) -> Any:
        """The rows, where one split is needed."""
        dataset = self.read(source)
        if isinstance(dataset, dict):
            raise typer.BadParameter(f"{source} has the splits {', '.join(dataset)}; choose one with --split")
        return dataset


@dataclass(frozen=True)
class Picked(Rows):
    """Which rows of a source, and which of its columns; also of one that is larger than memory."""

    columns: Columns = None
    limit: Annotated[int | None, _rows(min=1, help="Only the first rows.")] = None
    stream: Annotated[
        bool,
        _rows(
            "--stream",
            help="For more rows than memory holds: read and write them one by one; with a folder as --out, into "
            "part-00000.parquet and so on.",
        ),
    ] = False

    def read(self, source: str) -> Any:
        """The rows, up to the limit."""
        return self.first(read_dataset(source, self.config, self.split, stream=self.stream))

    def first(self, dataset: Any) -> Any:
        """The rows up to the limit, of each split."""
        if self.limit is None:
            return dataset
        if isinstance(dataset, dict):
            return type(dataset)({name: self.first(split) for name, split in dataset.items()})
        return dataset.take(self.limit if self.stream else min(self.limit, len(dataset)))


@dataclass(frozen=True)
class Asked:
    """Who answers, what it may cost, and where answers are kept."""

    model: Annotated[
        str, _who(help="A model or adapter (folder or Hub id); with --base-url, the name the server knows.")
    ]
    base_url: Annotated[
        str | None,
        _who(
            help="An OpenAI-compatible server, such as http://localhost:8000/v1; the key is read from the environment."
        ),
    ] = None
    api_key_env: Annotated[str, _who(help="The environment variable that holds the key.")] = _KEY
    concurrency: Annotated[int, _who(min=1, help="Requests in flight, with --base-url.")] = 64
    timeout: Annotated[float, _who(min=1, help="Seconds a request may take, with --base-url.")] = 600
    engine: Annotated[
        Literal["vllm", "transformers"] | None,
        _who(
            help="What runs the model on this machine, without --base-url.",
            show_default="vllm where it is installed and sees a GPU",
        ),
    ] = None
    dtype: Annotated[
        Dtype | None,
        _who(help="Precision of a model on this machine.", show_default="bfloat16 on a GPU, else float32"),
    ] = None
    batch_size: Annotated[int, _who(min=1, help="Prompts per forward pass of transformers.")] = 8
    max_tokens: Annotated[int, _who(min=1, help="New tokens per answer at most.")] = 2048
    temperature: Annotated[float, _who(min=0, help="0 is greedy.")] = 0.0
    price: PriceOption = None
    max_cost: Annotated[
        float | None,
        _money(
            min=0,
            help="Stop before more is spent, in the currency of --price; rows left out are not_run, and the same command "
            "with more goes on from there.",
        ),
    ] = None
    journal: Annotated[
        str | None,
        _memory(
            help="Where answers are kept, so that a rerun, also to another --out, asks only what is missing: a file, or what "
            "many machines share: an existing folder, a path that ends in /, or a URL such as s3://bucket/run/.",
            show_default="SOURCE.journal beside the source; in the working folder where the source is on the Hub or its "
            "folder cannot be written",
        ),
    ] = None
    no_journal: Annotated[bool, _memory("--no-journal", help="Keep nothing: a rerun pays again.")] = False
    shard: Annotated[
        str | None,
        _memory(
            help="i/n: ask only the i-th of n parts of the rows, from 0, as one job of many. --out may be left out, as the "
            "answers are in --journal: the same command without --shard puts the rows together."
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print what would be sent as JSON lines, and call nothing."),
    ] = False

    def check(self, out: str | None) -> None:
        """Refuse options that do not go together.

        Raises:
            BadParameter: They do not.
        """
        self.part(None)
        if self.max_cost and self.price is None:
            raise typer.BadParameter(
                "--max-cost needs --price, such as 0.15,0.60 for a million prompt and completion tokens"
            )
        if self.journal and self.no_journal:
            raise typer.BadParameter("--journal and --no-journal exclude each other; leave out one")
        if self.shard and not self.journal:
            raise typer.BadParameter(
                "--shard needs --journal, a place that all parts share: a folder, a path that ends in /, or a URL"
            )
        if out is None and not self.shard and not self.dry_run:
            raise typer.BadParameter("give --out, where the result goes")

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens)

    @property
    def silent(self) -> Generator:
        """A generator that answers nothing, for a task that only shows what it would send."""
        return FunctionGenerator(lambda messages: "", name=self.model, sampling=self.sampling)

    def resolved(self) -> tuple[str, str | None]:
        """The model and the adapter that `--model` means."""
        if self.base_url:
            return self.model, None
        if self.dry_run:  # asks no Hub what a name stands for
            return self.model, self.model if Path(self.model).is_dir() else None
        return resolve_adapter(self.model)

    def generator(self, model: str, adapter: str | None) -> Generator:
        """The engine that was named, or else fits."""
        if self.base_url is not None:
            key = os.environ.get(self.api_key_env)
            if key is None and self.api_key_env != _KEY:
                raise typer.BadParameter(f"--api-key-env {self.api_key_env}: there is no such environment variable")
            return OpenAIGenerator(
                model, base_url=self.base_url, api_key=key, concurrency=self.concurrency, timeout=self.timeout,
                sampling=self.sampling,
            )  # fmt: skip
        if self.engine == "vllm" or (self.engine is None and is_preferred()):
            return VLLMGenerator(model, adapter=adapter, dtype=self.dtype, sampling=self.sampling)
        return TransformersGenerator(
            model, adapter=adapter, dtype=self.dtype, batch_size=self.batch_size, sampling=self.sampling
        )

    def place(self, source: str) -> str | None:
        """Where answers are kept. Named after the source and not after `--out`, so that another `--out` asks nothing."""
        if self.no_journal or self.journal:
            return self.journal
        path = Path(source).resolve()
        if path.exists():
            beside = path.with_name(f"{path.name}.journal")
            is_writable = os.access(beside if beside.exists() else path.parent, os.W_OK)
            return str(beside) if is_writable else beside.name
        return source.removeprefix(HUB).replace("/", "-") + ".journal"

    def remembering(self, generator: Generator, source: str) -> Generator:
        """The generator in a journal, if there is one."""
        place = self.place(source)
        return Journal(generator, place) if place else generator

    def part(self, dataset: Any) -> Any:
        """The rows that `--shard` leaves: a contiguous part of each split; of a stream, every n-th row.

        Raises:
            BadParameter: It is none.
        """
        if self.shard is None:
            return dataset
        try:
            index, count = map(int, self.shard.split("/"))
        except ValueError:
            index, count = 0, 0
        if not 0 <= index < count:
            raise typer.BadParameter(
                f"--shard {self.shard!r} is no part; write i/n, with i from 0 to n - 1, such as 0/16"
            )
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return type(dataset)({name: self.part(split) for name, split in dataset.items()})
        if hasattr(dataset, "__len__"):
            start, end = (len(dataset) * at // count for at in (index, index + 1))
            return dataset.select(range(start, end))
        return dataset.filter(_Nth(index, count), with_indices=True)


@dataclass(frozen=True)
class _Nth:
    index: int
    count: int

    def __call__(self, row: Any, number: int) -> bool:
        return number % self.count == self.index


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclass parameters as options; it is called with the dataclasses filled."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        types = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            how = {"default": default, "annotation": types[field.name]}
            parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, **how))

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def read_columns(text: str | None) -> dict[str, str]:
    """`--columns` as our name → theirs.

    Raises:
        BadParameter: It is no list of such.
    """
    parts = text.split(",") if text else []
    if not all("=" in part for part in parts):
        raise typer.BadParameter(
            f"--columns {text!r} is not a list of ours=theirs; write instruction=question,response=answer"
        )
    return {ours.strip(): theirs.strip() for ours, theirs in (part.split("=", 1) for part in parts)}


def read_price(text: str | None) -> Price | None:
    """`--price`.

    Raises:
        BadParameter: It is no price.
    """
    if text is None:
        return None
    try:
        prompt, completion, *currency = text.split(",")
        return Price.of((float(prompt), float(completion), *(word.strip() for word in currency)))
    except ValueError:
        raise typer.BadParameter(
            f"--price {text!r} is not two numbers, with a currency or without; write 0.15,0.60 or 0.15,0.60,USD for a "
            "million prompt and completion tokens"
        ) from None


def read_list(text: str | None) -> list[str] | None:
    """Names between commas."""
    return [name.strip() for name in text.split(",")] if text else None


def read_names(text: str) -> tuple[str, str]:
    """`--names`: what the two sides of verdicts are called.

    Raises:
        BadParameter: They are not two.
    """
    sides = text.split(",")
    if len(sides) != 2:
        raise typer.BadParameter(f"--names {text!r} is not two names; write boosted,raw")
    return sides[0], sides[1]
