import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midb import ColumnError
from midb.files import check_out, read_dataset, write_dataset

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


def odd_rows(n):
    return Dataset.from_list(
        [{"id": f"00{i}", "when": "2024-01-02", "odd": 'NA, "x"\n\\\t<b>é日本', "none": ""} for i in range(n)]
    )


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet", "folder"])
def test_many_rows_and_odd_text_pass_through_every_kind_of_file(tmp_path, ending):
    rows = odd_rows(2500)
    place = str(tmp_path / ("out" if ending == "folder" else f"out.{ending}"))
    check_out(place, rows)
    write_dataset(rows, place)
    assert read_dataset(place)[:] == rows[:]
    assert list(read_dataset(place, stream=True)) == rows.to_list()
    assert [path.name for path in tmp_path.iterdir()] == [place.rsplit("/", 1)[1]]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_a_stream_goes_to_a_file_as_a_dataset_does(tmp_path, ending):
    rows = odd_rows(30)
    for name, dataset in (("whole", rows), ("stream", rows.to_iterable_dataset())):
        write_dataset(dataset, str(tmp_path / f"{name}.{ending}"))
    assert read_dataset(str(tmp_path / f"whole.{ending}"))[:] == read_dataset(str(tmp_path / f"stream.{ending}"))[:]


def test_no_rows_come_back_as_no_rows(tmp_path):
    write_dataset(odd_rows(1).select([]), str(tmp_path / "out.parquet"))
    assert read_dataset(str(tmp_path / "out.parquet")).features == odd_rows(1).features


def test_a_changed_file_of_the_same_name_is_read_again(tmp_path):
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
    stream = read_dataset(str(path), stream=True)
    assert stream.features == dataset.features
    assert list(stream) == dataset.to_list()


def places(tmp_path):
    """The rows 0 to 9 in every kind of source, and a folder with a second split."""
    rows = Dataset.from_dict({"n": list(range(10))})
    for name in ("a.json", "a.jsonl", "a.parquet", "a.csv", "saved"):
        write_dataset(rows, str(tmp_path / name))
    write_dataset(rows.to_iterable_dataset(), str(tmp_path / "pieces"), rows_per_file=4)
    write_dataset(DatasetDict(train=rows, test=rows.select(range(2))), str(tmp_path / "splits"))
    return [tmp_path / name for name in ("a.json", "a.jsonl", "a.parquet", "a.csv", "saved", "pieces", "splits")]


def test_a_split_means_the_same_for_every_kind_of_source(tmp_path):
    for place in places(tmp_path):
        for spec, expected in (
            ("train", range(10)),
            ("train[:3]", range(3)),
            ("train[2:4]+train[7:]", [2, 3, 7, 8, 9]),
            ("train[10%:20%]", [1]),
            ("train[:2]+train[-2:]", [0, 1, 8, 9]),
            ("train[:99]", range(10)),
        ):
            taken = read_dataset(str(place), split=spec)
            assert [int(n) for n in taken["n"]] == list(expected), (place, spec)
            if "%" in spec or "-" in spec:
                with pytest.raises(ColumnError, match="length of a stream"):
                    read_dataset(str(place), split=spec, stream=True)
            else:
                stream = read_dataset(str(place), split=spec, stream=True)
                assert [int(row["n"]) for row in stream] == list(expected), (place, spec)
    assert len(read_dataset(str(tmp_path / "splits"), split="train[:1]+test")) == 3


def test_a_split_or_configuration_that_is_not_there_is_refused_with_what_there_is(tmp_path):
    for place in places(tmp_path):
        for wrong in ("nope", "train[:x]", "train[", ""):
            with pytest.raises(ColumnError, match=r"there is train(, test)?, and parts such as train\[:20\]"):
                read_dataset(str(place), split=wrong)
        with pytest.raises(ColumnError, match="leave out --config fr"):
            read_dataset(str(place), config="fr")


