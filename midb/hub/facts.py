"""What a set of edits holds, counted in Arrow batches: what became of its rows, how far they went, and some to look at.

Knows the columns of edits and memory that stays flat: a few bytes a row, whatever the texts weigh. No page and no Hub.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from midb.distance import EDIT_DISTANCE, add_edit_distance
from midb.errors import ColumnError
from midb.languages import BY_CODE, language_code
from midb.schema import PAIR, RAW, Pair, without_format

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SAMPLES = 10
FARTHEST = 1 << 16  # distances from here on are counted together
BATCH_ROWS = 10_000
_STATUS = ("boost_status", "boost_reason", "boosted_by")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")


class Share(NamedTuple):
    """A number of rows as a share of others, with Wilson's 95 % interval."""

    rows: int
    of: int

    @property
    def value(self) -> float | None:
        """The share; None of none."""
        return self.rows / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the share of many more such rows would be."""
        if not self.of:
            return None
        z, n, p = 1.959963984540054, self.of, self.rows / self.of
        middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


class Sample(NamedTuple):
    """One row, before and after."""

    language: str
    split: str
    row: int
    before: Pair
    after: Pair


@dataclass
class LanguageFacts:
    """The rows of one language. Filled while rows are read, and not changed afterwards.

    Attributes:
        language: ISO code; empty where no row says it.
        rows: All of them.
        boosted, unchanged: By `boost_status`; None where the rows have none.
        rejected, failed: Reason → rows.
        changed: Rows whose distance counts: those boosted, or all where no row has a status.
        distances: How many of these went how many characters; the last place holds all that went farther.
        characters: The sum of their distances.
    """

    language: str
    rows: int = 0
    boosted: int | None = None
    unchanged: int | None = None
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    distances: "NDArray[np.int64]" = field(default_factory=lambda: np.zeros(FARTHEST + 1, np.int64), repr=False)
    characters: int = 0

    @property
    def name(self) -> str:
        """In English where the table of languages has it."""
        return BY_CODE[self.language].name if self.language in BY_CODE else self.language or "not stated"

    @property
    def mean_distance(self) -> float | None:
        """In characters."""
        return self.characters / self.changed if self.changed else None

    @property
    def median_distance(self) -> float | None:
        """In characters; of an even number of rows the mean of the middle two."""
        if not self.changed:
            return None
        middle = [(self.changed + 1) // 2, self.changed // 2 + 1]
        return float(np.searchsorted(np.cumsum(self.distances), middle).mean())

    @property
    def reasons(self) -> dict[str, int]:
        """Of the rejected and the failed."""
        return dict(Counter(self.rejected) + Counter(self.failed))

    @property
    def boosted_share(self) -> Share:
        """Of the rows that were answered: a failed one may be boosted by a rerun."""
        return Share(self.boosted or 0, self.rows - sum(self.failed.values()))

    @property
    def rejected_share(self) -> Share:
        """Of the rows that were answered."""
        return Share(sum(self.rejected.values()), self.rows - sum(self.failed.values()))


@dataclass(frozen=True)
class EditFacts:
    """A set of edits in figures.

    Attributes:
        languages: By name.
        splits: Name → rows.
        columns: Name → type.
        boosted_by: Who was asked → rows.
        has_status: Whether a booster wrote the rows.
        samples: Changed rows, spread over splits and languages, and evenly over the rows of each.
    """

    languages: tuple[LanguageFacts, ...]
    splits: dict[str, int]
    columns: dict[str, str]
    boosted_by: dict[str, int]
    has_status: bool
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        """In all splits."""
        return sum(self.splits.values())

    @cached_property
    def total(self) -> LanguageFacts:
        """All languages together."""
        whole = LanguageFacts("", rows=self.rows)
        for each in self.languages:
            whole.distances += each.distances
            whole.changed += each.changed
            whole.characters += each.characters
            for reasons, more in ((whole.rejected, each.rejected), (whole.failed, each.failed)):
                for reason, count in more.items():
                    reasons[reason] = reasons.get(reason, 0) + count
        if self.has_status:
            whole.boosted = sum(each.boosted or 0 for each in self.languages)
            whole.unchanged = sum(each.unchanged or 0 for each in self.languages)
        return whole


def named_splits(dataset: Any, default: str = "train") -> dict[str, "Dataset"]:
    """The splits of a stored dataset by name, giving plain Python values.

    Raises:
        TypeError: A stream, or no dataset.
        ColumnError: The splits differ in their columns, one has a name that a file cannot have, or there are no rows.
    """
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, Dataset):
        found = _SPLIT_NAME.match(str(dataset.split or default))
        dataset = {found[0] if found else default: dataset}
    elif not isinstance(dataset, DatasetDict):
        raise TypeError(
            f"a {type(dataset).__name__} cannot be pushed; give a Dataset or DatasetDict: "
            "Dataset.from_generator(lambda: iter(stream)) keeps a stream on disk"
        )
    splits = {str(name): without_format(split) for name, split in dataset.items()}
    if empty := [name for name, split in splits.items() if not len(split)]:
        raise ColumnError(
            f"there are no rows in {', '.join(map(repr, empty))}, and load_dataset reads no split without rows; leave it out"
        )
    first_name, first = next(iter(splits.items()))
    for name, split in splits.items():
        if not _SPLIT_NAME.fullmatch(name):
            raise ColumnError(f"a split is called {name!r}; give it a name of letters, digits, _ and .")
        if split.features != first.features:
            raise ColumnError(
                f"the splits {first_name!r} and {name!r} differ in columns or types; make them one: "
                f"ds[{name!r}].cast(ds[{first_name!r}].features)"
            )
    return splits


def license_of(splits: Mapping[str, "Dataset"]) -> str | None:
    """What the rows' own information says.

    Raises:
        ValueError: It is no identifier.
    """
    said = next((split.info.license for split in splits.values() if split.info.license), None)
    return check_license(said, "the rows' own information (info.license)")


def check_license(license: str | None, who: str) -> str | None:
    """A licence, unless it cannot be on the Hub's list, which the Hub alone knows whole.

    Raises:
        ValueError: It holds what no identifier holds.
    """
    if license and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"{who} says {license!r:.80}, which is no identifier of the Hub's list; give one as license=, such as 'apache-2.0', or "
            "'other'"
        )
    return license


def read_languages(
    splits: Mapping[str, "Dataset"], default: str | None
) -> tuple[list[str], dict[str, "NDArray[np.int16]"]]:
    """The language codes in the order in which they first appear, and each row's place among them.

    Args:
        default: The language of rows that do not say one.

    Raises:
        ColumnError: The column holds something else than languages.
    """
    own = language_code(default) if default else ""
    codes: dict[str, int] = {}
    by_split = {}
    for name, split in splits.items():
        if "language" not in split.column_names:
            by_split[name] = np.full(len(split), codes.setdefault(own, len(codes)), np.int16)
            continue
        batches = [np.zeros(0, np.int16)]
        for table in _batches(split, ["language"]):
            values = table["language"].combine_chunks().dictionary_encode(null_encoding="encode")
            places = [codes.setdefault(_code(said) or own, len(codes)) for said in values.dictionary.to_pylist()]
            batches.append(np.array(places, np.int16)[values.indices.to_numpy()])
        by_split[name] = np.concatenate(batches)
    return list(codes), by_split


def read_edits(splits: Mapping[str, "Dataset"], language: str | None = None) -> EditFacts:
    """Count a set of edits; distances are measured, and a column that tells them is not believed.

    Raises:
        ColumnError: The rows are no edits, or their language is none.
    """
    codes, places = read_languages(splits, language)
    facts = [LanguageFacts(code) for code in codes]
    boosted_by: dict[str, int] = {}
    changed: dict[str, NDArray[np.bool_]] = {}
    features = next(iter(splits.values())).features
    status = [name for name in _STATUS if name in features]
    has_status = "boost_status" in status
    for name, split in splits.items():
        measured = add_edit_distance(
            split.select_columns([each for each in (*RAW, *PAIR, *status) if each in features])
        )
        masks, start = [np.zeros(0, bool)], 0
        for table in _batches(measured, [*status, EDIT_DISTANCE]):
            place = places[name][start : start + table.num_rows]
            start += table.num_rows
            if "boosted_by" in status:
                _count(boosted_by, table["boosted_by"])
            mask = np.ones(table.num_rows, bool)
            if has_status:
                mask = _count_status(facts, place, table)
            _count_distances(facts, place[mask], table[EDIT_DISTANCE].to_numpy()[mask])
            for at, rows in enumerate(np.bincount(place, minlength=len(facts))):
                facts[at].rows += int(rows)
            masks.append(mask & (table[EDIT_DISTANCE].to_numpy() > 0))
        changed[name] = np.concatenate(masks)
    return EditFacts(
        languages=tuple(sorted((each for each in facts if each.rows), key=lambda each: each.name)),
        splits={name: len(split) for name, split in splits.items()},
        columns={name: kind_of(kind) for name, kind in features.items()},
        boosted_by={name: rows for name, rows in boosted_by.items() if name},
        has_status=has_status,
        samples=tuple(_samples(splits, codes, places, changed)),
    )


def _batches(split: "Dataset", columns: list[str]) -> Iterator[Any]:
    yield from split.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_ROWS)


def _code(said: Any) -> str:
    if not said:
        return ""
    try:
        return language_code(said)
    except (ValueError, AttributeError) as error:
        raise ColumnError(
            f"the column 'language' holds {said!r:.80}; use ISO 639 codes such as 'fr', or rename the column if it means something else"
        ) from error


def _count(counts: dict[str, int], column: Any) -> None:
    for each in column.value_counts().to_pylist():
        counts[each["values"] or ""] = counts.get(each["values"] or "", 0) + each["counts"]


def _count_status(facts: list[LanguageFacts], place: "NDArray[np.int16]", table: Any) -> "NDArray[np.bool_]":
    """Count what became of the rows; true where one was boosted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    reason = table["boost_reason"] if "boost_reason" in table.column_names else pa.nulls(table.num_rows, pa.string())
    code = pc.fill_null(pc.replace_substring_regex(reason, "(?s):.*", ""), "")
    status = pc.fill_null(table["boost_status"], "")
    grouped = pa.table({"place": place, "status": status, "code": code}).group_by(["place", "status", "code"])
    for row in grouped.aggregate([([], "count_all")]).to_pylist():
        of, count = facts[row["place"]], row["count_all"]
        of.boosted, of.unchanged = of.boosted or 0, of.unchanged or 0
        match row["status"]:
            case "boosted":
                of.boosted += count
            case "unchanged":
                of.unchanged += count
            case "rejected":
                of.rejected[row["code"]] = of.rejected.get(row["code"], 0) + count
            case "failed":
                of.failed[row["code"]] = of.failed.get(row["code"], 0) + count
            case other:
                raise ColumnError(
                    f"boost_status holds {other!r:.40}; it is boosted, unchanged, rejected or failed: boost the rows with midb, "
                    "or remove the column"
                )
    return np.asarray(pc.equal(status, "boosted").to_numpy(), bool)


