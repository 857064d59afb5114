import json

import pytest
from datasets import Dataset, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midb import ColumnError
from midb.files import check_fits, read_dataset, write_dataset

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"a": text, "b": st.floats(allow_nan=False), "c": st.none() | text}), min_size=1
    )
)
def test_every_value_comes_back_as_it_was(tmp_path, ending, rows):
    path = tmp_path / f"rows.{ending}"
    write_dataset(Dataset.from_list([{**row, "d": {"e": [row["a"]]}} for row in rows]), str(path))
    assert read_dataset(str(path)).to_list() == [{**row, "d": {"e": [row["a"]]}} for row in rows]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet", "folder"])
def test_many_rows_and_odd_text_pass_through_every_kind_of_file(tmp_path, ending):
    rows = Dataset.from_list(
        [{"id": f"00{i}", "when": "2024-01-02", "odd": 'NA, "x"\n\\\t<b>é日本', "none": ""} for i in range(2500)]
    )
    place = str(tmp_path / ("out" if ending == "folder" else f"out.{ending}"))
    write_dataset(rows, place)
    assert read_dataset(place)[:] == rows[:]
    assert [path.name for path in tmp_path.iterdir()] == [place.rsplit("/", 1)[1]]


def test_a_changed_file_of_the_same_name_is_read_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    for word in ("one", "three"):
        path.write_text(json.dumps({"a": word}))
        assert read_dataset(str(path))["a"] == [word]


def test_a_column_may_begin_with_nulls_and_a_late_column_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"a": None}] * 12_000 + [{"a": "x", "b": 1}]))
    dataset = read_dataset(str(path))
    assert (dataset[0], dataset[12_000]) == ({"a": None, "b": None}, {"a": "x", "b": 1})
    assert dataset.features["a"] == Value("string")


def test_csv_refuses_nested_columns_beforehand():
    with pytest.raises(ColumnError, match=r"\['meta'\]"):
        check_fits(Dataset.from_list([{"meta": {"a": 1}}]), "out.csv")
