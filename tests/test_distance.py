"""The distance is CoachLM's, the filter keeps the farthest of each language, and both refuse what they cannot rank."""

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.distance import add_edit_distance, filter_by_edit_distance
from midb.errors import ColumnError
from midb.release import load_coachlm, load_training
from midb.schema import PAIR, RAW

COLUMNS = (*RAW, *PAIR)
edits = st.tuples(*[st.text(max_size=12)] * 6)


def dataset(rows, **columns) -> Dataset:
    """Edits from tuples of raw instruction, raw input, raw response, instruction, input, response."""
    return Dataset.from_dict({**{column: [row[at] for row in rows] for at, column in enumerate(COLUMNS)}, **columns})


def far(*distances, **columns) -> Dataset:
    """One edit for each distance, all in the response."""
    return dataset([("Sum up", "a text", "", "Sum up", "a text", "x" * d) for d in distances], **columns)


def distances(ds) -> list[int]:
    return list(add_edit_distance(ds)["edit_distance"])


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def joined(instruction, given, response) -> str:
    return (
        f"Instruction: {instruction} Input: {given} Response: {response}"
        if given
        else f"Instruction: {instruction} Response: {response}"
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(edits, min_size=1, max_size=20))
def test_distance_is_plain_levenshtein_over_coachlms_text(rows):
    assert distances(dataset(rows)) == [levenshtein(joined(*row[:3]), joined(*row[3:])) for row in rows]


@settings(max_examples=15, deadline=None)
@given(st.lists(edits, min_size=1, max_size=20))
def test_a_pair_is_at_distance_zero_from_itself(rows):
    assert distances(dataset([row[:3] * 2 for row in rows])) == [0] * len(rows)


@settings(max_examples=15, deadline=None)
@given(st.lists(edits, min_size=1, max_size=20))
def test_distance_does_not_depend_on_the_direction(rows):
    assert distances(dataset(rows)) == distances(dataset([(*row[3:], *row[:3]) for row in rows]))


def test_an_empty_input_leaves_no_label_behind():
    added = dataset([("Add", "", "3", "Add", "1 and 2", "3"), ("Add", "", "3", "Add", "", "3")])
    assert distances(added) == [len(" Input: 1 and 2"), 0]


def test_characters_are_code_points_in_every_script():
    assert distances(dataset([("はい", "", "いいえ", "はい", "", "はい"), ("a", "", "🙂", "a", "", "🙃")])) == [2, 1]


def test_a_null_input_counts_as_an_empty_one():
    mixed = dataset([("Add", None, "3", "Add", "", "3"), ("Add", "1", "3", "Add", None, "3")])
    assert distances(mixed) == [0, len(" Input: 1")]
    never = (
        mixed.remove_columns(["raw_input", "input"]).add_column("raw_input", [None] * 2).add_column("input", [None] * 2)
    )
    assert distances(never) == [0, 0]


def test_a_null_response_is_refused_with_its_row():
    with pytest.raises(ColumnError, match="row 1: raw_response is null"):
        add_edit_distance(dataset([("a", "", "b", "a", "", "c"), ("a", "", None, "a", "", "c")]))


def test_a_distance_that_came_with_the_data_is_measured_anew():
    measured = add_edit_distance(far(5, 0, edit_distance=[99, 99]))
    assert list(measured["edit_distance"]) == [5, 0]
    assert measured.column_names.count("edit_distance") == 1


def test_other_columns_the_order_of_rows_and_the_format_stay():
    ds = far(1, 2, 3, id=[7, 8, 9]).select([2, 0]).with_format("numpy")
    measured = add_edit_distance(ds)
    assert measured["id"][:].tolist() == [9, 7]
    assert measured["edit_distance"][:].tolist() == [3, 1]
    assert measured.format["type"] == "numpy"
    assert set(measured[:]) == {*ds.column_names, "edit_distance"}
    assert set(add_edit_distance(ds.with_format("numpy", ["id"]))[:]) == {"id", "edit_distance"}
    assert isinstance(add_edit_distance(ds.with_format(None))[:]["id"], list)
    assert measured.features == Features({**ds.features, "edit_distance": Value("int64")})


def test_rows_beyond_one_batch_keep_their_own_distance():
    measured = distances(
        Dataset.from_dict(
            {column: ["same"] * 12_001 for column in RAW + PAIR[:2]}
            | {"response": ["same" + "x" * (at % 7) for at in range(12_001)]}
        )
    )
    assert measured == [at % 7 for at in range(12_001)]


def test_an_empty_dataset_gets_the_column_too():
    assert add_edit_distance(far(1).select([])).features["edit_distance"] == Value("int64")
    assert len(filter_by_edit_distance(far(1, language=["fr"]).select([]), 3)) == 0


def test_a_stream_is_measured_as_it_is_read():
    stored = far(4, 0, 2)
    for stream in (stored.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(stored))):
        measured = add_edit_distance(stream)
        assert isinstance(measured, IterableDataset)
        assert [row["edit_distance"] for row in measured] == [4, 0, 2]
    assert add_edit_distance(stored.to_iterable_dataset()).features["edit_distance"] == Value("int64")