NOW = datetime(2024, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"x", None),
        (Decimal("1.50"), None),
        (timedelta(seconds=1), None),
        ([{"a": b"x"}], None),
        (NOW, Value("timestamp[s, tz=Europe/Rome]")),
        (None, Image()),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
def test_what_text_cannot_hold_is_refused_beforehand_and_parquet_holds_it(tmp_path, value, kind, ending):
    rows = Dataset.from_dict({"odd": [value]}, features=Features({"odd": kind}) if kind else None)
    with pytest.raises(ColumnError, match=r"cannot hold the columns .*'odd'"):
        check_out(str(tmp_path / f"out.{ending}"), rows)
    with pytest.raises(ColumnError, match=r"cannot hold the columns .*'odd'"):
        check_out(str(tmp_path / f"out.{ending}"), odd_rows(1), adds=rows.features)
    for place in (str(tmp_path / "out.parquet"), str(tmp_path / "out")):
        check_out(place, rows)
        write_dataset(rows, place)
        assert read_dataset(place)[:] == rows[:]


def test_what_text_holds_is_not_refused(tmp_path):
    features = Features(
        {"label": ClassLabel(names=["no", "yes"]), "when": Value("timestamp[us]"), "grid": Array2D((1, 2), "int64")}
    )
    rows = Dataset.from_dict({"label": [1], "when": [NOW], "grid": [[[1, 2]]]}, features=features)
    check_out(str(tmp_path / "out.jsonl"), rows)
    write_dataset(rows, str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"label": 1, "when": NOW.isoformat(), "grid": [[1, 2]]}


def test_csv_refuses_nested_columns_and_parquet_objects_without_fields(tmp_path):
    with pytest.raises(ColumnError, match=r"csv cannot hold the columns 'meta' "):
        check_out(str(tmp_path / "out.csv"), Dataset.from_list([{"meta": {"a": 1}}]))
    with pytest.raises(ColumnError, match="no child field"):
        check_out(str(tmp_path / "out.parquet"), Dataset.from_list([{"meta": {}}]))
    with pytest.raises(ColumnError, match="one file"):
        check_out(str(tmp_path / "out.parquet"), DatasetDict(a=odd_rows(1), b=odd_rows(1)))


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    file = tmp_path / "a-file"
    file.write_text("x")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for out, says in {
        "a-file/out.jsonl": "is a file",
        "nowhere/out.jsonl": "does not exist",
        "a-file": "is a file, and without an ending",
        "folder.jsonl": "is a folder",
        "full": "other things",
        "out.xlsx": "unknown ending",
    }.items():
        with pytest.raises((ValueError, OSError), match=says):
            check_out(str(tmp_path / out))
    with pytest.raises(OSError, match="cannot be written"):
        check_out("/proc/out.jsonl")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "volume")
    check_out(str(tmp_path / "volume"), odd_rows(1).to_iterable_dataset())
    with pytest.raises(ValueError, match="mount point"):
        check_out(str(tmp_path / "volume"), odd_rows(1))


def test_rows_that_cannot_fit_on_the_disk_are_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    rows = Dataset.from_dict({"text": ["x" * 2000]})
    for out in ("out.jsonl", "out"):
        with pytest.raises(OSError, match="make room"):
            check_out(str(tmp_path / out), rows)
    check_out(str(tmp_path / "out.parquet"), rows)  # may shrink to anything
    check_out(str(tmp_path / "out.jsonl"), rows.filter(lambda row: False))


