"""The command line: thin commands over the public API, errors without tracebacks, exit codes for scripts.

0 done · 1 stopped by an error · 2 wrong usage · 3 done, but rows failed or the budget ended: run it again · 4 the engine gave
up: run it again, what was answered is in the journal · 130 interrupted.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from midb.cli.boost import boost, preview
from midb.cli.data import data, filter_
from midb.cli.judge import answer, judge, report
from midb.cli.model import serve_command, train
from midb.cli.options import with_options
from midb.cli.push import adapter, dataset, eval_set, metric
from midb.cli.terminal import plain_errors

app = typer.Typer(
    help="Boost multilingual instruction data: rewrite the bad rows of a dataset with a tuned LLM.",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 3 done but rows failed or the budget ended, 4 the engine gave up, "
    "130 interrupted.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
)  # fmt: skip
push = typer.Typer(help="Publish to the Hub, with a card made from what is published.", no_args_is_help=True)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("midb"))
        raise typer.Exit


@app.callback()
def midb(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before the command."""


COMMANDS: tuple[Callable[..., None], ...] = (boost, preview, filter_, answer, judge, report, data, train)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(plain_errors(with_options(command)))
app.command("serve-command", context_settings={"ignore_unknown_options": True})(plain_errors(serve_command))
PUSHES: tuple[Callable[..., None], ...] = (dataset, eval_set, adapter, metric)
for command in PUSHES:
    push.command(command.__name__.replace("_", "-"))(plain_errors(command))
app.add_typer(push, name="push")
