"""The picture beside a card: how far the edits of each language went.

Knows distances; the one of the room that needs matplotlib.
"""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from midb.errors import require_extra
from midb.hub.facts import EditFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MOST = 24  # panels: the languages with the most rows
BINS = 40


def draw_distances(facts: EditFacts) -> bytes:
    """`distance_figure` as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    file = BytesIO()
    # Without what names the software: the same picture from the same rows.
    distance_figure(facts).savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def distance_figure(facts: EditFacts) -> "Figure":
    """One panel per language, all on one scale, so that they can be compared; the median is marked.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_extra("matplotlib", "hub")
    from matplotlib.figure import Figure  # without pyplot, which keeps global state and may want a screen

    shown = sorted(facts.languages, key=lambda each: -len(each.distances))[:MOST]
    shown = sorted((each for each in shown if len(each.distances)), key=lambda each: each.name)
    columns = min(4, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.6 * columns + 0.8, 1.7 * rows + 0.9), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    together = np.concatenate([np.zeros(0, np.int32), *(each.distances for each in shown)])
    edges = equal_bins(together)
    for axes, each in zip(panels, shown, strict=False):
        _panel(axes, f"{each.name} ({len(each.distances):,})", each.distances, edges, each.median_distance or 0)
    for axes in panels[max(1, len(shown)) :]:
        axes.remove()
    for axes in panels[: len(shown)][-columns:]:  # the last of each column, also above an empty place
        axes.tick_params(labelbottom=True)
    beyond = int((together >= edges[-1]).sum())
    told = f"; {beyond:,} rows went farther and are in the last bar" if beyond else ""
    figure.supxlabel(f"characters changed (red: the median){told}", fontsize=9)
    figure.supylabel("rows", fontsize=9)
    return figure


def equal_bins(distances: "NDArray[np.int32]") -> "NDArray[np.int64]":
    """Where bars begin and the last one ends: all as many whole characters wide, at most `BINS` of them.

    To the 99th percentile: one row that went very far would leave the others no room.
    """
    far = np.percentile(distances, 99, method="inverted_cdf") if len(distances) else 0
    end = max(BINS - 1, int(far))
    width = end // BINS + 1
    return np.arange(0, end + width + 1, width)


def _panel(axes: "Axes", title: str, distances: "NDArray[np.int32]", edges: "NDArray[np.int64]", median: float) -> None:
    from matplotlib.ticker import MaxNLocator

    # The last bar holds also the rows that went farther.
    axes.hist(np.minimum(distances, edges[-1] - 1), edges.tolist(), rwidth=0.9, color="#2a6f97")
    axes.axvline(median, color="#c8553d", linewidth=1.2)
    axes.text(median, axes.get_ylim()[1], f" {median:,g}", color="#c8553d", fontsize=7, va="top")
    axes.set_title(title, fontsize=8, loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
