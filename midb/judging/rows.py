"""Stored verdict rows → arrays: checked once, both orders merged by a rule, missing values unknown.

Knows the columns that a `Judge` writes, of which all but the ids and the verdicts may be missing; no statistics.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from midb.errors import ColumnError
from midb.judging.verdict import Verdict, merge

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Rule = Literal["conservative", "average", "decisive"]

VERDICTS: tuple[Verdict | None, ...] = ("a", "tie", "b", None)
MARGIN = np.array([1.0, 0.0, -1.0, np.nan])  # of the verdicts above, in the same order
TEXTS = ("language", "category", "changed", "status_ab", "status_ba", "judged_by", "judge_identity", "judge_settings")
NUMBERS = (
    "len_a", "len_b", "edit_distance", "p_a", "decided_mass", "prompt_tokens", "completion_tokens", "calls", "remembered",
    "off_language_a", "off_language_b", "token_in_answer",
)  # fmt: skip
HASHED = ("len_a", "len_b", "edit_distance")  # figures depend on these too
ORDERS = ("verdict_ab", "verdict_ba")
WITHOUT_CALL = ("identical", "forfeit_empty", "no_answer", "unmatched_a", "unmatched_b", "not_run")
UNANSWERED = ("not_run", "failed")  # a rerun asks these again
# Of two orders' statuses the first of these tells the row's: sides may be exchanged and the row's stays.
GRAVEST = (
    "unmatched_a", "unmatched_b", "no_answer", "not_run", "failed", "refusal", "truncated", "empty", "ambiguous",
    "invalid", "missing", "identical", "forfeit_empty",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """One array entry per verdict row; nan is unknown, and a column that is missing has no entry.

    Attributes:
        question: Code of the question: the cluster of every interval.
        shared: Code of the question and its turn, equal in all languages.
        margin: 1 where a won, -1 where b won, 0 for a tie and ±0.5 between (rule `average`); nan without an outcome.
        has_verdict: A verdict was found, also one that the rule `decisive` drops.
        status: One per row for both orders: `ok`, or the graver of the two; `unknown` where no column says it.
        has_status: There is a status column.
        asked: The judge was asked, by the status.
        answered: The judge was asked and replied.
        orders: The verdicts of each order; None without a call.
        groups: Column → the code of each row's value, and the values.
        numbers: Column → values; true is 1.
        controls: Verdicts on comparisons with a known outcome; None where the column is missing.
        sources: `judged_by`, `judge_identity` and `judge_settings` → their distinct values.
        fingerprint: Hash of the columns that the figures depend on.
    """

    question: "NDArray[np.int64]"
    shared: "NDArray[np.int64]"
    margin: "NDArray[np.float64]"
    has_verdict: "NDArray[np.bool_]"
    status: "NDArray[np.object_]"
    has_status: bool
    asked: "NDArray[np.bool_]"
    answered: "NDArray[np.bool_]"
    orders: tuple[list[str | None], list[str | None]] | None
    groups: dict[str, tuple["NDArray[np.int64]", list[str]]]
    numbers: dict[str, "NDArray[np.float64]"]
    controls: list[dict[str, Any]] | None
    sources: dict[str, tuple[str, ...]]
    fingerprint: str


def read_rows(verdicts: Any, by: Sequence[str], rule: Rule) -> Rows:
    """Read stored verdict rows.

    Reads: `id` and `verdict`, or `verdict_ab` and `verdict_ba`; any other column of a `Judge` that is there.

    Args:
        by: Columns to group by, besides `language`, `category`, `turn` and `changed`.
        rule: How two orders make one outcome. What was decided by one verdict alone keeps it.

    Raises:
        ColumnError: A column is missing, has a wrong type or value, or a comparison occurs twice.
    """
    names = _checked_columns(verdicts, by, rule)
    table = verdicts.with_format("arrow").select_columns(names)[:]
    texts = {name: _texts(table, name) for name in TEXTS if name in names}
    codes = {name: _verdict_codes(table, name) for name in ("verdict", *ORDERS) if name in names}
    margin, has_verdict = _merged(codes, rule)
    status = _statuses(texts, has_verdict)
    asked = ~np.isin(status, WITHOUT_CALL)
    question, _ = _distinct(table, "id")
    if table["id"].null_count:
        row = table["id"].to_pylist().index(None)
        raise ColumnError(f"row {row}: id is null; every comparison needs the id of its question")
    told = dict.fromkeys((*by, "language", "category", "turn", "changed"))
    groups = {name: _distinct(table, name) for name in told if name in names}
    keys = [question, *(_distinct(table, name)[0] for name in ("turn", "mode", "judged_by") if name in names)]
    shared = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].reshape(-1)
    language = groups["language"][0] if "language" in groups else np.zeros_like(shared)
    _check_unique(table, np.stack([shared, language]))
    orders = None
    if all(name in codes for name in ORDERS):
        ab, ba = (np.array(VERDICTS, object)[np.where(asked, codes[name], 3)].tolist() for name in ORDERS)
        orders = (ab, ba)
    hashed = {name: values.tolist() for name, values in texts.items() if name != "changed"}
    hashed |= {name: table[name].to_pylist() for name in ("id", "turn") if name in names}
    hashed |= {name: values.tolist() for name, values in codes.items()}
    numbers = {name: found for name in NUMBERS if name in names and (found := _numbers(table, name)) is not None}
    hashed |= {name: numbers[name].tolist() for name in HASHED if name in numbers}
    return Rows(
        question=question,
        shared=shared,
        margin=margin,
        has_verdict=has_verdict,
        status=status,
        has_status="status_ab" in names or "status_ba" in names,
        asked=asked,
        answered=asked & ~np.isin(status, UNANSWERED),
        orders=orders,
        groups=groups,
        numbers=numbers,
        controls=_controls(table) if "controls" in names else None,
        sources={
            name: tuple(sorted({each for each in texts[name].tolist() if each})) if name in texts else ()
            for name in ("judged_by", "judge_identity", "judge_settings")
        },
        fingerprint=hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16],
    )


def _checked_columns(verdicts: Any, by: Sequence[str], rule: str) -> list[str]:
    """The columns to read."""
    from datasets import Dataset

    if isinstance(verdicts, dict):
        raise ColumnError(
            f"these are the splits {', '.join(map(repr, verdicts))}; choose one, such as verdicts['train']"
        )
    if not isinstance(verdicts, Dataset):
        raise ColumnError(
            f"verdict rows are a Dataset and this is a {type(verdicts).__name__}; give what judge.compare returned, or load "
            "what was stored of it, without streaming"
        )
    has = verdicts.column_names
    if "id" not in has or not ("verdict" in has or all(name in has for name in ORDERS)):
        raise ColumnError(
            f"the dataset has the columns {has}; a report needs 'id' and 'verdict' (or 'verdict_ab' and 'verdict_ba'): give "
            "what judge.compare returned, or rename the columns"
        )
    if rule != "conservative" and not all(name in has for name in ORDERS):
        raise ColumnError(
            f"rule={rule!r} merges two orders and 'verdict_ab', 'verdict_ba' are missing; use the default"
        )
    if absent := [name for name in by if name not in has and name != "language"]:
        raise ColumnError(f"there is no column {absent} to tell rows apart by; use some of {has}")
    if not len(verdicts):
        raise ColumnError(
            "the dataset has no rows; judge.compare(ds_a, ds_b) gives one per comparison, look at its input"
        )
    read = dict.fromkeys(("id", "turn", "mode", "verdict", *ORDERS, *TEXTS, *NUMBERS, "controls", *by))
    return [name for name in read if name in has]


def _texts(table: "pa.Table", name: str) -> "NDArray[np.object_]":
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.fill_null(table[name].cast(pa.large_string()), "").to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ColumnError(f"{name} is {table[name].type} and must be text; cast or rename it") from error


def _numbers(table: "pa.Table", name: str) -> "NDArray[np.float64] | None":
    """None for a column without a single value."""
    import pyarrow as pa

    column = table[name]
    if column.null_count == len(column):
        return None
    try:
        whole = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        return whole.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ColumnError(f"{name} is {column.type} and must be numbers; cast or rename it") from error


def _verdict_codes(table: "pa.Table", name: str) -> "NDArray[np.int64]":
    """Places in `VERDICTS`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)):
        raise ColumnError(f"{name} is {column.type}; a verdict is the text 'a', 'b' or 'tie', or null: map it to that")
    column = column.cast(pa.large_string())
    codes = pc.index_in(column, pa.array(VERDICTS[:3], pa.large_string()))
    wrong = pc.and_(pc.is_null(codes), pc.is_valid(column))
    if (row := pc.index(wrong, True).as_py()) >= 0:
        raise ColumnError(
            f"row {row}: {name} is {column[row].as_py()!r:.60}; a verdict is 'a', 'b' or 'tie', or null: map it to that"
        )
    return pc.fill_null(codes, 3).to_numpy().astype(np.int64)