def _count_distances(facts: list[LanguageFacts], place: "NDArray[np.int16]", distance: "NDArray[np.int64]") -> None:
    cell = place.astype(np.int64) * (FARTHEST + 1) + np.minimum(distance, FARTHEST)
    for at, count in zip(*np.unique(cell, return_counts=True), strict=True):
        facts[at // (FARTHEST + 1)].distances[at % (FARTHEST + 1)] += count
    rows, characters = np.bincount(place, minlength=len(facts)), np.bincount(place, distance, len(facts))
    for of, more, far in zip(facts, rows, characters, strict=True):
        of.changed += int(more)
        of.characters += int(far)


def _samples(
    splits: Mapping[str, "Dataset"], codes: list[str], places: Mapping[str, Any], changed: Mapping[str, Any]
) -> Iterator[Sample]:
    """Changed rows, as many as possible of each language of each split; what one has too few of, the others give."""
    rows = {
        (name, at): found
        for at in range(len(codes))
        for name in splits
        if len(found := np.flatnonzero(changed[name] & (places[name] == at)))
    }
    of = list(rows)
    if len(of) > SAMPLES:
        of = [of[round(at)] for at in np.linspace(0, len(of) - 1, SAMPLES)]
    shares, left = {}, SAMPLES
    # The small ones first: what they leave is then known.
    for nth, each in enumerate(sorted(of, key=lambda each: len(rows[each]))):
        shares[each] = min(len(rows[each]), left // (len(of) - nth))
        left -= shares[each]
    for nth, (name, at) in enumerate(of):
        share, mine = shares[name, at], rows[name, at]
        # Not the first of each language, which are often one row translated.
        spots = [(k + (nth + 0.5) / len(of)) / share for k in range(share)]
        for row in (int(mine[int(spot * len(mine))]) for spot in spots):
            found = splits[name][row]
            before, after = (Pair(*(found[side + each] or "" for each in PAIR)) for side in ("raw_", ""))
            yield Sample(codes[at], name, row, before, after)


def kind_of(feature: Any) -> str:
    """A column's type in a word or two."""
    from datasets import ClassLabel, Value

    if isinstance(feature, Value):
        return str(feature.dtype)
    return "label" if isinstance(feature, ClassLabel) else type(feature).__name__.lower()
