"""Report → words: Markdown for a model card or an issue, and a few lines for the terminal.

Knows a finished report and computes nothing. Text from the data (names, labels, a judge's name) stands in code spans without
backticks, pipes and line breaks, so that no renderer interprets it; a report without a headline shows no figure.
"""

from collections.abc import Callable, Sequence
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from midb.judging.figures import FEW

if TYPE_CHECKING:
    from midb.judging.figures import Group
    from midb.judging.length import LengthControl
    from midb.judging.statistics import Figure

LONGEST, SETTINGS = 60, 600  # characters of a name, and of a judge's settings
TITLES = {"edit_distance": "how much was changed (tenths of each language, 0: equal answers)"}


def withheld(report: Any) -> str:
    """Why there is no headline, in one line."""
    return f"Headline withheld: {'the run is incomplete' if report.health.believed else 'this judge cannot be believed here'}."


def report_text(report: Any) -> str:
    """The report in a few lines."""
    if not report.health.fit:
        return "\n".join([withheld(report), _reasons(report), _counts(report, printable)])
    spread = _spread(report, printable)
    return "\n".join([_headline(report, printable), _counts(report, printable), *spread, _health(report, printable)])


def report_markdown(report: Any) -> str:
    """The report as GitHub's Markdown."""
    if report.health.fit:
        blocks = [f"**{_headline(report, _code)}**", _counts(report, _code), _figures(report)]
        blocks += _spread(report, _code)
    else:
        blocks = [withheld(report), _reasons(report), _counts(report, _code)]
    for name, groups in report.tables.items():
        title = TITLES.get(name) or escape(_code(name).strip("`"))  # Markdown ends where a block of HTML begins
        if name != "language" and (len(groups) < 2 or (name == "edit_distance" and not report.health.fit)):
            continue  # says nothing that is not said above, or figures only
        table = _groups(report, name, groups)
        folded = f"<details><summary>By {title}</summary>\n\n{table}\n\n</details>"
        blocks.append(table if name == "language" else folded)
    meaning = [_meaning(report)] if report.health.fit else []
    return "\n\n".join([*blocks, _health(report, _code), *meaning, *_cost(report), _provenance(report)]) + "\n"


def _reasons(report: Any) -> str:
    return "\n".join(f"- {reason}" for reason in report.health.reasons)


def _headline(report: Any, quote: Callable[[str], str]) -> str:
    a, b = map(quote, report.names)
    mean_of = f", the mean of {report.macro.languages} languages" if report.macro else ""
    return f"{a} against {b}: win score {_percent(report.headline)}{mean_of}"


def _counts(report: Any, quote: Callable[[str], str]) -> str:
    counts, figure = report.figures.counts, report.figures.win_score
    a = quote(report.names[0])
    text = f"{counts.comparisons:,} comparisons"
    if report.health.fit:
        text += f" of {figure.n_clusters:,} questions: {a} is better in {counts.win:,}, equal in {counts.tie:,}, worse in {counts.loss:,}"
    silent = [
        quote(group.group)
        for group in report.tables.get("language", ())
        if group.counts.comparisons and group.win_score.value is None
    ]
    missing = ", ".join(f"{quote(status)} {count:,}" for status, count in counts.no_verdict.items())
    text += f"; {sum(counts.no_verdict.values()):,} without a verdict" + (f" ({missing})" if missing else "")
    text += f"; no verdict at all in {', '.join(silent)}" if silent else ""
    also = {
        "opposite in the two orders and left out": counts.dropped,
        "equal answers, a tie without a call": counts.identical,
        "empty answers, decided without a call": counts.forfeits,
        "without a partner, in no count": counts.unmatched,
        "with a verdict token in an answer": counts.answers_with_token,
        "answers of the first in another language": counts.off_language_a,
        "answers of the second in another language": counts.off_language_b,
    }
    told = "; ".join(f"{what}: {count:,}" for what, count in also.items() if count)
    return text + (f". {told[0].upper()}{told[1:]}." if told else ".")


def _figures(report: Any) -> str:
    of_all, macro = report.figures, report.macro
    lines: list[tuple[str, str, str, str]] = []

    def line(name: str, figure: "Figure | None", p_value: float | None = None) -> None:
        if figure and figure.value is not None:
            lines.append((name, _percent(figure), f"{figure.n:,}", _p(p_value)))

    line("win score, mean of the languages", macro.mean if macro else None)
    line("win score (WR1), all rows", of_all.win_score, of_all.p_permutation)
    line("net margin: wins less losses", of_all.net_margin)
    line("wins of the decided (WR2)", of_all.wr2, of_all.p_sign)
    line("at least as good (QS)", of_all.qs)
    if of_all.counts.off_language_a or of_all.counts.off_language_b:
        line("win score without answers in another language", of_all.on_language)
    if macro and macro.length_controlled:
        line("win score at equal length, mean of the languages", macro.length_controlled)
    elif of_all.length and of_all.length.win_score is not None:
        lines.append(("win score at equal length", _ends(of_all.length), f"{of_all.length.n:,}", ""))
    line("the judge's own probability", report.preference)
    return _table(("", "value (95 % interval)", "n", "p"), lines)