def test_every_split_is_measured():
    measured = add_edit_distance(DatasetDict({"train": far(1), "test": far(2)}))
    assert [measured[split]["edit_distance"][0] for split in ("train", "test")] == [1, 2]


def test_a_second_measurement_has_the_same_fingerprint():
    ds = far(1, 2)
    assert add_edit_distance(ds)._fingerprint == add_edit_distance(ds)._fingerprint


def test_a_missing_twin_is_named_with_what_was_found():
    ds = far(1).remove_columns("raw_response")
    with pytest.raises(ColumnError, match=r"no column raw_response \(found: raw_instruction.*as_edits"):
        add_edit_distance(ds)
    with pytest.raises(ColumnError, match="no column raw_response"):
        add_edit_distance(ds.to_iterable_dataset())
    with pytest.raises(ColumnError, match="no column raw_response"):
        list(add_edit_distance(IterableDataset.from_generator(lambda: iter(ds))))


def test_a_column_that_is_not_text_is_refused():
    ds = far(1).remove_columns("input").add_column("input", [["a", "b"]], feature=List(Value("string")))
    with pytest.raises(ColumnError, match="'input' is List"):
        add_edit_distance(ds)
    with pytest.raises(ColumnError, match="not"):
        list(add_edit_distance(IterableDataset.from_generator(lambda: iter(ds))))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["fr", "ja", "th", None]), st.integers(0, 6)), min_size=1, max_size=40),
    st.integers(1, 12),
)
def test_filter_keeps_the_k_farthest_of_each_language_in_order(rows, k):
    ds = far(*(d for _, d in rows), language=[language for language, _ in rows], id=list(range(len(rows))))
    kept = filter_by_edit_distance(ds, k)
    assert list(kept["id"]) == sorted(kept["id"])
    for language in {language for language, _ in rows}:
        all_of_it = [(d, at) for at, (each, d) in enumerate(rows) if each == language]
        stay = [
            (d, at)
            for each, d, at in zip(kept["language"], kept["edit_distance"], kept["id"], strict=True)
            if each == language
        ]
        assert stay == [row for row in all_of_it if row in stay]
        assert len(stay) == min(k, len(all_of_it))
        dropped = set(all_of_it) - set(stay)
        # A dropped edit is nearer, or as near and later.
        assert all((d, -at) < (e, -before) for d, at in dropped for e, before in stay)


STATUSES = ["boosted", "rejected", None, "failed", "boosted", "unchanged", "not_run", "boosted"]