def _merged(codes: dict[str, "NDArray[np.int64]"], rule: Rule) -> tuple["NDArray[np.float64]", "NDArray[np.bool_]"]:
    """Margin and whether there is a verdict: of both orders by the rule, and the stored one where an order has none."""
    n = len(next(iter(codes.values())))
    ab, ba = (codes.get(name, np.full(n, 3)) for name in ORDERS)
    both = (ab < 3) & (ba < 3)
    if rule == "average":
        merged = (MARGIN[:, None] + MARGIN) / 2
    else:
        merged = MARGIN[[[VERDICTS.index(merge(one, other, rule)) for other in VERDICTS] for one in VERDICTS]]
    stored = codes.get("verdict", np.full(n, 3))
    return np.where(both, merged[ab, ba], MARGIN[stored]), both | (stored < 3)


def _statuses(texts: dict[str, "NDArray[np.object_]"], has_verdict: "NDArray[np.bool_]") -> "NDArray[np.object_]":
    status = np.where(has_verdict, "ok", "unknown").astype(object)
    for name in reversed(GRAVEST):
        for order in ("status_ab", "status_ba"):
            if order in texts:
                status[texts[order] == name] = name
    status[has_verdict & ~np.isin(status, ("identical", "forfeit_empty"))] = "ok"
    return status