def _spread(report: Any, quote: Callable[[str], str]) -> list[str]:
    """Lowest and highest language, how many differ clearly from one half, and the trend with the edit distance."""
    told = []
    if macro := report.macro:
        low, high = (f"{quote(name)} {_share(score)}" for name, score in (macro.lowest, macro.highest))
        told.append(
            f"Lowest {low}, highest {high}; {macro.above_half} of {macro.languages} languages have an interval above 50 %, "
            f"{macro.below_half} one below it."
        )
    if report.trend:
        told.append(
            "Upper half of the edit distances less the lower half, within each language: win score "
            f"{_percent(report.trend, points=True)}."
        )
    return told


class _Column(NamedTuple):
    title: str
    cell: "Callable[[Group], str]"
    figure: bool = True  # not shown of a judge that cannot be believed


_COLUMNS = (
    _Column("win–tie–loss", lambda group: f"{group.counts.win:,}–{group.counts.tie:,}–{group.counts.loss:,}"),
    _Column("win score (95 % interval)", lambda group: _few_or_percent(group)),
    _Column(
        "net margin",
        lambda group: "" if group.win_score.n_clusters <= FEW else _share(group.net_margin.value, sign=True),
    ),
    _Column("at equal length", lambda group: _ends(group.length) if group.length else ""),
    _Column("p (Holm)", lambda group: _p(group.p_holm)),
    _Column("without wrong language", lambda group: _on_language(group)),
    _Column("no verdict", lambda group: f"{n:,}" if (n := sum(group.counts.no_verdict.values())) else "", figure=False),
    _Column("same in both orders", lambda group: _rate(group.consistent), figure=False),
    _Column("opposite", lambda group: _rate(group.opposite), figure=False),
    _Column("agrees with others", lambda group: _agreement(group), figure=False),
    _Column("wrong language (both sides)", lambda group: _off_language(group), figure=False),
)


def _groups(report: Any, name: str, groups: Sequence["Group"]) -> str:
    """One row per group, without empty columns."""
    columns = [column for column in _COLUMNS if report.health.fit or not column.figure]
    if name == "edit_distance":
        columns = columns[:2]
    cells = [[column.cell(group) for column in columns] for group in groups]
    kept = [at for at in range(len(columns)) if any(row[at] for row in cells)]
    heads = [_code(name) if name not in TITLES else "tenth", *(columns[at].title for at in kept)]
    labels = [_code(group.group) + (" (judge unreliable here)" if group.unreliable else "") for group in groups]
    return _table(heads, [[label, *(row[at] for at in kept)] for label, row in zip(labels, cells, strict=True)])


def _few_or_percent(group: "Group") -> str:
    figure = group.win_score
    if figure.value is None:
        return ""
    return _percent(figure) if figure.n_clusters > FEW else _of(figure.value, figure.n, few=True)


def _on_language(group: "Group") -> str:
    """Only where it is another number."""
    if not (group.counts.off_language_a or group.counts.off_language_b) or group.on_language is None:
        return ""
    return _share(group.on_language.value) if group.on_language.n_clusters > FEW else ""


def _rate(figure: "Figure") -> str:
    return "" if figure.value is None else _of(figure.value, figure.n, few=figure.n_clusters <= FEW)


def _agreement(group: "Group") -> str:
    return _of(group.agreement.share, group.agreement.n) if group.agreement else ""


def _off_language(group: "Group") -> str:
    a, b, n = group.counts.off_language_a, group.counts.off_language_b, group.counts.comparisons
    return f"{_of((a or 0) / n, n)}, {_of((b or 0) / n, n)}" if n and (a or b) else ""


