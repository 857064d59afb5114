"""Every error that midb raises on purpose.

MidbError                                      catch-all
├── ColumnError(MidbError, ValueError)         the dataset lacks a column, or has a shape we do not know
├── GenerationError(MidbError, RuntimeError)   an engine gave up, or returned the wrong number of texts
└── MissingExtraError(MidbError, ImportError)  pip install 'midb[...]'

A message has two halves: what was found; what to do. A model's bad output is never an error: it is a row with a status.
"""

from importlib.util import find_spec


class MidbError(Exception):
    """Catches everything below, and nothing of the libraries underneath: Hub and HTTP errors pass through unchanged."""


class ColumnError(MidbError, ValueError):
    """The dataset lacks a column, holds a value that is not text, or has a shape we do not know."""


class GenerationError(MidbError, RuntimeError):
    """An engine gave up or broke the contract of `Generator`; what was answered before is safe in the journal."""


class MissingExtraError(MidbError, ImportError):
    """An optional part of midb is used whose packages are not installed."""


def require_extra(module: str, extra: str) -> None:
    """Raise before any work starts when `module` is not installed; a broken install keeps its own message.

    Args:
        module: The top-level module that the work needs.
        extra: The extra of midb that brings it.

    Raises:
        MissingExtraError: `module` is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(f"{module} is not installed; run: pip install 'midb[{extra}]'")
