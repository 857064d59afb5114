import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import datasets
import fakehub
import fsspec
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, List, Value, load_dataset
from fake_openai import FakeOpenAI
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from test_booster import dataset, improve

from midb import Booster, ColumnError, GenerationError, Judge, MidbError, MissingExtraError, as_pairs
from midb.actors import check_room
from midb.cluster import Workers, map_on_cluster, rows_to_do
from midb.generators import Completion, FunctionGenerator, Journal, OpenAIGenerator
from midb.judging.comparisons import as_comparisons
from midb.ledger import Ledger
from midb.prompts import parse_pair

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What datasets are read from shards is kept for the test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def number_of(messages):
    """Which of `dataset`'s rows is asked."""
    return int(parse_pair(messages[-1]["content"]).instruction.split(":")[0].split()[-1])


class Model:
    """Knows its job and remembers the numbers of the rows it was asked; `sick` ones fail, at a `dead` one it dies."""

    def __init__(self, sick=(), dead=None):
        self.asked, self.sick, self.dead = [], set(sick), dead

    def __call__(self, messages):
        number = number_of(messages)
        if number == self.dead:
            raise GenerationError("the engine is dead; start another")
        self.asked.append(number)
        return Completion("", "error", error="http_500: sick") if number in self.sick else improve(messages)


def booster(model, name="model", **settings):
    return Booster(generator=FunctionGenerator(model, name=name), **settings)


def shards(folder):
    """First row → name."""
    return {int(path.name.split("-")[0]): path.name for path in sorted(Path(folder).glob("*.parquet"))}


def rows_kept(folder):
    """The numbers of the rows that are in a ledger of equal rows."""
    ranges = [path.name.split(".")[0].split("-") for path in Path(folder).glob("*.parquet")]
    return sorted(row for start, stop in ranges for row in range(int(start), int(stop)))


@dataclass(frozen=True)
class Lengths:
    """A batch function of one's own."""

    name: str = "lengths"

    def identity(self):
        return self.name

    def __call__(self, batch):
        return {"length": [None if text is None else len(text) for text in batch["text"]]}


@dataclass(frozen=True)
class Declared(Lengths):
    """One that says its types."""

    def adds(self):
        return {"length": Value("int32"), "notes": List(Value("string")), "nobody": Value("string")}

    def __call__(self, batch):
        return {
            **super().__call__(batch),
            "notes": [None for _ in batch["text"]],
            "nobody": [None for _ in batch["text"]],
        }


def test_it_gives_what_map_gives(tmp_path):
    rows = dataset(50, meta=[{"a": number} for number in range(50)], label=[0, 1] * 25)
    rows = rows.cast_column("label", ClassLabel(names=["no", "yes"]))
    edits = map_on_cluster(rows, booster(improve), tmp_path, rows_per_shard=16)
    mapped = booster(improve).map(rows)
    assert edits.to_list() == mapped.to_list()
    assert edits.features == mapped.features
    assert edits.column_names == mapped.column_names
    assert edits.cache_files, "it is memory-mapped"
    assert not any(Path(each["filename"]).is_relative_to(tmp_path) for each in edits.cache_files), "from a copy"
    assert list(shards(tmp_path)) == [0, 16, 32, 48]


def test_a_second_run_asks_nothing(tmp_path):
    model = Model()
    first = map_on_cluster(dataset(30), booster(model), tmp_path, rows_per_shard=7)
    names = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = map_on_cluster(dataset(30).shuffle(seed=1).sort("id"), booster(model), str(tmp_path), rows_per_shard=7)
    assert again.to_list() == first.to_list()
    assert model.asked == list(range(30))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == names


def test_a_shard_says_what_it_is(tmp_path):
    step = booster(Model(sick=[6]))
    map_on_cluster(dataset(10), step, tmp_path, rows_per_shard=5)
    assert [name.split(".")[:2] for name in shards(tmp_path).values()] == [
        ["000000000000-000000000005", step.identity()],
        ["000000000005-000000000010", step.identity()],
    ]
    about, schema = Ledger.open(tmp_path, step.identity(), 5).find(shards(tmp_path)[5])
    assert about["failed"] == [1]
    assert "boost_status" in schema.names
    assert json.loads((tmp_path / f"{step.identity()}.json").read_text())["maker"] == "Booster"
    assert load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")["id"][:] == list(range(10))


def test_rows_added_at_the_end_cost_only_themselves(tmp_path):
    model = Model()
    map_on_cluster(dataset(20), booster(model), tmp_path, rows_per_shard=8)
    model.asked.clear()
    edits = map_on_cluster(dataset(30), booster(model), tmp_path, rows_per_shard=8)
    assert model.asked == list(range(16, 30))
    assert edits["id"][:] == list(range(30))


def test_a_changed_row_or_column_or_type_or_configuration_never_meets_old_shards(tmp_path):
    model = Model()

    def asked(rows, **settings):
        model.asked.clear()
        edits = map_on_cluster(rows, booster(model, **settings), tmp_path, rows_per_shard=5)
        assert edits["raw_response"][:] == rows["response"][:]
        return model.asked

    assert asked(dataset(10)) == list(range(10))
    changed = dataset(10, response=["Perché sì, è così."] * 7 + ["Un'altra risposta, più lunga."] * 3)
    assert asked(changed) == [5, 6, 7, 8, 9]
    assert asked(dataset(10, note=["a"] * 10)) == list(range(10))
    assert asked(dataset(10).cast_column("id", Value("int32"))) == list(range(10))
    assert asked(dataset(10), name="another") == list(range(10))
    assert asked(dataset(10), fields="response") == list(range(10))
    assert asked(dataset(10)) == asked(changed) == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "text": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
                "number": st.integers(-(2**60), 2**60),
                "real": st.none() | st.floats(allow_nan=False),
                "nested": st.lists(st.fixed_dictionaries({"role": st.text(max_size=2), "at": st.datetimes()}), max_size=2),
            }
        ),
        min_size=1,
        max_size=12,
    )
)  # fmt: skip
def test_any_rows_come_through_and_are_known_again(rows):
    folder = f"memory://{random.getrandbits(64)}"
    given = Dataset.from_list(rows)
    got = map_on_cluster(given, Lengths(), folder, rows_per_shard=5)
    assert got.remove_columns("length").to_list() == given.to_list()
    moved = datasets.concatenate_datasets([given.select(range(len(given) - 1, len(given))), given]).select(
        range(1, len(given) + 1)
    )  # the same rows, lying otherwise
    before = fsspec.filesystem("memory").find(folder)
    map_on_cluster(moved.with_format("numpy"), Lengths(), folder, rows_per_shard=5)
    assert fsspec.filesystem("memory").find(folder) == before