def _distinct(table: "pa.Table", name: str) -> tuple["NDArray[np.int64]", list[str]]:
    """Each row's value as a number, in the order of the values, so that the order of the rows does not matter."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name].combine_chunks()
    if pa.types.is_nested(column.type):
        raise ColumnError(f"{name} is {column.type}; rows are told apart by a text or a number")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.fill_null(column.cast(pa.large_string()), "")
    found = column.dictionary_encode("encode")
    values = found.dictionary
    rank = np.empty(len(values), np.int64)
    rank[pc.sort_indices(values).to_numpy()] = np.arange(len(values))
    names = [""] * len(values)
    for at, value in zip(rank.tolist(), values.to_pylist(), strict=True):
        names[at] = "" if value is None else str(value)
    return rank[found.indices.to_numpy()], names


def _check_unique(table: "pa.Table", keys: "NDArray[np.int64]") -> None:
    _, first, counts = np.unique(keys, axis=1, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = int(first[counts > 1].min())
        raise ColumnError(
            f"{int((counts - 1).sum()):,} comparisons stand twice, the first is id {table['id'][row].as_py()!r} in row {row}; "
            "keep one row per question, language and turn, or summarize each run for itself"
        )


def _controls(table: "pa.Table") -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table["controls"]
    if pa.types.is_null(column.type):
        return []
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ColumnError(f"controls is {column.type} and must be a list per row; drop the column to do without")
    found = pc.list_flatten(column).to_pylist()
    needed = {"kind", "verdict_ab", "verdict_ba"}
    if not all(isinstance(each, dict) and needed <= each.keys() for each in found):
        raise ColumnError(f"controls hold other fields than {sorted(needed)}; drop the column to do without")
    return found