def _health(report: Any, quote: Callable[[str], str]) -> str:
    health, orders = report.health, report.figures.orders
    parts = [f"{control.expected} {control.behaved} of {control.n}" for control in health.controls]
    parts += health.notes
    parts.append(
        f"coverage {_percent(report.figures.covered)}" if health.coverage is not None else "it was asked nothing"
    )
    if orders and orders.n:
        parts.append(
            f"in both orders the same verdict {_percent(report.figures.consistent)}, opposite "
            f"{_percent(report.figures.opposite)}; leaning to the first place {_share(orders.first)}, to the second "
            f"{_share(orders.second)}, a difference of {_percent(report.figures.first_place, points=True)}"
        )
    elif "orders" in report.absent:
        parts.append(report.absent["orders"])
    if report.decided_mass is not None:
        parts.append(f"probability of the verdict words {_share(report.decided_mass)}")
    if report.macro and report.macro.fleiss is not None:
        parts.append(
            f"verdicts on a question agree between the languages with Fleiss' kappa {report.macro.fleiss:.2f} (on "
            f"{report.macro.complete:,} questions judged in all, 0 is chance)"
        )
    if odd := [quote(group.group) for group in report.tables.get("language", ()) if group.unreliable]:
        parts.append(
            f"no better than a coin in {', '.join(odd)}, where it agrees neither with itself nor with other languages"
        )
    return f"Judge health: {'; '.join(parts)}."


def _meaning(report: Any) -> str:
    """What the intervals cover, and what is noise."""
    text = (
        f"The intervals draw whole questions, with all their languages and turns, {report.provenance.n_resamples:,} times: they "
        "say how much hangs on which questions were asked, and nothing of another judge, prompt or decoding. They are widened for "
        "few questions, and for what so many need not have shown."
    )
    known = [each for each in report.tables.get("language", (report.figures,)) if each.detectable is not None]
    if known:
        points = 100 * median(each.detectable or 0.0 for each in known)
        n = round(median(each.win_score.n for each in known))
        noise = "5 points in one language are noise" if points > 5 else "less is noise"
        text += f" A language with {n:,} comparisons, as here, shows a difference of {points:.1f} points four times of five; {noise}."
    return text + " p: sign flips over questions; for WR2 the exact sign test over questions."


def _cost(report: Any) -> list[str]:
    cost = report.cost
    if cost.calls is None:
        return []
    parts = [f"{cost.calls:,} calls" + (f" ({cost.remembered:,} remembered)" if cost.remembered else "")]
    if cost.prompt_tokens is not None and cost.completion_tokens is not None:
        parts.append(f"{cost.prompt_tokens:,} prompt and {cost.completion_tokens:,} completion tokens")
    if cost.calls_per_verdict is not None:
        parts.append(f"{cost.calls_per_verdict:.2f} calls a verdict")
    if cost.cost is not None:
        each = "" if cost.cost_per_verdict is None else f" ({cost.cost_per_verdict:.4f} a verdict)"
        parts.append(f"{cost.cost:,.2f} in the currency of the price{each}")
    if cost.wasted is not None:
        parts.append(f"{_share(cost.wasted)} of the calls gave no verdict")
    return [f"Cost, controls apart: {', '.join(parts)}."]


def _provenance(report: Any) -> str:
    made = report.provenance
    judges = ", ".join(map(_code, made.judged_by[:5]))
    identities = ", ".join(_code(each[:16]) for each in made.judge_identity[:5])
    by = (
        f"Judged by {judges}{f' ({identities})' if identities else ''}"
        if judges
        else "The rows do not name their judge"
    )
    by += "".join(f"; settings {_code(each, SETTINGS)}" for each in made.judge_settings[:5])
    absent = "; ".join(f"{what} ({why})" for what, why in report.absent.items() if what != "controls")
    return (
        f"{by}; rule {made.rule}, seed {made.seed}, {made.rows:,} rows with the fingerprint {_code(made.fingerprint)}, "
        f"midb {made.midb}." + (f" Not in this report: {absent}." if absent else "")
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(figure: "Figure | None", points: bool = False) -> str:
    if figure is None or figure.value is None:
        return "unknown"
    unit = "points" if points else "%"
    return f"{100 * figure.value:.1f} {unit}{_range(figure)}"


def _share(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.1f} %"


def _ends(control: "LengthControl") -> str:
    return f"{_share(control.win_score)}{_range(control)}"


def _range(of: "Figure | LengthControl") -> str:
    return "" if of.low is None or of.high is None else f" ({100 * of.low:.1f} to {100 * of.high:.1f})"


def _of(share: float | None, n: int, few: bool = False) -> str:
    """A share, or the counts where they are few."""
    return f"{round(share * n, 2):g} of {n}" if share is not None and (few or n <= FEW) else _share(share)


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def printable(label: str, longest: int = LONGEST) -> str:
    """One short line without control characters and direction marks."""
    text = " ".join("".join(each if each.isprintable() else " " for each in label).split())
    return (text if len(text) <= longest else text[: longest - 1] + "…") or "unknown"


def _code(label: str, longest: int = LONGEST) -> str:
    """A code span, in which everything is text; what could end it or a table's cell is replaced."""
    return f"`{printable(label.translate({ord('`'): chr(39), ord('|'): '¦'}), longest)}`"
