"""Which edits to train on: those that stand, and of these the ones that changed the most characters.

Knows the six text columns of an edit, one distance over them, and `boost_status`. Does not know who made the edits or what
is trained on them, and never reads a distance that came with the data: the one published with MIDB is the English one in
every file.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

from midb.errors import ColumnError
from midb.progress import say
from midb.schema import PAIR, RAW, AnyDataset, Batch

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

StoredDataset = TypeVar("StoredDataset", "Dataset", "DatasetDict")  # not a stream

EDIT_DISTANCE = "edit_distance"
BOOSTED = ("boosted",)  # the statuses whose edit stands, if the caller names no others
# Rows at a time: few enough for their texts to stay in the processor's cache, enough to keep every core busy.
BATCH_ROWS = 5_000


def add_edit_distance(dataset: AnyDataset) -> AnyDataset:
    """Measure how many characters lie between each pair and the pair it came from.

    Reads: the pair columns and their `raw_` twins; a null input counts as `""`.  Adds: `edit_distance` (characters); a
    column of that name is measured anew, never trusted.  Rows: unchanged.

    Args:
        dataset: Edits; a stream is measured as it is read.

    Raises:
        ColumnError: A pair column or its `raw_` twin is missing, or a value is not text.

    Source: CoachLM's published distance (2290 of 2301 values equal): Levenshtein over the characters of the whole pair,
    written as CoachLM writes it for training.
    """
    if isinstance(dataset, dict):  # DatasetDict and IterableDatasetDict
        return type(dataset)({name: add_edit_distance(split) for name, split in dataset.items()})
    return _measured(dataset)


def filter_by_edit_distance(
    dataset: StoredDataset, k: int | float, *, by: str | None = "language", statuses: Collection[str] = BOOSTED
) -> StoredDataset:
    """Keep the `k` edits of each language that changed the most, in their order.

    Reads: the pair columns and their `raw_` twins, the column `by`, and `boost_status` where there is one: boosted rows
    that were rejected, failed, not run or left unchanged hold their raw pair and are dropped first. A line on stderr
    counts them.
    Adds: `edit_distance` (characters).
    Rows: n → min(k, n) per language of the n that stand, in each split; of two edits that changed as much, the earlier stays.

    Args:
        dataset: Edits, not streamed: the farthest are known only when all are measured.
        k: How many to keep per language; a float in (0, 1] is a share of each language's rows that stand, to the nearest
            row and at least one. So `1` is one row and `1.0` is all of them.
        by: The column that tells languages apart; None ranks all rows together.
        statuses: The values of `boost_status` that stand. A row without a status is an expert's edit and always stands.

    Raises:
        ColumnError: A pair column or its `raw_` twin is missing, a value is not text, or there is no column `by`.
        TypeError: The dataset is streamed, or not a dataset.
        ValueError: `k` is below 1, or a share outside (0, 1].

    Warns:
        UserWarning: Several languages are ranked together. The same edit is fewer characters in Japanese than in
            French, so a pooled filter keeps hardly any of the former.

    Source: MIDB's distance filter (top 720 of 2301 per language); the distance is CoachLM's.
    """
    from datasets import Dataset, DatasetDict

    _check_k(k)
    if isinstance(dataset, DatasetDict):
        how: Any = {"by": by, "statuses": statuses}
        return DatasetDict({split: filter_by_edit_distance(part, k, **how) for split, part in dataset.items()})
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"the filter ranks all rows at once and got a {type(dataset).__name__}; "
            "load the dataset without streaming=True, or take a part: Dataset.from_list(list(stream.take(10_000)))"
        )
    if by is not None and by not in dataset.column_names:
        raise ColumnError(
            f"there is no column {by!r} (found: {', '.join(dataset.column_names)}); name the column that tells "
            "languages apart (by=...), or rank all rows together (by=None) where there is only one"
        )
    measured, left_out = standing(add_edit_distance(dataset), statuses)
    if left_out:
        say(left_out_line(left_out))
    return measured.select(_farthest(measured, k, by))


def standing(edits: "Dataset", statuses: Collection[str] = BOOSTED) -> tuple["Dataset", dict[str, int]]:
    """The rows whose edit stands, and how many others there are of each status.

    Reads: `boost_status`, where there is one; a null is the status of an expert's edit, which stands.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    statuses = {statuses} if isinstance(statuses, str) else statuses
    if "boost_status" not in edits.column_names:
        return edits, {}
    _check_text(edits.features, ("boost_status",))
    status = edits.select_columns("boost_status").with_format("arrow")[:]["boost_status"].cast(pa.string())
    stands = pc.or_(pc.is_null(status), pc.is_in(status, value_set=pa.array(sorted(statuses), pa.string())))
    left_out = {each["values"]: each["counts"] for each in status.filter(pc.invert(stands)).value_counts().to_pylist()}
    return (edits.select(np.flatnonzero(stands.to_numpy())) if left_out else edits), left_out


def left_out_line(left_out: Mapping[str, int]) -> str:
    """The counts of `standing` as a line; a status that no booster writes is quoted."""
    counts = (f"{count:,} {name if name.isidentifier() else repr(name)}" for name, count in sorted(left_out.items()))
    return f"left out by boost_status: {', '.join(counts)}"


