"""A training's log, one JSON line per logged step, and its plot of loss and learning rate.

Knows a list of log entries and a folder; no trainer and no model.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LOG, PLOT = "trainer_log.jsonl", "loss.png"


def write_log(folder: str | Path, entries: Iterable[dict[str, Any]]) -> None:
    """Replace the log by `entries`: none, or what a resumed training had logged up to its checkpoint."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, LOG).write_text("".join(map(_line, entries)), encoding="utf-8")


def append_log(folder: str | Path, entry: dict[str, Any]) -> None:
    """Add one entry."""
    with Path(folder, LOG).open("a", encoding="utf-8") as file:
        file.write(_line(entry))


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All entries: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, ..., and of evaluations `eval_loss`."""
    return [json.loads(line) for line in Path(folder, LOG).read_text(encoding="utf-8").splitlines()]


def plot_log(folder: str | Path) -> Path | None:
    """Draw loss and learning rate over the steps into `loss.png`; None where nothing was logged yet.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from midb.errors import require_extra

    require_extra("matplotlib", "train")
    from matplotlib.figure import Figure  # without pyplot, which keeps global state and may want a screen

    entries = read_log(folder)
    steps, losses = _series(entries, "loss")
    if not losses:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    rate_axes = axes.twinx()
    rate_axes.plot(*_series(entries, "learning_rate"), color="tab:gray", linestyle=":", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, marker=".", label="loss")  # a single one shows as a point
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, smoothed")
    held_out = _series(entries, "eval_loss")
    if held_out[0]:
        axes.plot(*held_out, color="tab:orange", marker="o", label="held-out loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.set_zorder(rate_axes.get_zorder() + 1)
    axes.patch.set_visible(False)
    lines = [*axes.get_lines(), *rate_axes.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    path = Path(folder, PLOT)
    figure.savefig(path, dpi=120)
    return path


def _series(entries: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [entry for entry in entries if entry.get(name) is not None]
    return [entry["step"] for entry in found], [entry[name] for entry in found]


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential average, corrected for its start."""
    smoothed, total, share = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        smoothed.append(total / share)
    return smoothed


def _line(entry: dict[str, Any]) -> str:
    """JSON knows neither nan nor infinity, which a gradient's norm may be in half precision: null."""
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }
    return json.dumps(known, ensure_ascii=False) + "\n"