def said(capsys):
    """What was printed, less the progress bars."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]


def test_only_edits_that_stand_are_ranked_and_the_others_are_counted_on_stderr(capsys):
    boosted = far(1, 90, 5, 80, 3, 0, 70, 2, language=["fr"] * 8, boost_status=STATUSES, id=list(range(8)))
    assert list(filter_by_edit_distance(boosted, 2)["id"]) == [2, 4]  # a row without a status is an expert's edit
    assert said(capsys) == ["left out by boost_status: 1 failed, 1 not_run, 1 rejected, 1 unchanged"]
    assert list(filter_by_edit_distance(boosted, 0.5)["id"]) == [2, 4]  # half of the four that stand
    assert list(filter_by_edit_distance(boosted, 1.0)["id"]) == [0, 2, 4, 7]
    capsys.readouterr()
    for statuses, kept in ((("boosted", "unchanged"), [0, 2, 4, 5, 7]), ("rejected", [1, 2]), ((), [2])):
        assert list(filter_by_edit_distance(boosted, 99, statuses=statuses)["id"]) == kept
    capsys.readouterr()
    assert len(filter_by_edit_distance(boosted.remove_columns("boost_status"), 99)) == 8
    assert len(filter_by_edit_distance(boosted.select([0, 2, 4]), 99)) == 3
    assert said(capsys) == []  # where nothing is left out there is nothing to say


def test_a_language_in_which_no_edit_stands_and_every_split_are_counted(capsys):
    boosted = far(1, 2, 3, language=["fr", "ja", "ja"], boost_status=["boosted", "failed", "rejected"])
    kept = filter_by_edit_distance(DatasetDict(train=boosted, test=boosted.select([1])), 0.5)
    assert {name: list(split["language"]) for name, split in kept.items()} == {"train": ["fr"], "test": []}
    assert kept["test"].features == kept["train"].features
    assert said(capsys) == ["left out by boost_status: 1 failed, 1 rejected", "left out by boost_status: 1 failed"]


def test_a_status_that_nobody_writes_cannot_command_the_terminal(capsys):
    odd = far(1, 2, language=["fr"] * 2, boost_status=["boosted", "\x1b[31m\nred"])
    assert len(filter_by_edit_distance(odd, 9)) == 1
    assert said(capsys) == [r"left out by boost_status: 1 '\x1b[31m\nred'"]
    many = far(1, language=["fr"]).add_column("boost_status", [["boosted"]], feature=List(Value("string")))
    with pytest.raises(ColumnError, match="'boost_status' is List"):
        filter_by_edit_distance(many, 9)


def test_of_equal_edits_the_earlier_stays():
    kept = filter_by_edit_distance(far(3, 5, 3, 3, language=["fr"] * 4, id=[0, 1, 2, 3]), 2)
    assert list(kept["id"]) == [0, 1]


@pytest.mark.parametrize(
    ("share", "rows", "kept"), [(0.3, 10, 3), (1.0, 10, 10), (0.29, 100, 29), (0.01, 10, 1), (0.3, 2301, 690)]
)
def test_a_share_is_of_each_language(share, rows, kept):
    ds = far(*([1] * rows), *([9] * rows), language=["ja"] * rows + ["fr"] * rows)
    assert sorted(filter_by_edit_distance(ds, share)["language"]) == ["fr"] * kept + ["ja"] * kept


def test_one_is_a_row_and_one_point_zero_is_everything():
    ds = far(1, 2, 3, language=["fr"] * 3)
    assert len(filter_by_edit_distance(ds, 1)) == 1
    assert len(filter_by_edit_distance(ds, 1.0)) == 3
    assert len(filter_by_edit_distance(ds, 10**30)) == 3


@pytest.mark.parametrize("k", [0, -1, True, False, 0.0, 1.5, -0.1, float("nan"), "720", None])
def test_a_k_that_means_nothing_is_refused(k):
    with pytest.raises(ValueError, match="k is"):
        filter_by_edit_distance(far(1, language=["fr"]), k)


def test_any_column_can_tell_languages_apart():
    coded = far(1, 5, 3, lang=[0, 0, 1]).cast_column("lang", ClassLabel(names=["fr", "ja"]))
    assert list(filter_by_edit_distance(coded, 1, by="lang")["edit_distance"]) == [5, 3]


def test_without_a_language_column_the_caller_says_so():
    ds = far(1, 2)
    with pytest.raises(ColumnError, match=r"no column 'language'.*by=None"):
        filter_by_edit_distance(ds, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(filter_by_edit_distance(ds, 1, by=None)["edit_distance"]) == [2]
        filter_by_edit_distance(far(1, 2, language=["fr", "fr"]), 1, by=None)


def test_pooled_languages_are_warned_about():
    ds = far(1, 2, 3, language=["ja", "fr", "ja"], source=["a", "a", "b"])
    with pytest.warns(UserWarning, match=r"by=None ranks several languages together") as caught:
        assert list(filter_by_edit_distance(ds, 1, by=None)["edit_distance"]) == [3]
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"by='source' ranks several"):
        filter_by_edit_distance(ds, 1, by="source")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filter_by_edit_distance(ds, 1)
        left = far(1, 2, 3, language=["ja", "fr", "ja"], boost_status=["boosted", "failed", "boosted"])
        filter_by_edit_distance(left, 1, by=None)  # of the edits that stand all are Japanese


def test_every_split_is_filtered_by_itself():
    kept = filter_by_edit_distance(
        DatasetDict({"train": far(1, 2, language=["fr"] * 2), "test": far(9, language=["fr"])}), 1
    )
    assert isinstance(kept, DatasetDict)
    assert {split: list(part["edit_distance"]) for split, part in kept.items()} == {"train": [2], "test": [9]}


def test_a_stream_cannot_be_filtered_and_the_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"IterableDataset; load the dataset without streaming=True"):
        filter_by_edit_distance(far(1, language=["fr"]).to_iterable_dataset(), 1)


def test_importing_the_room_loads_nothing_heavy():
    code = "import sys, midb.distance, midb.release; print({'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.shared
def test_english_reproduces_the_published_distances_and_their_top_720(shared: Path):
    english = load_coachlm(shared / "data/coachlm")
    measured = distances(english)
    assert sum(ours == theirs for ours, theirs in zip(measured, english["published_distance"], strict=True)) == 2290
    published = sorted(range(len(english)), key=lambda row: -english["published_distance"][row])[:720]
    assert set(filter_by_edit_distance(english, 720)["id"]) == set(published)


@pytest.mark.shared
def test_every_language_has_the_top_720_of_the_vectors(shared: Path):
    expected = json.loads((shared / "vectors/top720.json").read_text())
    for name, vector in expected.items():
        language = (
            load_coachlm(shared / "data/coachlm") if name == "English" else load_training(shared / "data/midb", name)
        )
        language = language.add_column("row", list(range(len(language))))  # the vectors count rows of the file
        assert sum(distances(language)) == vector["tmpl"]["sum_dist"], name
        rows = ",".join(map(str, filter_by_edit_distance(language, 720)["row"]))
        assert hashlib.sha256(rows.encode()).hexdigest()[:16] == vector["tmpl"]["sha256_top720_rowidx"], name