def test_a_step_that_says_its_types_gives_every_shard_the_same(tmp_path):
    texts = [None] * 4 + ["abc"]
    got = map_on_cluster(Dataset.from_dict({"text": texts}), Declared(), tmp_path, rows_per_shard=2)
    assert got.features == {"text": Value("string"), **Declared().adds()}
    ledger = Ledger.open(tmp_path, "lengths", 2)
    assert len({str(ledger.find(name)[1]) for name in shards(tmp_path).values()}) == 1


def test_shards_with_nulls_only_take_the_types_of_the_others(tmp_path):
    texts = [None, None, "abc", "de", None]
    got = map_on_cluster(Dataset.from_dict({"text": texts}), Lengths(), tmp_path, rows_per_shard=2)
    assert got.to_dict() == {"text": texts, "length": [None, None, 3, 2, None]}
    assert got.features == {"text": Value("string"), "length": Value("int64")}


@dataclass(frozen=True)
class Odd(Lengths):
    """Returns text in one batch and numbers in another, and loses a row in a third."""

    def __call__(self, batch):
        first = batch["text"][0]
        values = {"text": ["a", "b"], "number": [1, 2], "mixed": [1, "b"], "lost": [1]}[first]
        return {"odd": values}


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ("number", "rows 2 and on have other types .*; cast the dataset, or let Odd say its types"),
        ("mixed", "rows 2 and on: Odd returned values in 'odd' that are not of one type .*; make them one"),
        ("lost", r"Odd returned 1 rows in 'odd' for 2; a batch function must return each row"),
    ],
)
def test_a_step_that_breaks_its_word_leaves_no_shard(tmp_path, second, complaint):
    texts = Dataset.from_dict({"text": ["text", "", second, "", "text", ""]})
    with pytest.raises(MidbError, match=complaint):
        map_on_cluster(texts, Odd(), tmp_path, rows_per_shard=2)
    assert list(shards(tmp_path)) == [0]


def test_an_engine_that_dies_keeps_what_it_finished(tmp_path):
    model = Model(dead=17)
    with pytest.raises(GenerationError, match="the engine is dead"):
        map_on_cluster(dataset(30), booster(model), tmp_path, rows_per_shard=5)
    assert rows_kept(tmp_path) == list(range(15))
    healthy = Model()
    map_on_cluster(dataset(30), booster(healthy), tmp_path, rows_per_shard=5)
    assert healthy.asked == list(range(15, 30))


def test_rows_that_failed_are_asked_again_on_request_and_alone(tmp_path):
    model = Model(sick=[3, 12, 13])
    first = map_on_cluster(dataset(20), booster(model), tmp_path, rows_per_shard=5)
    assert Counter(first["boost_status"]) == {"boosted": 17, "failed": 3}
    model.asked.clear()
    map_on_cluster(dataset(20), booster(model), tmp_path, rows_per_shard=5)
    assert model.asked == []
    model.sick = {13}
    second = map_on_cluster(dataset(20), booster(model), tmp_path, rows_per_shard=5, retry_failed=True)
    assert model.asked == [3, 12, 13]
    assert [row["id"] for row in second if row["boost_status"] == "failed"] == [13]
    model.sick = set()
    third = map_on_cluster(dataset(20), booster(model), tmp_path, rows_per_shard=5, retry_failed=True)
    assert model.asked == [3, 12, 13, 13]
    assert third.to_list() == booster(improve, name="model").map(dataset(20)).to_list()
    assert rows_kept(tmp_path) == list(range(20))


class Overtaken(Model):
    """While it is asked for the first time, another process works on the same ledger."""

    def __init__(self, other, **health):
        super().__init__(**health)
        self.other = other

    def __call__(self, messages):
        if not self.asked:
            self.other()
        return super().__call__(messages)


@pytest.mark.parametrize(
    ("before", "other", "mine", "left"),
    [
        ([1, 2, 3], [3], [1, 2], []),  # what the other healed stays, and what it did not is healed
        ([1, 2, 3], [2, 3], [1, 3], [3]),
        ([0, 1, 2, 3, 4], [4], [0, 4], [4]),  # a whole range that had failed
        (None, [1, 2], [2, 3], [2]),  # both began with nothing
    ],
)
def test_of_two_that_ask_for_the_same_rows_neither_undoes_what_the_other_healed(tmp_path, before, other, mine, left):
    def ask(model):
        return map_on_cluster(dataset(5), booster(model), tmp_path, retry_failed=True)

    if before:
        ask(Model(sick=before))
    model = Overtaken(lambda: ask(Model(sick=other)), sick=mine)
    edits = ask(model)
    assert model.asked == (before or [0, 1, 2, 3, 4])
    assert [row["id"] for row in edits if row["boost_status"] == "failed"] == left
    again = Model()
    ask(again)
    assert again.asked == left


def made_anew(folder, model):
    for path in folder.glob("*.parquet"):
        path.unlink()
    if model is not None:
        map_on_cluster(dataset(5), booster(model), folder)


def test_a_retry_forgets_no_failure_that_came_since(tmp_path):
    map_on_cluster(dataset(5), booster(Model(sick=[1])), tmp_path)
    model = Overtaken(lambda: made_anew(tmp_path, Model(sick=[1, 4])))
    edits = map_on_cluster(dataset(5), booster(model), tmp_path, retry_failed=True)
    assert model.asked == [1]
    assert [row["id"] for row in edits if row["boost_status"] == "failed"] == [4]
    assert [*rows_to_do(dataset(5), booster(model), tmp_path, retry_failed=True).values()] == [1]


def test_a_shard_that_goes_away_under_a_retry_is_said_and_made_anew_by_the_next_call(tmp_path):
    map_on_cluster(dataset(5), booster(Model(sick=[1])), tmp_path)
    with pytest.raises(MidbError, match=r"rows 0 and on: their shard .* went away .*; the same call makes it anew"):
        map_on_cluster(dataset(5), booster(Overtaken(lambda: made_anew(tmp_path, None))), tmp_path, retry_failed=True)
    assert map_on_cluster(dataset(5), booster(Model()), tmp_path)["id"][:] == [0, 1, 2, 3, 4]


