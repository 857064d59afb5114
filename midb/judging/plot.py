"""Report → one picture: the win score of every language, and how it grows with the edit distance.

Knows a finished report and matplotlib without pyplot, which keeps global state and may need a display. Names from the data are
drawn as plain text, never as formulas; a character that the font lacks is drawn as a box.
"""

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from midb.errors import require_extra
from midb.judging.markdown import printable, withheld
from midb.languages import BY_CODE

if TYPE_CHECKING:
    from midb.judging.figures import Group
    from midb.judging.statistics import Figure

BETTER, UNCLEAR, WORSE, MEAN, FAINT = "#1b7f79", "#7a7f87", "#b4472e", "#1f2933", "#e4e7eb"
LONGEST = 28  # characters of a label
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "text.color": MEAN,
    "axes.labelcolor": MEAN,
    "xtick.color": MEAN,
    "ytick.color": MEAN,
}


def plot_report(report: Any, path: Path) -> Path:
    """Draw the report as a PNG; without a headline, draw only the reasons.

    Raises:
        ValueError: The path does not end in .png.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{str(path)!r} does not end in .png, and the picture is one; name it report.png")
    require_extra("matplotlib", "judge")
    import matplotlib
    from matplotlib.figure import Figure as Picture
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        dose = report.tables.get("edit_distance", ()) if report.health.fit else ()
        rows = _rows(report) if report.health.fit else []
        panels = 2 if dose else 1
        size = (10.5 if dose else 6.5, 2.1 + 0.27 * max(len(rows), 5))
        picture = Picture(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.05))
        axes = picture.subplots(1, panels, squeeze=False, width_ratios=[1.2, 1][:panels])[0]
        a, b = (_drawable(name) for name in report.names)
        picture.suptitle(f"{a} against {b}\n{_summary(report)}", x=0.015, ha="left", linespacing=1.5, parse_math=False,
                         fontsize=11, fontweight="bold", color=MEAN if report.headline else WORSE)  # fmt: skip
        if report.health.fit:
            _draw_languages(axes[0], rows, a)
        else:
            _draw_reasons(axes[0], report.health.reasons)
        if dose:
            _draw_dose(axes[1], dose)
        picture.savefig(path, dpi=150)
    return path


def _summary(report: Any) -> str:
    found = report.headline
    if found is None:
        return withheld(report).rstrip(".")
    if found.value is None or found.low is None or found.high is None:
        return "no verdict"
    of = f"mean of {report.macro.languages} languages" if report.macro else f"{found.n:,} comparisons"
    return f"win score {100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f}), {of}"


def _rows(report: Any) -> list[tuple[str, "Figure", bool, bool]]:
    """Label, win score, unreliable, mean: best language first, the mean last."""
    languages = [group for group in report.tables.get("language", ()) if group.win_score.value is not None]
    languages.sort(key=lambda group: -(group.win_score.value or 0.0))
    rows = [(_language(group.group), group.win_score, group.unreliable, False) for group in languages]
    if report.macro:
        rows.append((f"mean of {report.macro.languages} languages", report.macro.mean, False, True))
    return rows or [("all rows", report.figures.win_score, False, False)]


def _draw_languages(axes: Any, rows: list[tuple[str, "Figure", bool, bool]], name: str) -> None:
    places = [-at - 0.5 * mean for at, (_, _, _, mean) in enumerate(rows)]  # the mean a little apart
    aside = axes.get_yaxis_transform()
    for place, (_, figure, unreliable, mean) in zip(places, rows, strict=True):
        if figure.value is None or figure.low is None or figure.high is None:
            continue
        value, low, high = 100 * figure.value, 100 * figure.low, 100 * figure.high
        color = MEAN if mean else BETTER if low > 50 else WORSE if high < 50 else UNCLEAR
        axes.plot([low, high], [place, place], color=color, lw=2.6 if mean else 1.8, alpha=0.7, solid_capstyle="round")
        axes.plot(value, place, marker="D" if mean else "o", ms=7 if mean else 6, color=color, markeredgewidth=1.6,
                  markerfacecolor="white" if unreliable else color)  # fmt: skip
        style = {"transform": aside, "ha": "right", "va": "center_baseline", "weight": "bold" if mean else "normal"}
        axes.text(1.1, place, f"{value:.1f}", **style)
        axes.text(1.25, place, f"{figure.n:,}", color=UNCLEAR, **style)
    for x, head in ((1.1, "%"), (1.25, "n")):
        axes.text(x, 1, head, transform=axes.transAxes, ha="right", va="top", color=UNCLEAR)
    axes.axvline(50, color=MEAN, lw=1, ls=(0, (4, 3)), zorder=1)
    if rows[-1][3]:
        axes.axhline(places[-1] + 0.75, color=FAINT, zorder=1)
    axes.set_yticks(places, [label for label, *_ in rows], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(places[-1] - 0.8, 1.3 if len(rows) > 1 else 1)
    hollow = "\nhollow: the judge is unreliable here" if any(unreliable for _, _, unreliable, _ in rows) else ""
    axes.set_xlabel(f"win score of {name} in %, with its 95 % interval{hollow}", parse_math=False)
    _scale(axes, "x")


def _draw_reasons(axes: Any, reasons: tuple[str, ...]) -> None:
    axes.set_axis_off()
    lines = [line for each in reasons for line in wrap(f"– {each}", 88, subsequent_indent="   ")]
    axes.text(0, 1, "\n".join(lines), transform=axes.transAxes, va="top", linespacing=1.6, parse_math=False)


def _draw_dose(axes: Any, dose: tuple["Group", ...]) -> None:
    known = [(int(group.group), group.win_score) for group in dose if group.win_score.value is not None]
    tenths = [(at, figure) for at, figure in known if at > 0]
    low, mid, high = ([100 * getattr(figure, part) for _, figure in tenths] for part in ("low", "value", "high"))
    axes.axhline(50, color=MEAN, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.fill_between([at for at, _ in tenths], low, high, color=BETTER, alpha=0.15, lw=0)
    axes.plot([at for at, _ in tenths], mid, color=BETTER, marker="o", ms=5, lw=1.6)
    for at, figure in known[: len(known) - len(tenths)]:  # equal answers
        ends = [100 * (figure.low or 0.0), 100 * (figure.high or 0.0)]
        axes.plot([at, at], ends, color=MEAN, lw=1.8, alpha=0.7, solid_capstyle="round")
        axes.plot(at, 100 * (figure.value or 0.0), marker="s", ms=6, color=MEAN, markerfacecolor="white")
    axes.set_xticks([at for at, _ in known], [str(at) if at else "equal" for at, _ in known])
    axes.set_xlabel("edit distance, in tenths of each language")
    axes.set_ylabel("win score in %")
    _scale(axes, "y")


def _scale(axes: Any, along: str) -> None:
    """Whole numbers, a faint grid, and never less than ten points: small differences shall look small."""
    from matplotlib.ticker import MaxNLocator

    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if along == "x" else (axes.yaxis, axes.get_ylim())
    axes.set(**{f"{along}lim": (min(low, 44.5), max(high, 55.5))})
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis=along, color=FAINT)
    axes.set_axisbelow(True)


def _language(label: str) -> str:
    return BY_CODE[label].name if label in BY_CODE else _drawable(label) if label else "language unknown"


def _drawable(label: str) -> str:
    """One short line in the characters that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    has = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(each if ord(each) in has else "□" for each in printable(label, LONGEST))