def _measured(split: Any) -> Any:
    from datasets import Features, IterableDataset, Value, concatenate_datasets

    if split.features is not None:
        check_edit_columns(split.features)
        _check_text(split.features, (*RAW, *PAIR))
    if isinstance(split, IterableDataset):
        features = split.features and Features({**split.features, EDIT_DISTANCE: Value("int64")})
        return split.map(_measure_lists, batched=True, with_indices=True, features=features)
    if EDIT_DISTANCE in split.column_names:
        split = split.remove_columns(EDIT_DISTANCE)
    if not len(split):  # `map` would leave it as it is
        return split.add_column(EDIT_DISTANCE, [], feature=Value("int64"))
    # The map sees six columns and writes one, which is then set beside the others: the texts are read once and copied
    # nowhere, and the new column lies on disk like them (`add_column` would hold it in memory, thrice to hash it).
    texts = split.select_columns([*RAW, *PAIR]).with_format("arrow")
    measured = texts.map(_measure_table, batched=True, batch_size=BATCH_ROWS, with_indices=True, desc="Edit distance")
    wider = concatenate_datasets([split, measured], axis=1, split=split.split)
    form = split.format
    columns = None if form["columns"] == split.column_names else [*form["columns"], EDIT_DISTANCE]
    return wider.with_format(form["type"], columns, form["output_all_columns"], **form["format_kwargs"])


def _measure_table(edits: "pa.Table", rows: list[int]) -> "pa.Table":
    """Batch function: the distances of stored edits, as a table of one column."""
    import numpy as np
    import pyarrow as pa
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cpdist

    for column in (*RAW, *PAIR):
        if not column.endswith("input") and edits[column].null_count:
            row = rows[edits[column].is_null().index(True).as_py()]
            raise ColumnError(f"row {row}: {column} is null; drop such rows first, or say what they hold")
    before, after = _joined(edits, RAW), _joined(edits, PAIR)
    # Levenshtein counts characters, so the texts leave Arrow's UTF-8 bytes here and not earlier.
    distances = cpdist(before.to_pylist(), after.to_pylist(), scorer=Levenshtein.distance, dtype=np.int64, workers=-1)
    return pa.table({EDIT_DISTANCE: distances})


def _measure_lists(batch: Batch, rows: list[int]) -> Batch:
    """Batch function: the same for a stream, whose columns are known only when a batch arrives."""
    import pyarrow as pa

    check_edit_columns(batch)
    try:
        edits = pa.table({column: pa.array(batch[column], pa.large_string()) for column in (*RAW, *PAIR)})
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise ColumnError(
            f"an edit is six columns of text, and one is not ({error}); cast or join it to text first"
        ) from error
    return _measure_table(edits, rows).to_pydict()


def _joined(edits: "pa.Table", columns: tuple[str, ...]) -> "pa.ChunkedArray":
    """CoachLM's training text, in which an empty input leaves no trace."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Large strings: a batch of long documents may exceed the two gigabytes of ordinary ones.
    large = pa.large_string()
    instruction, given, response = (pc.fill_null(edits[c].cast(large), "") for c in columns)
    start, label, end, nothing = (pa.scalar(text, large) for text in ("Instruction: ", " Input: ", " Response: ", ""))
    labelled = pc.if_else(pc.equal(given, nothing), nothing, pc.binary_join_element_wise(label, given, nothing))
    return pc.binary_join_element_wise(start, instruction, labelled, end, response, nothing)


def _farthest(measured: "Dataset", k: int | float, by: str | None) -> "np.ndarray":
    """The rows to keep, ascending."""
    import numpy as np

    distance = measured.select_columns(EDIT_DISTANCE).with_format("arrow")[:][EDIT_DISTANCE].to_numpy()
    group = np.zeros(len(measured), int) if by is None else _codes(measured, by)
    if by != "language" and "language" in measured.column_names:
        together = np.unique(np.stack([group, _codes(measured, "language")]), axis=1)
        if together.shape[1] > len(np.unique(group)):
            warnings.warn(
                f"by={by!r} ranks several languages together, and a character weighs differently in each; "
                "by='language' ranks each for itself",
                stacklevel=3,
            )
    sizes = np.bincount(group)
    if isinstance(k, Integral):
        quotas = np.minimum(sizes, min(int(k), len(measured)))
    else:
        quotas = np.maximum(1, np.rint(sizes * float(k)).astype(int))
    # Group after group, each from far to near; lexsort is stable, so equal distances keep the order of their rows.
    order = np.lexsort((-distance, group))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < np.repeat(quotas, sizes)])


def _codes(dataset: "Dataset", column: str) -> "np.ndarray":
    """Each row's value as a small number; null is a value like any other."""
    values = dataset.select_columns(column).with_format("arrow")[:][column].combine_chunks()
    return values.dictionary_encode(null_encoding="encode").indices.to_numpy()


def _check_k(k: int | float) -> None:
    whole = isinstance(k, Integral) and not isinstance(k, bool) and k >= 1
    share = isinstance(k, Real) and not isinstance(k, Integral) and 0 < k <= 1
    if not (whole or share):
        raise ValueError(f"k is {k!r}; give a number of rows per language (720) or a share of them (0.3)")


def _check_text(features: Mapping[str, Any], columns: Sequence[str]) -> None:
    from datasets import Value

    text = {"string", "large_string", "string_view", "null"}  # null: a column without a single value
    for column in columns:
        feature = features[column]
        if not (isinstance(feature, Value) and feature.dtype in text):
            raise ColumnError(f"column {column!r} is {feature}, not text; cast it to Value('string') first")


def check_edit_columns(columns: Collection[str]) -> None:
    """Raise ColumnError unless all six text columns of an edit are there."""
    missing = [column for column in (*RAW, *PAIR) if column not in columns]
    if missing:
        raise ColumnError(
            f"no column {', '.join(missing)} (found: {', '.join(columns)}); an edit is {', '.join(PAIR)} and their "
            "raw_ twins: boost the pairs first, or bring your columns into this shape with midb.as_edits"
        )