def test_source_out_and_journal_lie_in_places_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(odd_rows(1), "in.jsonl")
    write_dataset(odd_rows(1), "in")
    os.link("in.jsonl", "hard.jsonl")
    os.symlink("in", "soft")
    for out, source in (
        ("in.jsonl", "./in.jsonl"),
        ("hard.jsonl", "in.jsonl"),
        ("in/", "in"),
        ("soft", "in"),
        (HUB_OUT, "o/n"),
    ):
        with pytest.raises(ValueError, match="raw data stays"):
            check_out(out, sources=["other", source])
    for out, journal in (
        ("out", "out/"),
        ("out.jsonl", "./out.jsonl"),
        ("out", "out/j"),
        ("run/out.jsonl", "run/"),
        ("soft", "in/j"),
    ):
        Path("run").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="lie in one place"):
            check_out(out, journal=journal)
    with pytest.raises(ValueError, match="is the source"):
        check_out("out", sources=["in.jsonl"], journal=Path("hard.jsonl"))
    check_out("out", sources=["in.jsonl"], journal="s3://bucket/out")
    check_out("out", sources=["in.jsonl"], journal="out.journal")


HUB_OUT = "hf://datasets/o/n"


class Stop(BaseException):
    """As Ctrl-C: no `Exception`."""


@pytest.mark.parametrize("out", ["out.json", "out.jsonl", "out.csv", "out", "pieces"])
def test_nothing_stays_of_a_write_that_failed_and_what_was_there_does(tmp_path, out):
    def rows():
        yield {"a": "new"}
        raise Stop

    class Broken(Dataset):
        def __iter__(self):
            return rows()

        def save_to_disk(self, path, **how):
            Path(path).mkdir()
            raise Stop

    place, old = tmp_path / out, Dataset.from_dict({"a": ["old"]})
    for before in ([], [out]):
        if out == "pieces":
            broken = IterableDataset.from_generator(rows, features=old.features)
        else:
            broken = Broken(old.data)
            broken.with_format = lambda kind, broken=broken: broken
        with pytest.raises(Stop):
            write_dataset(broken, str(place))
        assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
        assert [path.name for path in tmp_path.iterdir() if path.is_file() or any(path.iterdir())] == before
        write_dataset(old.to_iterable_dataset() if out == "pieces" else old, str(place))
    assert read_dataset(str(place))["a"] == ["old"]