def test_each_job_of_an_array_does_its_share_and_the_last_call_gathers_them(tmp_path):
    model = Model()
    for job in range(3):
        model.asked.clear()
        share = map_on_cluster(dataset(50), booster(model), tmp_path, rows_per_shard=4, shard=(job, 3))
        own = [row for row in range(50) if row // 4 % 3 == job]
        assert share["id"][:] == model.asked == own
    model.asked.clear()
    assert map_on_cluster(dataset(50), booster(model), tmp_path, rows_per_shard=4)["id"][:] == list(range(50))
    assert model.asked == []


def test_a_job_without_rows_gives_no_rows(tmp_path):
    share = map_on_cluster(dataset(3), booster(Model()), tmp_path, shard=(1, 2))
    assert (len(share), list(share)) == (0, [])
    declared = map_on_cluster(Dataset.from_dict({"text": ["a"]}), Declared(), tmp_path, shard=(1, 2))
    assert declared.features == {"text": Value("string"), **Declared().adds()}


def numbered(count):
    """Rows as a generator gives them: no features are known."""
    for number in range(count):
        yield {"prompt": f"Domanda {number}: perché il cielo è blu?", "completion": "Perché sì, è così.", "n": number}


def test_a_stream_gives_a_stream_over_its_shards(tmp_path):
    model, rows = Model(), as_pairs(IterableDataset.from_generator(numbered, gen_kwargs={"count": 30}))
    edits = map_on_cluster(rows, booster(model), tmp_path, rows_per_shard=8)
    assert isinstance(edits, IterableDataset)
    assert model.asked == [row["n"] for row in edits] == list(range(30))
    assert [row["boost_status"] for row in edits.skip(20).take(2)] == ["boosted"] * 2
    assert list(map_on_cluster(rows, booster(model), tmp_path, rows_per_shard=8)) == list(edits)
    assert len(model.asked) == 30
    share = map_on_cluster(rows, booster(model), tmp_path, rows_per_shard=8, shard=(1, 2))
    assert [row["n"] for row in share] == [*range(8, 16), *range(24, 30)]


def test_ranges_of_a_stream_cross_the_borders_of_its_files(tmp_path):
    for part in range(2):
        rows = dataset(90).select(range(part * 45, part * 45 + 45))
        rows.to_parquet(tmp_path / f"{part}.parquet", batch_size=20)  # row groups, whose borders are crossed too
    files, folder = [str(tmp_path / f"{part}.parquet") for part in range(2)], tmp_path / "ledger"
    rows = as_pairs(load_dataset("parquet", data_files=files, split="train", streaming=True))
    model = Model(dead=70)
    with pytest.raises(GenerationError, match="the engine is dead"):
        map_on_cluster(rows, booster(model), folder, rows_per_shard=30)
    assert rows_kept(folder) == list(range(60))
    healthy = Model()
    edits = map_on_cluster(rows, booster(healthy), folder, rows_per_shard=30)
    assert healthy.asked == list(range(60, 90))
    assert list(shards(folder)) == [0, 30, 60]
    assert list(edits) == booster(improve, name="model").map(dataset(90)).to_list()


def test_a_stream_asks_as_it_reads(tmp_path):
    def watched():
        for number in range(40):
            read.append(number)
            yield {"text": "a" * number}

    @dataclass(frozen=True)
    class Reader(Lengths):
        def __call__(self, batch):
            ahead.append(len(read) - len(batch["text"][-1]))
            return super().__call__(batch)

    read, ahead = [], []
    map_on_cluster(IterableDataset.from_generator(watched), Reader(), tmp_path, rows_per_shard=5)
    assert len(ahead) == 8
    assert max(ahead) <= 2 * 5


def test_a_stream_whose_types_show_late_is_one_dataset_in_the_end(tmp_path):
    def late():
        for number in range(6):
            yield {"text": None if number < 2 else "abc", "more": None if number < 4 else [number]}

    got = map_on_cluster(IterableDataset.from_generator(late), Lengths(), tmp_path, rows_per_shard=2)
    assert list(got) == [{**row, "length": None if row["text"] is None else 3} for row in late()]
    assert got.features == {"text": Value("string"), "more": List(Value("int64")), "length": Value("int64")}


def test_each_split_has_a_folder(tmp_path):
    both = map_on_cluster(DatasetDict(train=dataset(5), test=dataset(3)), booster(Model()), tmp_path, rows_per_shard=2)
    assert {name: split["id"][:] for name, split in both.items()} == {"train": [0, 1, 2, 3, 4], "test": [0, 1, 2]}
    assert both["test"].split == dataset(3).split
    assert rows_kept(tmp_path / "test") == [0, 1, 2]


def test_a_split_that_is_no_dataset_is_refused_before_another_is_paid_for(tmp_path):
    model = Model()
    with pytest.raises(TypeError, match="a list is no dataset"):
        map_on_cluster({"train": dataset(3), "test": [{"text": "a"}]}, booster(model), tmp_path / "ledger")
    assert (model.asked, (tmp_path / "ledger").exists()) == ([], False)


def test_a_judge_judges_as_with_map(tmp_path):
    def judged(messages):
        return "I prefer the long one. [[1]]" if "A" * 9 in str(messages) else "Equal. [[0]]"

    questions = {"id": list(range(9)), "question": [f"What is {n}?" for n in range(9)]}
    one = Dataset.from_dict({**questions, "answer": ["A" * n for n in range(2, 11)]})
    two = Dataset.from_dict({**questions, "answer": ["B" * n for n in range(2, 11)]})
    rows = as_comparisons(one, two)
    judge = Judge(generator=FunctionGenerator(judged))
    verdicts = map_on_cluster(rows, judge, tmp_path, rows_per_shard=4)
    assert verdicts.to_list() == rows.map(judge, batched=True).to_list()
    assert set(verdicts["verdict_ab"]) == {"a", "tie"}


def test_another_number_of_rows_per_shard_is_refused_before_anything_is_asked(tmp_path):
    model = Model()
    map_on_cluster(dataset(10), booster(model), tmp_path, rows_per_shard=5)
    with pytest.raises(ValueError, match=r"begun with shards of 5 rows .*; use the same, or another folder"):
        map_on_cluster(dataset(10), booster(model), tmp_path, rows_per_shard=4)
    assert len(model.asked) == 10


@pytest.mark.parametrize("how", [{"rows_per_shard": 0}, {"shard": (2, 2)}, {"shard": (-1, 2)}])
def test_what_cannot_be_is_refused(tmp_path, how):
    with pytest.raises(ValueError, match="cannot be; use rows_per_shard >= 1"):
        map_on_cluster(dataset(2), booster(improve), tmp_path, **how)
    for wrong in ({"count": 0}, {"count": 1, "gpus": -1}, {"count": 1, "cpus": 0}):
        with pytest.raises(ValueError, match="cannot be; use count >= 1"):
            Workers(**wrong)
    with pytest.raises(TypeError, match=r"has no identity\(\); give a batch function that has"):
        map_on_cluster(dataset(2), len, tmp_path)
    with pytest.raises(TypeError, match="a list is no dataset"):
        map_on_cluster([{"text": "a"}], Lengths(), tmp_path)


def test_columns_that_the_step_cannot_read_are_refused_at_its_first_batch(tmp_path):
    with pytest.raises(ColumnError, match="as_pairs"):
        map_on_cluster(Dataset.from_dict({"prompt": ["a"]}), booster(improve), tmp_path)


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_place_that_cannot_be_a_ledger_is_refused_before_anything_is_asked(tmp_path, place):
    (tmp_path / "a file").write_text("")
    model = Model()
    with pytest.raises(MidbError, match=r"cannot be used: .*; give a folder or URL"):
        map_on_cluster(dataset(2), booster(model), tmp_path / ("a file" if place == "a file" else "a file/b"))
    assert model.asked == []


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (
            "nowhere://bucket/run",
            r"the ledger nowhere://bucket/run cannot be used: Protocol not known: nowhere; give a folder, or a URL",
        ),
        ("mall://bucket/run", r"cannot be used: Install mallfs to access a mall; give a folder, or a URL"),
    ],
)
def test_a_url_that_nobody_here_can_open_is_refused_with_the_way_out(place, complaint):
    fsspec.register_implementation("mall", "mallfs.Mall", clobber=True, errtxt="Install mallfs to access a mall")
    with pytest.raises(MidbError, match=complaint):
        map_on_cluster(dataset(2), booster(Model()), place)


