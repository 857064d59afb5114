"""The published files become clean rows: what the audit listed is mended and said, anything else is an error."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest

from midb.distance import add_edit_distance
from midb.errors import ColumnError, MidbError
from midb.languages import LANGUAGES
from midb.release import files, load_coachlm, load_training, training

COLUMNS = [
    "id", "language", "instruction", "input", "response", "raw_instruction", "raw_input", "raw_response",
    "published_distance", "repair",
]  # fmt: skip


def published(rows: int = 2301) -> list[dict]:
    """Rows of our own in the published shape."""
    return [
        {
            "Raw Instruction": f"Name {row} things",
            "Raw Input": "",
            "Raw Response": "I cannot",
            "Revised Instruction": f"Name {row} things",
            "Revised Input": "of this world",
            "Revised Response": f"Here are {row}: …",
            "Distance": row,
        }
        for row in range(rows)
    ]


def write(folder: Path, name: str, content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())
    return folder


def refused(tmp_path: Path, content, name: str = "French") -> str:
    with pytest.raises(ColumnError) as error:
        load_training(write(tmp_path, name, content))
    return str(error.value)


def test_each_row_becomes_an_edit_with_the_english_row_as_its_id(tmp_path):
    edits = load_training(write(tmp_path, "French", published()))
    assert edits.column_names == COLUMNS
    assert edits.info.license == "apache-2.0"  # a card takes it from here
    assert edits[2300] == {
        "id": 2300,
        "language": "fr",
        "instruction": "Name 2300 things",
        "input": "of this world",
        "response": "Here are 2300: …",
        "raw_instruction": "Name 2300 things",
        "raw_input": "",
        "raw_response": "I cannot",
        "published_distance": 2300,
        "repair": "",
    }
    assert list(edits["id"]) == list(range(2301))
    assert set(edits["repair"]) == {""}


@pytest.mark.parametrize(
    ("name", "lost"), [("Czech", 1478), ("German", 191), ("Portuguese", 1738), ("Vietnamese", 1838)]
)
def test_after_the_lost_row_ids_move_up_and_repair_says_so(tmp_path, name, lost):
    edits = load_training(write(tmp_path, name, published(2300)))
    assert list(edits["id"]) == [row for row in range(2301) if row != lost]
    assert [bool(repair) for repair in edits["repair"]] == [row > lost for row in edits["id"]]
    assert f"English row {lost} is not in the file" in edits[2299]["repair"]


def test_a_file_with_all_rows_needs_no_move_even_where_a_row_was_lost_once(tmp_path):
    edits = load_training(write(tmp_path, "German", published()))
    assert list(edits["id"]) == list(range(2301))
    assert set(edits["repair"]) == {""}


@pytest.mark.parametrize(
    ("name", "rows"), [("Thai", 2300), ("French", 2300), ("German", 2299), ("German", 2302), ("Thai", 0)]
)
def test_a_file_of_another_length_is_refused_because_ids_would_be_guesses(tmp_path, name, rows):
    message = refused(tmp_path, published(rows), name)
    assert message.startswith(f"{name}.json has {rows} rows")
    assert "leave this language out" in message


def test_an_unaudited_file_of_full_length_maps_by_position(tmp_path):
    assert list(load_training(write(tmp_path, "Greek", published()))["id"]) == list(range(2301))


def test_the_italian_row_with_translated_keys_is_read_and_said(tmp_path):
    rows = published()
    rows[282] = dict(zip(training._ITALIAN_KEYS, rows[282].values(), strict=True))
    edits = load_training(write(tmp_path, "Italian", rows))
    assert edits[282]["instruction"] == "Name 282 things"
    assert edits[282]["published_distance"] == 282
    assert [at for at, repair in enumerate(edits["repair"]) if repair] == [282]
    assert "Italian keys" in edits[282]["repair"]
    assert "French.json, row 282: the keys are" in refused(tmp_path / "elsewhere", rows)


def test_a_lost_distance_stays_null_and_is_said(tmp_path):
    rows = published()
    del rows[1881]["Distance"]
    edits = load_training(write(tmp_path, "Turkish", rows))
    assert edits[1881]["published_distance"] is None
    assert edits[1881]["repair"] == "no published distance"
    assert edits.filter(lambda row: row["repair"])["id"] == [1881]


def test_two_repairs_of_one_row_are_both_said(tmp_path):
    rows = published(2300)
    del rows[2000]["Distance"]
    edits = load_training(write(tmp_path, "Czech", rows))
    assert edits[2000]["repair"] == "no published distance; id moved up by one: English row 1478 is not in the file"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Note": "new"}, "the keys are"),
        ({"Raw Input": None}, "raw_input is None, not text"),
        ({"Revised Response": ["a", "b"]}, "response is ['a', 'b'], not text"),
        ({"Raw Response": "half a pair \ud83d"}, "raw_response is 'half a pair \\ud83d', not text"),
        ({"Distance": "12"}, "Distance is '12'"),
        ({"Distance": 1.5}, "Distance is 1.5"),
        ({"Distance": True}, "Distance is True"),
        ({"Distance": None}, "Distance is None"),
        ({"Distance": -1}, "Distance is -1"),
    ],
)
def test_a_row_that_departs_from_the_published_shape_is_named(tmp_path, change, said):
    rows = published()
    rows[17] |= change
    message = refused(tmp_path, json.dumps(rows).encode())
    assert message.startswith("French.json, row 17: ")
    assert said in message


def test_a_missing_key_is_named(tmp_path):
    rows = published()
    del rows[17]["Raw Input"]
    assert refused(tmp_path, rows).startswith("French.json, row 17: the keys are")


def test_a_row_that_stands_twice_is_named(tmp_path):
    rows = published()
    rows[40] = rows[17]
    assert refused(tmp_path, rows).startswith("French.json, row 40 is row 17 again")


def test_a_key_that_stands_twice_is_named(tmp_path):
    text = json.dumps(published()).replace('"Distance": 17}', '"Distance": 17, "Distance": 18}')
    assert refused(tmp_path, text.encode()).startswith("French.json, row 17: a key stands twice")


def test_bytes_that_are_not_utf8_are_refused_with_their_row(tmp_path):
    text = json.dumps(published()).encode().replace(b"Here are 17:", b"Voil\xe0 17:")
    assert refused(tmp_path, text).startswith("French.json, row 17: response is 'Voil\\udce0 17:")


def test_a_truncated_file_is_refused_with_the_row_where_it_ends(tmp_path):
    text = json.dumps(published(), ensure_ascii=False)
    message = refused(tmp_path, text[: text.index("Here are 17:")].encode())
    assert message.startswith("French.json, row 17: not JSON")


@pytest.mark.parametrize(
    ("content", "said"), [({"data": []}, "one JSON dict"), ("text", "one JSON str"), ([1], "row 0: 1 is not an object")]
)
def test_json_of_another_shape_is_refused(tmp_path, content, said):
    assert said in refused(tmp_path, content)


def test_by_default_a_folder_is_read_whole(tmp_path):
    write(tmp_path, "German", published(2300))
    write(tmp_path, "Japanese", published())
    edits = load_training(tmp_path)
    assert {language: list(edits["language"]).count(language) for language in ("de", "ja")} == {"de": 2300, "ja": 2301}
    assert len(edits) == 4601


@pytest.mark.parametrize("place", [".", "MIDB_train", "data/MIDB_train"])
def test_a_source_is_the_folder_or_one_above_it(tmp_path, place):
    write(tmp_path / place, "Korean", published())
    assert len(load_training(str(tmp_path))) == len(load_training(tmp_path, ["ko"])) == 2301


def test_languages_are_taken_by_name_or_code_in_the_order_wanted(tmp_path):
    for name in ("French", "Korean", "Malay"):
        write(tmp_path, name, published())
    assert load_training(tmp_path, ["Korean", "fr", "ko"]).unique("language") == ["ko", "fr"]
    assert load_training(tmp_path, "malay").unique("language") == ["ms"]


def test_languages_that_midb_does_not_have_are_refused(tmp_path):
    write(tmp_path, "French", published())
    with pytest.raises(ValueError, match=r"no 'sw' \(it has it, es"):
        load_training(tmp_path, ["fr", "sw"])
    with pytest.raises(ValueError, match=r"English edits are load_coachlm\(\)"):
        load_training(tmp_path, ["English"])
    with pytest.raises(ValueError, match="empty"):
        load_training(tmp_path, [])


def test_a_file_that_was_asked_for_and_is_not_there_is_named(tmp_path):
    write(tmp_path, "French", published())
    with pytest.raises(MidbError, match=r"there is no Thai\.json"):
        load_training(tmp_path, ["fr", "th"])
    with pytest.raises(MidbError, match="no MIDB_train file in"):
        load_training(tmp_path / "nowhere")
    with pytest.raises(MidbError, match=r"there is no Expert Revision Dataset\.json"):
        load_coachlm(tmp_path)


def test_coachlm_is_english_with_the_same_columns(tmp_path):
    edits = load_coachlm(write(tmp_path, "Expert Revision Dataset", published()))
    assert edits.column_names == COLUMNS
    assert edits.unique("language") == ["en"]
    write(tmp_path, "Expert Revision Dataset", published(2300))
    with pytest.raises(ColumnError, match=r"Expert Revision Dataset\.json has 2300 rows"):
        load_coachlm(tmp_path)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, its URL, and the paths that were asked for; downloads go to a cache of the test's own."""
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", [".", "MIDB_train", "data/MIDB_train"])
def test_a_url_is_read_like_a_folder(served, place):
    folder, url, _ = served
    write(folder / place, "French", published())
    write(folder, "Expert Revision Dataset", published())
    assert load_training(url, ["fr"]).to_list() == load_training(folder, ["fr"]).to_list()
    assert load_coachlm(f"{url}/").to_list() == load_coachlm(folder).to_list()