def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".out.jsonl.{dead.pid}", f".out.jsonl.{os.getppid()}", ".out.jsonl.mine", f".other.jsonl.{dead.pid}"):
        (tmp_path / name).write_text("x")
    write_dataset(odd_rows(1), str(tmp_path / "out.jsonl"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "out.jsonl", f".out.jsonl.{os.getppid()}", ".out.jsonl.mine", f".other.jsonl.{dead.pid}",
    }  # fmt: skip


STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir")


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_a_folder_survives_a_kill_at_every_step(tmp_path, monkeypatch, kind):
    """From the n-th step on none is possible, as for a killed process: no clean-up changes a thing either."""
    place = tmp_path / "out"
    old, new = (Dataset.from_dict({"a": [word] * n}) for word, n in (("old", 9), ("new", 5)))
    if kind == "stream":
        old, new = old.to_iterable_dataset(), new.to_iterable_dataset()
    real, seen = {name: getattr(os, name) for name in STEPS}, []
    for steps in range(40):
        write_dataset(old, str(place), rows_per_file=2)
        left = iter(range(steps))
        with monkeypatch.context() as patched:
            for name, do in real.items():

                def step(*arguments, do=do, left=left, **how):
                    if next(left, None) is None:
                        raise Stop
                    return do(*arguments, **how)

                patched.setattr(os, name, step)
            try:
                write_dataset(new, str(place), rows_per_file=2)
                is_done = True
            except Stop:
                is_done = False
        try:
            seen.append("".join(sorted({*read_dataset(str(place))["a"]})))
        except ColumnError as error:  # a stream's pieces are of two runs: refused, and never a mixture
            seen.append(str(error))
        check_out(str(place), old)
        if is_done:
            break
    refused = {said for said in seen if said not in ("old", "new")}
    assert {"old", "new"} <= set(seen)
    assert (kind == "stream") == bool(refused)
    assert all("come to its end" in said for said in refused)
    assert (steps > 3, seen[-1]) == (True, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from datasets import Dataset
from midb.files import write_dataset
rename = os.rename
def once(*places):
    rename(*places)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = once
write_dataset(Dataset.from_dict({"a": ["new"]}), sys.argv[1])
"""


def test_a_process_killed_while_it_exchanges_two_folders_leaves_the_old_one(tmp_path):
    place = tmp_path / "out"
    write_dataset(Dataset.from_dict({"a": ["old"]}), str(place))
    assert subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False).returncode == -9
    assert not place.exists()
    assert read_dataset(str(place))["a"] == ["old"]
    write_dataset(Dataset.from_dict({"a": ["new"]}), str(place))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_dataset(str(place))["a"] == ["new"]


def test_a_stream_is_written_in_pieces_as_its_rows_come(tmp_path):
    out = tmp_path / "out"
    seen = []

    def rows(n):
        for at in range(n):
            seen.append(sorted(path.name for path in out.glob("*")))
            yield {"n": at, "text": str(at)}

    features = Features({"n": Value("int64"), "text": Value("string")})
    stream = IterableDataset.from_generator(rows, gen_kwargs={"n": 7}, features=features)
    check_out(str(out), stream)
    write_dataset(stream, str(out), rows_per_file=3)
    assert [name for name in seen[4] if name[0] != "."] == ["part-00000.parquet"]
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", *(f"part-0000{at}.parquet" for at in range(3))]
    assert read_dataset(str(out))["n"] == list(range(7))
    assert read_dataset(str(out)).features == features
    shorter = IterableDataset.from_generator(rows, gen_kwargs={"n": 2})  # and it does not say its columns
    check_out(str(out), shorter)
    write_dataset(shorter, str(out), rows_per_file=3)
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "part-00000.parquet"]
    assert [row["n"] for row in read_dataset(str(out), stream=True)] == [0, 1]


def test_each_split_of_a_stream_is_a_folder_and_their_order_stays(tmp_path):
    out = str(tmp_path / "out")
    splits = {name: odd_rows(n).to_iterable_dataset() for name, n in (("train", 3), ("expert", 1), ("empty", 1))}
    splits["empty"] = splits["empty"].take(0)
    write_dataset(IterableDatasetDict(splits), out, rows_per_file=2)
    back = read_dataset(out)
    assert {name: len(split) for name, split in back.items()} == {"train": 3, "expert": 1, "empty": 0}
    assert list(back) == ["train", "expert", "empty"]
    assert back["train"][:] == odd_rows(3)[:]
    write_dataset(IterableDatasetDict(train=splits["train"]), out)
    assert [path.name for path in tmp_path.joinpath("out").iterdir() if path.is_dir()] == ["train"]


def test_rows_of_a_stream_that_do_not_agree_are_refused_with_words(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"a": None}] * 5 + [{"a": "x"}]))
    with pytest.raises(ColumnError, match="declare its features"):
        write_dataset(stream, str(tmp_path / "out"), rows_per_file=2)
    empty = IterableDataset.from_generator(lambda: iter([]))
    with pytest.raises(ColumnError, match="holds no rows"):
        write_dataset(empty, str(tmp_path / "none"))


def test_a_stream_and_a_saved_dataset_do_not_share_a_folder(tmp_path):
    out = str(tmp_path / "out")
    write_dataset(odd_rows(2), out)
    with pytest.raises(ValueError, match="no stream's"):
        check_out(out, odd_rows(1).to_iterable_dataset())


def test_a_link_stays_a_link_to_what_is_written(tmp_path):
    for name in ("real.jsonl", "real"):
        link = tmp_path / f"link-{name}"
        write_dataset(odd_rows(1), str(tmp_path / name))
        link.symlink_to(tmp_path / name)
        write_dataset(odd_rows(2), str(link))
        assert link.is_symlink()
        assert len(read_dataset(str(tmp_path / name))) == 2
