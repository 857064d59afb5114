"""Verdict rows → report: who is better, by how much, how sure that is, and whether the judge can be believed at all.

Knows stored verdict rows only and makes no calls: stored rows that are loaded again give the same report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midb.errors import require_extra
from midb.judging.agreement import Consistency, LanguageAgreement, order_consistency
from midb.judging.figures import DISTANCE, FEWEST_CHANGED, Figures, Group, Macro, Tally
from midb.judging.health import Health, judge_health
from midb.judging.length import LengthControl
from midb.judging.markdown import report_markdown, report_text
from midb.judging.rows import UNANSWERED, Rows, Rule, read_rows
from midb.judging.statistics import NOTHING, Figure

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Cost:
    """Cost of the judgments without the controls. Tokens of cached answers are counted; None where the rows lack the columns.

    Attributes:
        calls: Requests, follow-ups included.
        remembered: Requests that a journal answered.
        prompt_tokens: Sent.
        completion_tokens: Received.
        cost: By `price` and in its currency, as if nothing had been remembered.
        calls_per_verdict: Requests for one comparison with a verdict, those that needed none included.
        cost_per_verdict: Likewise.
        wasted: Share of the requests that gave no verdict.
    """

    calls: int | None
    remembered: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    calls_per_verdict: float | None
    cost_per_verdict: float | None
    wasted: float | None


@dataclass(frozen=True)
class Provenance:
    """The rows and settings that the report is computed from."""

    judged_by: tuple[str, ...]
    judge_identity: tuple[str, ...]
    judge_settings: tuple[str, ...]
    rows: int
    fingerprint: str
    rule: str
    seed: int
    n_resamples: int
    midb: str


@dataclass(frozen=True)
class Report:
    """Dataset a against dataset b, as a judge saw it.

    Attributes:
        names: What the two are called.
        headline: The win score of a: the mean of the languages where there are several. None where the judge is unfit.
        figures: Of all rows.
        macro: Of the languages together; None below two.
        tables: Column → a group per value. `edit_distance` holds the deciles of each language, `0` its equal answers.
        trend: Win score of the more changed half less that of the less changed one, within each language.
        preference: Mean of the judge's own probability that a is better.
        decided_mass: Mean probability of the verdict words; below 0.9 the judge has trouble with the format.
        health: Whether the judge can be believed.
        cost: Calls, tokens and money.
        absent: Missing part of the report → reason.
        provenance: The rows and settings that it is computed from.
    """

    names: tuple[str, str]
    headline: Figure | None
    figures: Group
    macro: Macro | None
    tables: dict[str, tuple[Group, ...]]
    trend: Figure | None
    preference: Figure | None
    decided_mass: float | None
    health: Health
    cost: Cost
    absent: dict[str, str]
    provenance: Provenance

    def __str__(self) -> str:
        return report_text(self)

    def to_markdown(self) -> str:
        """The report for a model card or an issue; names and labels cannot break out of it."""
        return report_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in the types of JSON; None where there is no number."""
        return dict(_plain(self))

    def to_dataset(self) -> "Dataset":
        """One row per group of each table: `table`, `group`, counts and figures; `all` is all rows, `macro` the languages' mean.

        A figure takes five columns: `win_score`, `win_score_low`, `win_score_high`, `win_score_se`, `win_score_n`.
        """
        from datasets import Dataset, Features, Value

        groups = [("all", self.figures), *((name, group) for name, table in self.tables.items() for group in table)]
        rows = [{"table": name, "group": group.group, **_flat(group)} for name, group in groups]
        if self.macro:
            rows.append({"table": "macro", "group": "", **_flat_figure("win_score", self.macro.mean)})
        kinds = dict.fromkeys(rows[0], "float64") | {"table": "string", "group": "string", "unreliable": "bool"}
        kinds |= {name: "int64" for name in kinds if name in _COUNTED or name.endswith("_n")}
        features = Features({name: Value(kind) for name, kind in kinds.items()})
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in kinds}, features)

    def plot(self, path: str | Path | None = None) -> Path:
        """Draw the languages and the dose-response as a PNG, by default `report.png` in the current folder.

        A report without a headline shows the reasons in place of the figures.
        """
        from midb.judging.plot import plot_report

        return plot_report(self, Path("report.png") if path is None else Path(path))