def test_a_url_is_read_anew_each_time(served):
    folder, url, _ = served
    write(folder, "German", published(2300))
    assert len(load_training(url, ["de"])) == 2300
    write(folder, "German", published())
    assert len(load_training(url, ["de"])) == 2301


def test_by_default_a_url_gives_the_audited_languages_and_says_which_it_leaves_out(served):
    folder, url, _ = served
    lost = {"Czech", "German", "Portuguese", "Vietnamese"}
    for language in LANGUAGES:
        write(folder, language.name, published(2300 if language.name in lost else 2301))
    with pytest.warns(UserWarning, match="Russian, Greek, Thai were not audited|Greek, Russian, Thai were not audited"):
        edits = load_training(url)
    assert len(edits) == 29_909
    assert len(edits.unique("language")) == 13
    assert load_training(url, ["th"]).unique("language") == ["th"]


def test_a_file_that_a_url_does_not_have_is_named(served):
    _, url, _ = served
    with pytest.raises(MidbError, match=r"Thai\.json could not be read below http.*404"):
        load_training(url, ["th"])


def test_a_pinned_commit_is_asked_for_once(served, monkeypatch):
    folder, url, asked = served
    monkeypatch.setitem(files.REPOSITORIES, "MIDB", url)
    write(folder / "data/MIDB_train", "French", published())
    first = load_training(languages=["fr"])
    requests = len(asked)
    assert requests > 0
    assert load_training(languages=["fr"]).to_list() == first.to_list()
    assert len(asked) == requests


@pytest.mark.shared
def test_published_files_load_and_their_ids_are_the_english_rows(shared: Path):
    english = load_coachlm(shared / "data/coachlm")
    edits = load_training(shared / "data/midb")
    assert len(edits) == 6 * 2301 + 2 * 2300
    # The published distance is a copy of the English one, which shows whether the ids are right.
    expected = english["published_distance"][:]
    for language, row, distance in zip(edits["language"], edits["id"], edits["published_distance"], strict=True):
        assert distance == expected[row], (language, row)
    mended = edits.filter(lambda row: row["repair"])
    assert {language: list(mended["language"]).count(language) for language in set(mended["language"])} == {
        "it": 1,
        "de": 2109,
        "vi": 462,
    }


@pytest.mark.shared
def test_the_translated_row_is_the_one_edit_that_changes_nothing(shared: Path):
    italian = add_edit_distance(load_training(shared / "data/midb", "it"))
    unchanged = [row["id"] for row in italian if row["edit_distance"] == 0]
    assert unchanged == [282]