def test_the_bar_tells_of_a_finished_range_while_the_next_is_at_work(tmp_path, capsys):
    said = []

    def listen(messages):
        if number_of(messages) % 5 == 0:
            said.append(capsys.readouterr().err)
        return Completion("", "error", error="http_500: sick") if number_of(messages) == 3 else improve(messages)

    map_on_cluster(dataset(15), booster(listen), tmp_path, rows_per_shard=5)
    assert ["5/15" in said[1], "1 failed" in said[1], "10/15" in said[2]] == [True] * 3, said


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a *[1]? b"
    assert map_on_cluster(dataset(5), booster(Model()), folder, rows_per_shard=2)["id"][:] == [0, 1, 2, 3, 4]
    rows = as_pairs(IterableDataset.from_generator(numbered, gen_kwargs={"count": 5}))
    assert len(list(map_on_cluster(rows, booster(Model()), folder, rows_per_shard=2))) == 5


@pytest.mark.parametrize("harm", [b"", b"PAR1 and then the disk was pulled out"])
def test_a_shard_that_another_hand_cut_off_is_done_again(tmp_path, harm):
    model = Model()
    first = map_on_cluster(dataset(10), booster(model), tmp_path, rows_per_shard=5)
    (tmp_path / shards(tmp_path)[5]).write_bytes(harm)
    model.asked.clear()
    again = map_on_cluster(dataset(10), booster(model), tmp_path, rows_per_shard=5)
    assert model.asked == [5, 6, 7, 8, 9]
    assert again.to_list() == first.to_list()


class Shop(MemoryFileSystem):
    """An object store: objects are put whole, in one request that may be refused; nothing is renamed."""

    protocol = ("oss",)
    _strip_protocol = classmethod(lambda cls, path: "/" + path.removeprefix("oss://").strip("/"))
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    puts: list = []  # noqa: RUF012
    refused = None

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if len(self.puts) == self.refused:
            raise PermissionError("the key has expired")
        self.puts.append(path)
        super().pipe_file(path, value, mode, **kwargs)

    def mv(self, *paths, **kwargs):
        raise AssertionError("an object store cannot rename")


class Shelf(MemoryFileSystem):
    """A remote file system, such as sftp: a file that is being written is seen half, so it is renamed when whole."""

    protocol = ("shelf",)
    _strip_protocol = classmethod(lambda cls, path: "/" + path.removeprefix("shelf://").strip("/"))
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def mv(self, path1, path2, **kwargs):
        assert Path(path1).name.startswith(".")
        super().mv(path1, path2, **kwargs)

    def pipe_file(self, path, value, **kwargs):
        raise AssertionError("this would be seen half")


@pytest.mark.parametrize("kind", [Shop, Shelf, MemoryFileSystem])
def test_a_ledger_in_a_store_is_a_ledger(kind):
    protocol = kind.protocol if isinstance(kind.protocol, str) else kind.protocol[0]
    fsspec.register_implementation(protocol, kind, clobber=True)
    folder, model = f"{protocol}://bucket/ledger", Model(sick=[7])
    first = map_on_cluster(dataset(10), booster(model), folder, rows_per_shard=4)
    names = [os.path.basename(name) for name in kind().find("/bucket/ledger")]
    assert [name[:25] for name in names if name.endswith(".parquet")] == [
        f"{start:012}-{stop:012}" for start, stop in ((0, 4), (4, 8), (8, 10))
    ]
    assert len(names) == 3 + 1  # no draft is left
    assert first["id"][:] == list(range(10))
    again = map_on_cluster(dataset(10), booster(model), folder, rows_per_shard=4)
    assert again.to_list() == first.to_list()
    assert model.asked == list(range(10))
    rows = as_pairs(IterableDataset.from_generator(numbered, gen_kwargs={"count": 10}))
    assert [row["n"] for row in map_on_cluster(rows, booster(model), folder + "2", rows_per_shard=4)] == list(range(10))
    model.sick.clear()
    model.asked.clear()
    healed = map_on_cluster(dataset(10), booster(model), folder, rows_per_shard=4, retry_failed=True)
    assert model.asked == [7]
    assert set(healed["boost_status"]) == {"boosted"}  # and no copy of the shard as it was
    assert len(list(kind().find("/bucket/ledger"))) == 3 + 1