def summarize(
    verdicts: "Dataset",
    by: Sequence[str] = ("language",),
    *,
    names: tuple[str, str] = ("A", "B"),
    rule: Rule = "conservative",
    price: tuple[float, float] | None = None,
    seed: int = 0,
    n_resamples: int = 10_000,
) -> Report:
    """Make a report of verdict rows: what `judge.compare` returned, or what was stored of it.

    Reads: `id` and `verdict`, or `verdict_ab` and `verdict_ba`; any other column of a `Judge`, if present. Figures that need
    a missing column are left out, and `report.absent` gives the reason.

    Args:
        by: Columns to group by, besides `language`, `category`, `turn` and `changed`.
        names: What datasets a and b are called.
        rule: How two orders make one outcome. `conservative`: what is not unanimous is a tie. `average`: each order counts
            half. `decisive`: a win and a tie make a win, and opposite wins are left out.
        price: Money per million prompt tokens and per million completion tokens.
        seed: The same rows and seed give the same report.
        n_resamples: Of the bootstrap and of the permutation tests.

    Raises:
        ColumnError: The rows cannot be read as verdicts.
        ValueError: An argument is not one of its choices.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    _check_arguments(names, rule, price, n_resamples)
    for module in ("scipy", "statsmodels"):
        require_extra(module, "judge")
    rows = read_rows(verdicts, by, rule)
    told = ("language", *by, "category", "turn", "changed")
    columns = [name for name in dict.fromkeys(told) if any(rows.groups.get(name, ([], []))[1])]
    make = Figures(rows, columns, seed, n_resamples)
    overall, macro = make.tables["all"][0], None
    tables = {name: tuple(make.tables[name]) for name in (*columns, DISTANCE) if name in make.tables}
    if "language" in tables:
        languages, macro = make.languages()
        tables["language"] = tuple(languages)
    if macro is None:
        overall = replace(overall, length=make.lengths(make.parts["all"])[0].get(""))
    counts = overall.counts
    lacking = sum(counts.no_verdict.get(status, 0) for status in UNANSWERED)
    health = judge_health(
        rows.controls or [], make.coverage(), overall.orders, make.judged_equal_answers(), (counts.comparisons, lacking)
    )
    mass = rows.numbers.get("decided_mass")
    provenance = Provenance(
        **rows.sources,
        rows=len(rows.margin),
        fingerprint=rows.fingerprint,
        rule=rule,
        seed=seed,
        n_resamples=n_resamples,
        midb=version("midb"),
    )
    return Report(
        names=(names[0], names[1]),
        headline=(macro.mean if macro else overall.win_score) if health.fit else None,
        figures=overall,
        macro=macro,
        tables=tables,
        trend=make.trend(),
        preference=make.preference(),
        decided_mass=None if mass is None else float(np.nanmean(mass)),
        health=health,
        cost=_cost(rows, price),
        absent=_absent(rows, overall, tables),
        provenance=provenance,
    )


def _check_arguments(names: Any, rule: Any, price: Any, n_resamples: int) -> None:
    if isinstance(names, str) or len(names) != 2 or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"names={names!r:.80} does not name two datasets; give two texts: ('boosted', 'raw')")
    if rule not in ("conservative", "average", "decisive"):
        raise ValueError(f"rule={rule!r:.80} is not a choice; use 'conservative', 'average' or 'decisive'")
    if price is not None and (len(price) != 2 or not all(math.isfinite(each) and each >= 0 for each in price)):
        raise ValueError(
            f"price={price!r:.80} cannot be; give what a million prompt tokens and a million completion tokens cost"
        )
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples} gives no interval; use 1,000 or more")


def _cost(rows: Rows, price: tuple[float, float] | None) -> Cost:
    def total(name: str) -> int | None:
        return int(np.nansum(rows.numbers[name])) if name in rows.numbers else None

    calls, prompt_tokens, completion_tokens = total("calls"), total("prompt_tokens"), total("completion_tokens")
    decided = int(rows.has_verdict.sum())
    cost = answered = None
    if price and prompt_tokens is not None and completion_tokens is not None:
        cost = (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6
    if calls and rows.orders is not None:
        called = rows.numbers["calls"] > 0
        answered = sum(int((called & np.array([each is not None for each in order])).sum()) for order in rows.orders)
    return Cost(
        calls=calls,
        remembered=total("remembered"),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=cost,
        calls_per_verdict=None if calls is None or not decided else calls / decided,
        cost_per_verdict=None if cost is None or not decided else cost / decided,
        wasted=None if answered is None or not calls else 1 - answered / calls,
    )


def _absent(rows: Rows, overall: Group, tables: dict[str, tuple[Group, ...]]) -> dict[str, str]:
    """Missing parts of the report, each with its reason."""
    numbers, absent = rows.numbers, {}
    languages = tables.get("language", ())
    if overall.orders is None:
        absent["orders"] = "there are no verdict_ab and verdict_ba"
    elif not rows.asked.any():
        absent["orders"] = "the judge was asked nothing"
    elif not overall.orders.n:
        absent["orders"] = (
            "no comparison was judged in both orders, so every figure carries the judge's taste for a place"
        )
    if not rows.has_status:
        absent["statuses"] = "there are no status_ab and status_ba"
    if not languages:
        absent["languages"] = "no row says its language"
    if "len_a" not in numbers or "len_b" not in numbers:
        absent["length control"] = "there are no len_a and len_b"
    elif not any(each.length and each.length.win_score is not None for each in (*languages, overall)):
        absent["length control"] = "each language has fewer than 30 verdicts, or length alone predicts them"
    if overall.on_language is None:
        absent["answers in a wrong language"] = "there are no off_language_a and off_language_b"
    if DISTANCE not in tables:
        few = f"fewer than {FEWEST_CHANGED} rows with a verdict were changed"
        absent["dose-response"] = few if DISTANCE in numbers else f"there is no {DISTANCE}"
    if not rows.controls:
        absent["controls"] = "there is no column controls" if rows.controls is None else "not run"
    if "p_a" not in numbers:
        absent["the judge's own probabilities"] = "there is no p_a, or it is empty"
    if "calls" not in numbers:
        absent["cost"] = "there is no calls"
    return absent


def _plain(value: Any) -> Any:
    """In the types of JSON; names of fields become keys."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Consistency | LanguageAgreement | LengthControl):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_COUNTED = {each.name for each in fields(Tally)} - {"coverage"}


def _flat(group: Group) -> dict[str, Any]:
    """A group as one row without nesting, with the same names for every group."""
    row = _plain(group.counts) | {"no_verdict": sum(group.counts.no_verdict.values())}
    for name in (
        "win_score",
        "net_margin",
        "wr2",
        "qs",
        "on_language",
        *("covered", "consistent", "opposite", "first_place"),
    ):
        row |= _flat_figure(name, getattr(group, name) or NOTHING)
    row |= {name: getattr(group, name) for name in ("p_sign", "p_permutation", "p_holm", "detectable", "unreliable")}
    orders = group.orders or order_consistency([], [])
    row |= {"preference": orders.preference}
    row |= {"agreement": group.agreement.share if group.agreement else None}
    row |= {"agreement_kappa": group.agreement.kappa if group.agreement else None}
    length = group.length or LengthControl(None, None, None, None, None, None, 0)
    return row | {f"length_{name}": value for name, value in length._asdict().items()}


def _flat_figure(name: str, figure: Figure) -> dict[str, Any]:
    return {name: figure.value} | {f"{name}_{part}": getattr(figure, part) for part in ("low", "high", "se", "n")}
