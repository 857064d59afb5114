"""What a set of edits holds, counted in Arrow batches: what became of its rows, how far they went, and some to look at.

Knows the columns of edits and memory that stays flat: a few bytes a row, whatever the texts weigh. No page and no Hub.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from midb.distance import EDIT_DISTANCE, add_edit_distance
from midb.errors import ColumnError
from midb.hub.provenance import LONGEST, Run, read_run
from midb.languages import BY_CODE, language_code
from midb.schema import PAIR, RAW, Pair, without_format

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SAMPLES = 10
BATCH_ROWS = 10_000
MOST_RUNS = 1_000  # counted apart; a file in which every row has settings of its own stays small in memory
_STATUSES = ("boosted", "unchanged", "rejected", "failed", "not_run")
_MADE = ("boosted_by", "boost_identity", "boost_settings")
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


@dataclass(frozen=True)
class LanguageFacts:
    """The rows of one language, or of all.

    Attributes:
        language: ISO code; empty where no row says it.
        rows: All of them.
        boosted, unchanged: By `boost_status`.
        rejected: Reason → rows.
        failed: Reason → rows without an answer: `failed`, and `not_run`, which the budget left out.
        distances: In characters, of the rows that count: those boosted, or all where no row has a status.
    """

    language: str
    rows: int
    boosted: int
    unchanged: int
    rejected: Counter[str]
    failed: Counter[str]
    distances: "NDArray[np.int32]"

    @property
    def name(self) -> str:
        """In English where the table of languages has it."""
        return language_name(self.language)

    @property
    def mean_distance(self) -> float | None:
        """In characters."""
        return float(self.distances.mean()) if len(self.distances) else None

    @property
    def median_distance(self) -> float | None:
        """In characters; of an even number of rows the mean of the middle two."""
        return float(np.median(self.distances)) if len(self.distances) else None

    @property
    def boosted_share(self) -> Share:
        """Of the rows that were answered: a failed one may be boosted by a rerun."""
        return Share(self.boosted, self.rows - self.failed.total())

    @property
    def rejected_share(self) -> Share:
        """Of the rows that were answered."""
        return Share(self.rejected.total(), self.rows - self.failed.total())


@dataclass(frozen=True)
class EditFacts:
    """A set of edits in figures.

    Attributes:
        languages: By name.
        total: All languages together.
        splits: Name → rows.
        columns: Name → type.
        runs: How the rows were made, by their own word; the largest first.
        other_runs: Rows of runs beyond the first `MOST_RUNS`.
        has_status: Whether a booster wrote the rows.
        samples: Changed rows, spread over splits and languages, and evenly over the rows of each.
    """

    languages: tuple[LanguageFacts, ...]
    total: LanguageFacts
    splits: dict[str, int]
    columns: dict[str, str]
    runs: tuple[Run, ...]
    other_runs: int
    has_status: bool
    samples: tuple[Sample, ...]

    @property
    def rows(self) -> int:
        """In all splits."""
        return self.total.rows


def language_name(code: str) -> str:
    """In English where the table of languages has it."""
    return BY_CODE[code].name if code in BY_CODE else code or "not stated"


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


def license_of(splits: Mapping[str, "Dataset"], license: str | None) -> str | None:
    """The licence that the caller states, else the one that the rows' own information states.

    Raises:
        ValueError: It is no identifier.
    """
    said = next((split.info.license for split in splits.values() if split.info.license), None)
    return check_license(license, "license=") or check_license(said, "the rows' own information (info.license)")


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
            places = [codes.setdefault(_read_code(said) or own, len(codes)) for said in values.dictionary.to_pylist()]
            batches.append(np.array(places, np.int16)[values.indices.to_numpy()])
        by_split[name] = np.concatenate(batches)
    return list(codes), by_split


def read_edits(splits: Mapping[str, "Dataset"], language: str | None = None) -> EditFacts:
    """Count a set of edits; distances are measured, and a column that tells them is not believed.

    Raises:
        ColumnError: The rows are no edits, or their language or status is none.
    """
    codes, places = read_languages(splits, language)
    features = next(iter(splits.values())).features
    has_status = "boost_status" in features
    said = [name for name in ("boost_status", "boost_reason", *_MADE) if name in features]
    statuses: Counter[tuple[int, str, str]] = Counter()
    runs: Counter[tuple[str, ...]] = Counter()
    distances = {}
    for name, split in splits.items():
        measured = add_edit_distance(split.select_columns([each for each in (*RAW, *PAIR) if each in features]))
        far = np.concatenate([each[EDIT_DISTANCE].to_numpy() for each in _batches(measured, [EDIT_DISTANCE])])
        distances[name] = far.astype(np.int32)
        start = 0
        for table in _batches(split, said) if said else ():
            here = slice(start, start := start + table.num_rows)
            texts = {each: _as_text(table, each) for each in ("boost_status", "boost_reason", *_MADE)}
            if has_status:
                _count_statuses(statuses, places[name][here], texts)
                distances[name][here][texts["boost_status"].to_numpy(False) != "boosted"] = -1  # does not count
            _count_runs(runs, texts)
    place, far = np.concatenate(list(places.values())), np.concatenate(list(distances.values()))

    def counted(code: str, mine: "NDArray[np.bool_]", here: Iterable[int]) -> LanguageFacts:
        of: dict[str, Counter[str]] = {status: Counter() for status in _STATUSES}
        for (at, status, reason), rows in statuses.items():
            of[status][reason] += rows * (at in here)
        boosted, unchanged = of["boosted"].total(), of["unchanged"].total()
        failed = +of["failed"] + of["not_run"]
        return LanguageFacts(code, int(mine.sum()), boosted, unchanged, +of["rejected"], failed, far[mine & (far >= 0)])

    found = [counted(code, place == at, [at]) for at, code in enumerate(codes)]
    unsaid = runs.pop((), 0)
    return EditFacts(
        languages=tuple(sorted((each for each in found if each.rows), key=lambda each: each.name)),
        total=counted("", np.ones(len(place), bool), range(len(codes))),
        splits={name: len(split) for name, split in splits.items()},
        columns={name: kind_of(kind) for name, kind in features.items()},
        runs=tuple(read_run(rows, *made) for made, rows in runs.most_common()) if any(map(any, runs)) else (),
        other_runs=unsaid,
        has_status=has_status,
        samples=tuple(_samples(splits, codes, places, distances)),
    )


def _batches(split: "Dataset", columns: list[str]) -> Iterator[Any]:
    yield from split.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_ROWS)


def _read_code(said: Any) -> str:
    if not said:
        return ""
    try:
        return language_code(said)
    except (ValueError, AttributeError) as error:
        raise ColumnError(
            f"the column 'language' holds {said!r:.80}; use ISO 639 codes such as 'fr', or rename the column if it means something else"
        ) from error


def _as_text(table: Any, name: str) -> Any:
    """A column as text that is not too long; empty where it is missing, null, or of a kind that is no text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    nothing = pa.array([""] * table.num_rows, pa.string())
    try:
        texts = table[name].combine_chunks().cast(pa.string()) if name in table.column_names else nothing
    except pa.ArrowException:  # a structure, a list, bytes
        texts = nothing
    return pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, LONGEST + 1)