def test_a_store_that_refuses_is_an_error_and_the_next_call_goes_on(monkeypatch):
    fsspec.register_implementation("oss", Shop, clobber=True)
    monkeypatch.setattr(Shop, "puts", [])
    monkeypatch.setattr(Shop, "refused", 3)
    model = Model()
    with pytest.raises(MidbError, match=r"the key has expired; .* the same call goes on from them"):
        map_on_cluster(dataset(20), booster(model), "oss://bucket/refused", rows_per_shard=4)
    monkeypatch.setattr(Shop, "refused", None)
    model.asked.clear()
    edits = map_on_cluster(dataset(20), booster(model), "oss://bucket/refused", rows_per_shard=4)
    assert model.asked == list(range(8, 20))  # the first put is the ledger's own file
    assert edits["id"][:] == list(range(20))


class Locked(MemoryFileSystem):
    """A store that may refuse to be read: first what a shard says, later the whole of it."""

    protocol = ("locked",)
    _strip_protocol = classmethod(lambda cls, path: "/" + path.removeprefix("locked://").strip("/"))
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    locked = ()

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb" and "footer" in self.locked:
            raise PermissionError("the key may not read")
        return super()._open(path, mode, **kwargs)

    def cat_file(self, path, **kwargs):
        if path.endswith(".parquet") and "rows" in self.locked:
            raise PermissionError("the key may not read")
        return super().cat_file(path, **kwargs)


@pytest.mark.parametrize("locked", ["footer", "rows"])
def test_a_store_that_may_not_be_read_is_refused_with_the_way_out(monkeypatch, locked):
    fsspec.register_implementation("locked", Locked, clobber=True)
    folder = f"locked://bucket/{locked}"
    map_on_cluster(dataset(5), booster(Model(sick=[1])), folder)
    monkeypatch.setattr(Locked, "locked", (locked,))
    with pytest.raises(
        MidbError, match=r"ledger /bucket/.* the key may not read; give a folder or URL that can be read"
    ):
        map_on_cluster(dataset(5), booster(Model()), folder, retry_failed=True)


class Remembered(MemoryFileSystem):
    """As s3fs: what is not in the last listing of a folder is not there, until that is forgotten. Others use memory://."""

    protocol = ("remembered",)
    _strip_protocol = classmethod(lambda cls, path: "/" + path.removeprefix("remembered://").strip("/"))
    listings: dict = {}  # noqa: RUF012

    def ls(self, path, detail=True, **kwargs):
        self.listings[path] = super().ls(path, detail=False)
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        listed = self.listings.get(self._parent(path))
        if mode == "rb" and listed is not None and path not in listed:
            raise FileNotFoundError(path)
        return super()._open(path, mode, **kwargs)

    def invalidate_cache(self, path=None):
        self.listings.clear()


def test_what_others_add_is_found_whatever_was_listed_before():
    fsspec.register_implementation("remembered", Remembered, clobber=True)
    map_on_cluster(dataset(5), booster(Model(), name="another"), "memory://remembered")
    assert len(fsspec.filesystem("remembered").ls("/remembered")) == 2
    map_on_cluster(dataset(5), booster(Model()), "memory://remembered")
    assert list(rows_to_do(dataset(5), booster(Model()), "remembered://remembered").values()) == [0]


def test_a_whole_ledger_may_be_read_only_and_one_that_is_not_costs_nothing(monkeypatch):
    fsspec.register_implementation("oss", Shop, clobber=True)
    model, folder = Model(), "oss://bucket/read-only"
    first = map_on_cluster(dataset(20), booster(model), folder, rows_per_shard=4)
    monkeypatch.setattr(Shop, "refused", len(Shop.puts))
    model.asked.clear()
    assert map_on_cluster(dataset(20), booster(model), folder, rows_per_shard=4).to_list() == first.to_list()
    with pytest.raises(MidbError, match="the key has expired"):
        map_on_cluster(dataset(24), booster(model), folder, rows_per_shard=4)
    assert model.asked == []


def test_what_is_left_is_known_without_a_call_or_a_file(tmp_path):
    both, model, folder = DatasetDict(train=dataset(5), test=dataset(3)), Model(sick=[4]), tmp_path / "ledger"
    assert list(rows_to_do(both, booster(model), folder, rows_per_shard=2).values()) == [2, 2, 1, 2, 1]
    assert (model.asked, folder.exists()) == ([], False)
    map_on_cluster(both, booster(model), folder, rows_per_shard=2)
    done = {f"{split}/{name}": 0 for split in both for name in shards(folder / split).values()}
    assert rows_to_do(both, booster(model), folder, rows_per_shard=2) == done
    again = rows_to_do(both, booster(model), folder, rows_per_shard=2, retry_failed=True)
    assert again == done | {f"train/{shards(folder / 'train')[4]}": 1}


def test_a_ledger_that_holds_only_rows_of_others_is_begun_anew_not_without_a_word(tmp_path, capsys):
    def says(look, model):
        capsys.readouterr()
        look(dataset(4), model, tmp_path, rows_per_shard=2)
        return "holds rows of other configurations and none of this one" in capsys.readouterr().err

    one, other = booster(Model()), booster(Model(), name="another")
    assert [says(rows_to_do, one), says(map_on_cluster, one), says(map_on_cluster, one)] == [False] * 3
    assert [says(rows_to_do, other), says(map_on_cluster, other)] == [True] * 2
    assert [says(rows_to_do, other), says(map_on_cluster, other), says(map_on_cluster, one)] == [False] * 3


def test_a_look_at_the_rows_of_others_hides_nothing_that_is_added_after_it():
    fsspec.register_implementation("remembered", Remembered, clobber=True)
    mine, others = (Ledger.open(f"{kind}://looked-at", "mine", 5) for kind in ("remembered", "memory"))
    map_on_cluster(dataset(5), booster(Model()), "memory://looked-at")
    assert mine.holds_only_others()
    name = mine.name(0, 5, "digest")
    others.write(name, dataset(5).with_format("arrow")[:], {"failed": []})
    assert mine.find(name) is not None


