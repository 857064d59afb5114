"""Cards that tell the truth, and the one call that publishes each thing with its card.

The home of all writing to the Hub. `*_card` is pure and offline; `push_*` makes one commit of card and files, so that a push
that dies leaves the repository as it was, and pushing again goes on with what is already uploaded.
"""

from midb.hub.cards import adapter_card, dataset_card, eval_set_card, metric_card
from midb.hub.push import push_adapter, push_dataset, push_eval_set, push_metric
from midb.hub.shipment import Pushed

__all__ = [
    "Pushed",
    "adapter_card",
    "dataset_card",
    "eval_set_card",
    "metric_card",
    "push_adapter",
    "push_dataset",
    "push_eval_set",
    "push_metric",
]