def _count_statuses(
    counts: Counter[tuple[int, str, str]], place: "NDArray[np.int16]", texts: Mapping[str, Any]
) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    code = pc.replace_substring_regex(texts["boost_reason"], "(?s):.*", "")
    table = pa.table({"place": place, "status": texts["boost_status"], "code": code})
    for row in table.group_by(["place", "status", "code"]).aggregate([([], "count_all")]).to_pylist():
        if row["status"] not in _STATUSES:
            raise ColumnError(
                f"boost_status holds {row['status']!r:.40}; it is one of {', '.join(_STATUSES)}: boost the rows with midb, or "
                "remove the column"
            )
        counts[row["place"], row["status"], row["code"]] += row["count_all"]


def _count_runs(counts: Counter[tuple[str, ...]], texts: Mapping[str, Any]) -> None:
    import pyarrow as pa

    table = pa.table({name: texts[name] for name in _MADE}).group_by(list(_MADE)).aggregate([([], "count_all")])
    for row in table.to_pylist():
        made = tuple(row[name] for name in _MADE)
        counts[made if made in counts or len(counts) < MOST_RUNS else ()] += row["count_all"]


def _samples(
    splits: Mapping[str, "Dataset"], codes: list[str], places: Mapping[str, Any], distances: Mapping[str, Any]
) -> Iterator[Sample]:
    """Changed rows, as many as possible of each language of each split; what one has too few of, the others give."""
    rows = {
        (name, at): found
        for at in range(len(codes))
        for name in splits
        if len(found := np.flatnonzero((distances[name] > 0) & (places[name] == at)))
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