def test_a_full_disk_is_an_error_that_leaves_no_half_shard(tmp_path):
    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            map_on_cluster(Dataset.from_dict({"text": texts}), Lengths(), tmp_path, rows_per_shard=2)
        except MidbError as error:
            said.send(str(error))

    dice = random.Random(1)
    texts = ["short"] * 4 + ["".join(map(chr, dice.choices(range(0x4E00, 0x9FFF), k=50_000)))] * 2
    heard, said = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    said.close()
    assert "cannot be used: OSError" in heard.recv()
    child.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards(tmp_path).values(), "lengths.json"]
    assert list(shards(tmp_path)) == [0, 2]


DRIVER = """if True:
    import sys
    from datasets import disable_progress_bars
    from test_booster import dataset, improve
    from test_cluster import Model, booster
    from midb.cluster import map_on_cluster

    class Told(Model):
        def __call__(self, messages):
            answer = super().__call__(messages)
            print(self.asked[-1], flush=True)
            return answer

    if __name__ == "__main__":
        disable_progress_bars()
        folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        map_on_cluster(dataset(count), booster(Told()), folder, rows_per_shard=size)
"""


def driver(folder, count, size, script=DRIVER, **environment):
    command = [sys.executable, "-c", script, *map(str, (folder, count, size))]
    environment = {**os.environ, "PYTHONPATH": str(HERE), **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_death_costs_only_the_range_in_hand(tmp_path, how):
    count, size = 400, 20
    rng = random.Random(how)
    for _ in range(1 if how == signal.SIGKILL else 3):
        child = driver(tmp_path, count, size)
        seen = [int(child.stdout.readline()) for _ in range(rng.randint(10, 150))]
        child.send_signal(how)
        seen += [int(line) for line in child.communicate()[0].split()]
        kept = rows_kept(tmp_path)
        assert set(range(seen[-1] // size * size)) <= set(kept)  # all ranges before the one in hand
        assert len(kept) == len(set(kept))
    model = Model()
    edits = map_on_cluster(dataset(count), booster(model), tmp_path, rows_per_shard=size)
    assert model.asked == [row for row in range(count) if row not in set(kept)]
    assert edits.to_list() == booster(improve, name="model").map(dataset(count)).to_list()
    assert rows_kept(tmp_path) == list(range(count))


@pytest.mark.slow
def test_two_processes_on_one_ledger_do_each_others_work_and_no_harm(tmp_path):
    children = [driver(tmp_path, 60, 2) for _ in range(2)]
    for child in children:
        assert (child.communicate()[1], child.returncode) == ("", 0)
    model = Model()
    edits = map_on_cluster(dataset(60), booster(model), tmp_path, rows_per_shard=2)
    assert model.asked == []
    assert edits["id"][:] == list(range(60))
    assert len(list(tmp_path.iterdir())) == 30 + 1  # no draft is left


STREAM = (
    DRIVER.split("    if __name__")[0]
    + """
    from datasets import load_dataset
    from midb import as_pairs
    if __name__ == "__main__":
        disable_progress_bars()
        rows = as_pairs(load_dataset("tester/raw", split="train", streaming=True))
        edits = map_on_cluster(rows, booster(Told()), sys.argv[1], rows_per_shard=int(sys.argv[3]))
        print([row["id"] for row in edits])
"""
)


@pytest.mark.slow
def test_a_stream_from_the_hub_goes_on_after_a_kill_and_fills_no_disk(tmp_path):
    count, size, folder, home = 400, 20, tmp_path / "ledger", tmp_path / "home"
    server, _, address = fakehub.start(str(tmp_path / "hub"))
    hub = {
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }
    push = "from test_booster import dataset; dataset(400).push_to_hub('tester/raw', num_shards=5)"
    with closing(server.socket):
        pushing = driver(folder, count, size, push, **hub)
        assert (pushing.communicate()[1][-2000:], pushing.returncode)[1] == 0
        child = driver(folder, count, size, STREAM, **hub)
        for _ in range(150):
            child.stdout.readline()
        child.kill()
        child.communicate()
        kept = rows_kept(folder)
        assert len(kept) >= 140
        again = driver(folder, count, size, STREAM, **hub)
        *asked, whole = again.communicate()[0].splitlines()
    assert list(map(int, asked)) == [row for row in range(count) if row not in set(kept)]
    assert json.loads(whole) == rows_kept(folder) == list(range(count))
    assert sum(path.stat().st_size for path in home.rglob("*.arrow")) == 0


# Not getrusage, which begins with what the parent process had.
PEAK = """if True:
    import sys
    from datasets import IterableDataset, disable_progress_bars, load_dataset
    from test_cluster import Lengths
    from midb.cluster import map_on_cluster

    def peak():
        return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""

FLAT = (
    PEAK
    + """
    def rows(count):
        for number in range(count):
            if number in (count // 10, count - 1):
                print(peak(), flush=True)
            yield {"text": f"{number:08}" * 250}

    if __name__ == "__main__":
        disable_progress_bars()
        stream = IterableDataset.from_generator(rows, gen_kwargs={"count": int(sys.argv[2])})
        map_on_cluster(stream, Lengths(), sys.argv[1], rows_per_shard=int(sys.argv[3]))
"""
)


@pytest.mark.slow
def test_memory_stays_flat_whatever_the_length_of_a_stream(tmp_path):
    early, late = map(int, driver(tmp_path, 150_000, 1000, FLAT).communicate()[0].split())  # 300 MB of text
    assert len(shards(tmp_path)) == 150
    assert late - early < 50_000  # KiB


FROM_HUB = (
    PEAK
    + """
    if __name__ == "__main__":
        disable_progress_bars()
        count, size = int(sys.argv[2]), int(sys.argv[3])
        stream = load_dataset("tester/long", f"rows{count}", split="train", streaming=True)
        lengths = map_on_cluster(stream, Lengths(), sys.argv[1], rows_per_shard=size)
        print(sum(row["length"] == 4000 for row in lengths), peak())
"""
)


@pytest.mark.slow
def test_a_stream_from_the_hub_takes_as_much_memory_whatever_its_length(tmp_path):
    home, size, begin = tmp_path / "home", 500, "from datasets import Dataset; "
    server, _, address = fakehub.start(str(tmp_path / "hub"))
    hub = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test", "HF_HOME": str(home)}
    hub["HF_HUB_OFFLINE"] = "0"
    push = begin + "import sys; count, size = map(int, sys.argv[2:]); " + (
        "rows = Dataset.from_dict({'text': [f'{number:08}' * 500 for number in range(count)]}); "
        "rows.push_to_hub('tester/long', f'rows{count}', num_shards=count // size)"
    )  # fmt: skip
    peaks = []
    with closing(server.socket):
        for count in (2_000, 40_000):  # 8 and 160 MB of text
            pushing = driver(tmp_path, count, size, push, **hub)
            assert (pushing.communicate()[1][-2000:], pushing.returncode)[1] == 0
            read, peak = driver(tmp_path / str(count), count, size, FROM_HUB, **hub).communicate()[0].split()
            assert int(read) == count
            peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 50_000  # KiB


def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        port = nobody.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(MidbError, match=rf"no Ray answers at RAY_ADDRESS={address} .*; begin it with `ray start"):
            map_on_cluster(dataset(2), booster(improve), tmp_path, workers=1)


# From here on with Ray: real nodes, each a process as on a machine of its own.


@pytest.fixture(scope="module")
def cluster():
    """A head that has no room for a worker."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))  # the workers find the modules that this process has
        patch.setenv("CUDA_VISIBLE_DEVICES", "7")  # what a worker would inherit
        patch.delenv("OMP_NUM_THREADS", raising=False)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def two_nodes(cluster):
    """Two living nodes with room for one worker each."""
    for node in [each for each in cluster.worker_nodes if not each.remaining_processes_alive()]:
        cluster.remove_node(node, allow_graceful=False)
    for _ in range(2 - len(cluster.worker_nodes)):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return cluster


@dataclass(frozen=True)
class Deadly:
    """A model that takes its worker, the worker's node or its own engine along at a row, the first time it is asked."""

    folder: str
    worker: int | None = None
    node: int | None = None
    engine: int | None = None

    @cached_property
    def built(self):
        self.note(f"built {os.getpid()}")
        return True

    def note(self, line):
        with open(f"{self.folder}/notes", "a") as file:
            file.write(f"{line}\n")

    def notes(self, word):
        lines = Path(self.folder, "notes").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith(word)]

    def first(self, what):
        try:
            os.mkdir(f"{self.folder}/{what} was lost")
        except FileExistsError:
            return False
        return True

    def __call__(self, messages):
        assert self.built
        number = number_of(messages)
        if number == self.worker and self.first("worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.node and self.first("node"):
            assert Path(f"/proc/{os.getppid()}/comm").read_text() == "raylet\n"
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # until the node takes this process along
        if number == self.engine and self.first("engine"):
            raise GenerationError("the engine is dead; start another")
        self.note(f"asked {number}")
        return improve(messages)


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_node_cost_what_they_had_in_hand(two_nodes, tmp_path):
    folder, model = tmp_path / "ledger", Deadly(str(tmp_path), worker=34, engine=58, node=77)
    edits = map_on_cluster(dataset(200), booster(model), folder, workers=2, rows_per_shard=10)
    assert edits.to_list() == booster(improve, name="model").map(dataset(200)).to_list()
    assert rows_kept(folder) == list(range(200))
    assert {path.name for path in tmp_path.glob("* was lost")} == {
        f"{each} was lost" for each in ("worker", "engine", "node")
    }
    asked = Counter(model.notes("asked"))
    assert set(asked) == set(range(200))
    assert {row for row in asked if asked[row] > 1} == {*range(30, 34), *range(50, 58), *range(70, 77)}
    assert len(model.notes("built")) == len(set(model.notes("built")))  # one engine for each worker, whatever it does
    assert len(model.notes("built")) in (4, 5)


CLUSTER = """if True:
    import sys
    from datasets import IterableDataset, disable_progress_bars
    from test_booster import dataset
    from test_cluster import Model, booster
    from midb.cluster import map_on_cluster

    def rows(count):
        for row in dataset(count):
            print(row["id"], flush=True)
            yield row

    if __name__ == "__main__":
        disable_progress_bars()
        stream = IterableDataset.from_generator(rows, gen_kwargs={"count": int(sys.argv[2])})
        map_on_cluster(stream, booster(Model()), sys.argv[1], workers=2, rows_per_shard=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_driver_costs_what_its_workers_had_in_hand(two_nodes, tmp_path):
    count, size = 400, 20
    stream = IterableDataset.from_generator(lambda: iter(dataset(count)))
    child = driver(tmp_path, count, size, CLUSTER, RAY_ADDRESS=two_nodes.address)
    for _ in range(200):
        child.stdout.readline()
    child.kill()
    child.communicate()
    kept = rows_kept(tmp_path)
    assert len(kept) >= 100
    model = Model()
    edits = map_on_cluster(stream, booster(model), tmp_path, rows_per_shard=size)
    assert model.asked == [row for row in range(count) if row not in set(kept)]
    assert list(edits) == booster(improve, name="model").map(dataset(count)).to_list()
    assert rows_kept(tmp_path) == list(range(count))


@dataclass(frozen=True)
class Elsewhere(Lengths):
    """Is another one in each process."""

    def identity(self):
        return str(os.getpid())


@dataclass(frozen=True)
class Room(Lengths):
    """Tells what a worker may take of its machine."""

    def __call__(self, batch):
        return {
            name: [os.environ.get(name)] * len(batch["text"]) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        }


@pytest.mark.slow
def test_a_worker_that_asked_for_no_gpu_sees_none_and_has_a_thread_for_each_core(two_nodes, tmp_path):
    (row,) = map_on_cluster(Dataset.from_dict({"text": ["a"]}), Room(), tmp_path, workers=1)
    assert row == {"text": "a", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_what_cannot_go_well_on_a_cluster_is_said_and_not_waited_for(two_nodes, tmp_path, monkeypatch):
    import ray

    rows, texts = dataset(40), Dataset.from_dict({"text": ["a"] * 10})
    with pytest.raises(
        MidbError, match=r"3 workers of 1 CPU and 0 GPU each do not fit: the cluster has room for 2 .*; start"
    ):
        map_on_cluster(rows, booster(improve), tmp_path / "a", workers=3)
    with pytest.raises(MidbError, match="1 workers of 1 CPU and 2 GPU each do not fit: the cluster has room for 0"):
        map_on_cluster(rows, booster(improve), tmp_path / "a", workers=Workers(1, gpus=2))
    with pytest.raises(ColumnError, match="as_pairs"):
        map_on_cluster(texts, booster(improve), tmp_path / "a", workers=1)
    with pytest.raises(
        MidbError,
        match=r"its machine holds another midb, .* name engine and precision \(--engine vllm --dtype bfloat16, .*dtype='bfloat16'",
    ):
        map_on_cluster(texts, Elsewhere(), tmp_path / "a", workers=1)
    monkeypatch.setitem(sys.modules, "nowhere", ModuleType("nowhere"))
    monkeypatch.setattr(Lengths, "__module__", "nowhere")
    monkeypatch.setattr(sys.modules["nowhere"], "Lengths", Lengths, raising=False)
    with pytest.raises(
        MidbError, match="no worker can start: ModuleNotFoundError: No module named 'nowhere'; put the same"
    ):
        map_on_cluster(texts, Lengths(), tmp_path / "a", workers=1)
    monkeypatch.setattr("midb.actors.PATIENCE", 5)
    others = [ray.remote(num_cpus=1)(type("Other", (), {"works": lambda self: True})).remote() for _ in range(2)]
    assert ray.get([other.works.remote() for other in others])
    with pytest.raises(MidbError, match=r"no worker has started in 5 s: each needs 1 CPU .*; make room and run again"):
        map_on_cluster(rows, booster(improve), tmp_path / "a", workers=1)
    assert shards(tmp_path / "a") == {}
    del others


@pytest.mark.slow
def test_a_range_that_kills_every_worker_or_engine_ends_the_run_and_the_others_stay(two_nodes, tmp_path):
    for number, (model, error, complaint) in enumerate(
        [
            (Model(dead=25), GenerationError, "the engine is dead"),
            (Deadly(str(tmp_path / "no such folder"), worker=25), FileNotFoundError, "no such folder"),
            (Killer(), MidbError, "3 workers in turn were lost over rows 20 and on: .*; if memory ran out"),
        ]
    ):
        folder = tmp_path / str(number)
        with pytest.raises(error, match=complaint):
            map_on_cluster(dataset(60), booster(model), folder, workers=2, rows_per_shard=10)
        kept = rows_kept(folder)
        assert not set(kept) & set(range(20, 30))
        healthy = Model()
        map_on_cluster(dataset(60), booster(healthy), folder, rows_per_shard=10)
        assert healthy.asked == [row for row in range(60) if row not in kept]


@pytest.mark.slow
def test_rows_that_cannot_be_read_any_further_end_the_run_and_the_others_stay(two_nodes, tmp_path):
    def broken():
        for row in dataset(60):
            if row["id"] == 47:
                raise OSError("the line is dead")
            yield row

    with pytest.raises(OSError, match="the line is dead"):
        map_on_cluster(IterableDataset.from_generator(broken), booster(Model()), tmp_path, workers=2, rows_per_shard=5)
    assert rows_kept(tmp_path) == list(range(45))


@pytest.mark.slow
def test_workers_build_their_own_engine_also_from_a_step_that_has_one(two_nodes, tmp_path):
    with FakeOpenAI() as server:
        generator = Journal(OpenAIGenerator("m", base_url=server.url, concurrency=8), tmp_path / "answers.journal")
        step = Booster(generator=generator)
        first = step.map(dataset(1))
        edits = map_on_cluster(dataset(40), step, tmp_path / "ledger", workers=2, rows_per_shard=5)
        assert server.get("stats")["requests"] == 40
    assert edits[0] == first[0]
    assert set(edits["boost_status"]) <= {"boosted", "rejected"}


class Killer(Model):
    """Runs out of memory, so to speak, at one row each time."""

    def __call__(self, messages):
        if number_of(messages) == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(messages)


@pytest.mark.parametrize(
    ("nodes", "workers", "room"),
    [
        ([{"CPU": 8.0}, {"CPU": 3.0, "GPU": 4.0}], Workers(4, gpus=1), 3),
        ([{"CPU": 16.0, "GPU": 1.0}] * 3, Workers(1, gpus=2), 0),
        ([{"CPU": 1.0, "GPU": 1.0}], Workers(11, gpus=0.1, cpus=0.1), 10),
    ],
)
def test_a_worker_stands_on_one_node_and_those_that_do_not_fit_are_refused(nodes, workers, room):
    alive = [{"Alive": True, "Resources": each} for each in nodes] + [{"Alive": False, "Resources": {"CPU": 99.0}}]
    needs = {"CPU": workers.cpus, "GPU": workers.gpus}
    with pytest.raises(MidbError, match=f"do not fit: the cluster has room for {room} "):
        check_room(alive, needs, workers)
    check_room(alive * workers.count, {"CPU": 0.1, "GPU": 0}, workers)


def test_without_ray_workers_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("midb.errors.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed; run: pip install 'midb\[ray\]'"):
        map_on_cluster(dataset(2), booster(improve), tmp_path, workers=1)


@pytest.mark.slow
def test_the_example_boosts_with_ray_and_as_an_array(tmp_path):
    from test_transformers import make_model  # not above: the child processes of this file need no torch

    model = make_model(tmp_path / "model", context=4096)
    (tmp_path / "data").mkdir()
    dataset(3).to_json(tmp_path / "data" / "rows.jsonl", force_ascii=False)

    def example(ledger, *more):
        script = HERE.parent / "examples" / "boost_on_cluster.py"
        call = [script, tmp_path / "data", "--model", model, "--ledger", ledger, "--rows-per-shard", "2", *more]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, *map(str, call)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-5000:]
        return done

    said = example(tmp_path / "ray", "--workers", 2).stdout
    assert said.startswith("3 rows: ")
    named = ("--engine", "transformers", "--dtype", "float32")  # which is what the workers took by themselves
    for job in range(2):
        example(tmp_path / "array", "--stream", "--shard", f"{job}/2", *named)
    gathered = example(tmp_path / "array", *named)
    assert "3 rows in 2 shards, 0 of them made now" in gathered.stderr
    assert gathered.stdout == said
    assert shards(tmp_path / "ray") == shards(tmp_path / "array")
    other = example(tmp_path / "array", "--dtype", "bfloat16", "--shard", "2/3")  # a share without rows
    assert "holds rows of other configurations and none of this one" in other.stderr
