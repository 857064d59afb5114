"""What a command prints, and how it stops: one line and an exit code in place of a traceback."""

import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midb.errors import GenerationError, MidbError

_IN_PYTHON: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"booster\.map\(as_pairs\(edits\)\), or the raw one with ", ""),
    (
        r"(?:as_(?:pairs|edits)\(\w+, )?columns=\{(.*?)\}\)?",
        lambda found: "--columns " + re.sub(r"['\" ]", "", found[1]).replace(":", "="),
    ),
    (r"columns= names", "--columns names"),
    (r"\bon=", "--on"),
    (r"(?:, e\.g\.|:) ds\.\w+\(.*?\)(?=$|;|, or )", ""),  # what to do is said before it
)
_NO_HUB = "the Hub cannot be reached ({}); look at the connection and at HF_ENDPOINT, then run the same command again"


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors as one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        from datasets.exceptions import DatasetsError
        from huggingface_hub.utils import httpx

        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            stop("interrupted", 130)
        except GenerationError as error:
            stop(as_command(str(error)), 4)
        except BrokenPipeError:  # `midb ... | head`: the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except httpx.TransportError as error:  # of the Hub: a generator explains its own
            stop(_NO_HUB.format(error), 1)
        except (MidbError, DatasetsError, ValueError, OSError) as error:
            stop(as_command(str(error)), 1)

    return wrapped


def as_command(message: str) -> str:
    """What an error says in Python, in the options of the command line."""
    for python, command in _IN_PYTHON:
        message = re.sub(python, command, message)
    return message


def stop(message: str, code: int) -> NoReturn:
    """End the command with a line on stderr."""
    print(f"midb: {message}", file=sys.stderr)
    raise typer.Exit(code)


def note(text: object) -> None:
    """A line for people, on stderr: stdout is for what a command makes."""
    _console().print(escape(str(text)))


def show_counts(counts: Mapping[str, Mapping[str, int]], statuses: tuple[str, ...]) -> None:
    """A table of rows by language and status."""
    table = Table(title="rows by language", title_justify="left")
    table.add_column("language")
    for name in statuses:
        table.add_column(name, justify="right")
    for language, row in sorted(counts.items()):
        table.add_row(escape(language), *(f"{row.get(name, 0):,}" for name in statuses))
    _console().print(table)


def show_message(title: str, text: str) -> None:
    """Text of a dataset under a title, with control characters written out, so that it cannot command a terminal."""
    Console(highlight=False, soft_wrap=True).rule(title)
    print("".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text))


def _console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)
