"""midb boosts multilingual instruction data: the bad rows of a Hugging Face dataset, rewritten by a tuned LLM.

    from midb import Booster
    edits = Booster(generator=...).map(dataset)

The door holds light names only, resolved on first use: `import midb` loads neither datasets nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midb.booster import Booster as Booster
    from midb.distance import add_edit_distance as add_edit_distance
    from midb.distance import filter_by_edit_distance as filter_by_edit_distance
    from midb.errors import ColumnError as ColumnError
    from midb.errors import GenerationError as GenerationError
    from midb.errors import MidbError as MidbError
    from midb.errors import MissingExtraError as MissingExtraError
    from midb.generators.base import Sampling as Sampling
    from midb.hub.push import push_adapter as push_adapter
    from midb.hub.push import push_dataset as push_dataset
    from midb.hub.push import push_eval_set as push_eval_set
    from midb.hub.push import push_metric as push_metric
    from midb.judging.judge import Judge as Judge
    from midb.schema import as_alpaca as as_alpaca
    from midb.schema import as_edits as as_edits
    from midb.schema import as_messages as as_messages
    from midb.schema import as_pairs as as_pairs

_ROOMS = {
    "Booster": "midb.booster",
    "ColumnError": "midb.errors",
    "GenerationError": "midb.errors",
    "Judge": "midb.judging.judge",
    "MidbError": "midb.errors",
    "MissingExtraError": "midb.errors",
    "Sampling": "midb.generators.base",
    "add_edit_distance": "midb.distance",
    "as_alpaca": "midb.schema",
    "as_edits": "midb.schema",
    "as_messages": "midb.schema",
    "as_pairs": "midb.schema",
    "filter_by_edit_distance": "midb.distance",
    "push_adapter": "midb.hub.push",
    "push_dataset": "midb.hub.push",
    "push_eval_set": "midb.hub.push",
    "push_metric": "midb.hub.push",
}

__all__ = list(_ROOMS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("midb")
    if name not in _ROOMS:
        raise AttributeError(f"module 'midb' has no attribute {name!r}; it has {', '.join(_ROOMS)}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
