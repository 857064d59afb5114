import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from midb import ColumnError, as_alpaca, as_edits, as_messages, as_pairs
from midb.schema import PAIR, PROVENANCE, RAW

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Ciao?"}
BOT = {"role": "assistant", "content": "Ciao!"}
PAIRS = {"instruction": ["Traduci", "Somma"], "input": ["cane", ""], "response": ["dog", "4"]}


def both_kinds(columns):
    dataset = Dataset.from_dict(columns)
    return [dataset, dataset.to_iterable_dataset()]


def rows(dataset):
    return [dict(row) for row in dataset]


@pytest.mark.parametrize(
    ("columns", "input_"),
    [
        ({"instruction": ["Ciao?"], "input": ["x"], "output": ["Ciao!"]}, "x"),
        ({"instruction": ["Ciao?"], "output": ["Ciao!"]}, ""),
        ({"instruction": ["Ciao?"], "response": ["Ciao!"]}, ""),
        ({"instruction": ["Ciao?"], "input": [None], "response": ["Ciao!"]}, ""),
        ({"prompt": ["Ciao?"], "completion": ["Ciao!"]}, ""),
        ({"inputs": ["Ciao?"], "targets": ["Ciao!"]}, ""),
        ({"messages": [[USER, BOT]]}, ""),
        ({"prompt": [[USER]], "completion": [[BOT]]}, ""),
    ],
)
def test_every_known_shape_becomes_a_pair(columns, input_):
    for dataset in both_kinds({**columns, "id": [7]}):
        (row,) = rows(as_pairs(dataset))
        assert {name: row[name] for name in PAIR} == {"instruction": "Ciao?", "input": input_, "response": "Ciao!"}
        assert row["id"] == 7
        assert set(row) - {"system"} == {*PAIR, "id"}


def test_a_system_turn_is_kept_and_given_back():
    chats = {"messages": [[SYSTEM, USER, BOT], [USER, BOT]], "id": [1, 2]}
    for dataset in both_kinds(chats):
        pairs = as_pairs(dataset)
        assert [row["system"] for row in pairs] == ["Be brief.", ""]
        assert rows(as_messages(pairs)) == rows(dataset)


def test_other_names_are_given_by_the_caller():
    dataset = Dataset.from_dict({"question": ["q"], "answer": ["a"], "context": ["c"], "id": [1]})
    pairs = as_pairs(dataset, columns={"instruction": "question", "response": "answer", "input": "context"})
    assert rows(pairs) == [{"instruction": "q", "response": "a", "input": "c", "id": 1}]
    with pytest.raises(ColumnError, match=r"no column.*antwort"):
        as_pairs(dataset, columns={"instruction": "question", "response": "antwort"})
    with pytest.raises(ColumnError, match="takes instruction, input, response"):
        as_pairs(dataset, columns={"system": "question"})
    alpaca = Dataset.from_dict({"instruction": ["i"], "output": ["o"], "lang": ["fr"]})
    assert rows(as_pairs(alpaca, columns={"language": "lang"})) == [
        {"instruction": "i", "input": "", "response": "o", "language": "fr"}
    ]


def test_a_dataset_dict_converts_split_by_split():
    splits = as_pairs(
        DatasetDict(train=Dataset.from_dict(PAIRS), test=Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}))
    )
    assert isinstance(splits, DatasetDict)
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 2, "test": 1}
    assert splits["test"][0]["response"] == "b"


def test_pairs_pass_through_without_a_copy():
    dataset = Dataset.from_dict(PAIRS)
    assert as_pairs(dataset)._fingerprint == dataset._fingerprint


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a"]}, r"columns \['text'\].*columns="),
        ({"instruction": ["a", None], "response": ["b", "c"]}, "row 1: instruction is null"),
        ({"instruction": ["a"], "response": [3]}, "not text"),
        ({"instruction": ["a"], "response": [["b"]]}, "not text"),
        ({"messages": [[USER, BOT], [USER, BOT, USER, BOT]]}, r"row 1.*\['user', 'assistant', 'user', 'assistant'\]"),
        ({"messages": [[BOT]]}, "row 0"),
        ({"messages": [[{"role": "user", "content": None}, BOT]]}, "row 0.*text content"),
        ({"messages": [[USER, BOT]], "response": ["x"]}, "also"),
    ],
)
def test_what_cannot_be_a_pair_is_refused_with_the_way_out(columns, says):
    for dataset in both_kinds(columns):
        with pytest.raises(ColumnError, match=says):
            rows(as_pairs(dataset))


def test_a_null_deep_in_a_selection_is_found_at_its_row():
    dataset = Dataset.from_dict({"instruction": ["x"] * 30_000, "response": ["y"] * 29_999 + [None]}).select(
        range(5, 30_000)
    )
    with pytest.raises(ColumnError, match="row 29994: response is null"):
        as_pairs(dataset)


def test_a_column_of_nothing_is_an_absent_input():
    dataset = Dataset.from_dict({**PAIRS, "input": [None, None]})
    assert as_pairs(dataset)["input"][:] == ["", ""]
    assert as_pairs(dataset).features["input"] == Value("string")


def test_alpaca_goes_there_and_back():
    alpaca = Dataset.from_dict({"instruction": ["a"], "input": [""], "output": ["b"], "id": [1]})
    assert rows(as_alpaca(as_pairs(alpaca))) == rows(alpaca)
    with pytest.raises(ColumnError, match="as_pairs"):
        as_alpaca(alpaca)
    with pytest.raises(ColumnError, match="overwrite"):
        as_alpaca(Dataset.from_dict({**PAIRS, "output": ["x", "y"]}))


def test_messages_join_instruction_and_input_by_a_newline():
    (row, second) = rows(as_messages(Dataset.from_dict(PAIRS)))
    assert row == {"messages": [{"role": "user", "content": "Traduci\ncane"}, {"role": "assistant", "content": "dog"}]}
    assert second["messages"][0]["content"] == "Somma"


@pytest.mark.parametrize(
    "columns",
    [
        {
            f"{side} {name}": [f"{side}{name}"]
            for side in ("Raw", "Revised")
            for name in ("Instruction", "Input", "Response")
        },
        {f"{side}_{name}": [f"{side.title()}{name.title()}"] for side in ("raw", "revised") for name in PAIR},
        {
            **{name: [f"Revised{name.title()}"] for name in PAIR},
            **{f"raw_{name}": [f"Raw{name.title()}"] for name in PAIR},
        },
    ],
)
def test_texts_before_and_after_a_revision_are_an_edit(columns):
    for dataset in both_kinds({**columns, "id": [1]}):
        (row,) = rows(as_edits(dataset))
        assert row == {
            **{name: f"Revised{name.title()}" for name in PAIR}, **{f"raw_{name}": f"Raw{name.title()}" for name in PAIR}, "id": 1,
        }  # fmt: skip


def test_alpaca_data_with_a_column_of_revisions_is_an_edit():
    dataset = Dataset.from_dict(
        {"instruction": ["i"], "input": [None], "output": ["before"], "revised_output": ["after"]}
    )
    (row,) = rows(as_edits(dataset))
    assert (row["raw_response"], row["response"]) == ("before", "after")
    assert (row["raw_instruction"], row["instruction"], row["raw_input"], row["input"]) == ("i", "i", "", "")
    assert set(row) == {*PAIR, *RAW}


def test_an_edit_needs_two_sides():
    with pytest.raises(ColumnError, match="both sides"):
        as_edits(Dataset.from_dict(PAIRS))
    with pytest.raises(ColumnError, match="response after"):
        as_edits(Dataset.from_dict({"instruction": ["a"], "raw_response": ["b"]}))
    edits = as_edits(
        Dataset.from_dict({**PAIRS, "better": ["hound", "four"]}),
        columns={"response": "better", "raw_response": "response"},
    )
    assert (edits[0]["raw_response"], edits[0]["response"]) == ("dog", "hound")
    assert "better" not in edits.column_names


def test_edits_become_pairs_again_without_their_past():
    edits = Dataset.from_dict({**PAIRS, **{name: ["x", "y"] for name in (*RAW, *PROVENANCE)}, "id": [1, 2]})
    assert set(as_pairs(edits).column_names) == {*PAIR, "id"}


@pytest.mark.parametrize(
    "columns",
    [
        {"instruction": [], "output": []},
        {"instruction": [], "input": [], "response": []},
        {"messages": []},
    ],
)
def test_an_empty_dataset_gets_its_columns_too(columns):
    text = Value("string")
    features = {name: List({"role": text, "content": text}) if name == "messages" else text for name in columns}
    pairs = as_pairs(Dataset.from_dict(columns, features=Features(features)))
    assert set(PAIR) <= set(pairs.column_names)
    assert as_messages(pairs).column_names == ["messages"]


def test_a_stream_keeps_what_it_knows_of_its_other_columns():
    rows = Dataset.from_dict({"instruction": ["a"], "output": ["b"], "kind": [1]})
    rows = rows.cast_column("kind", ClassLabel(names=["x", "y"]))
    features = as_pairs(rows.to_iterable_dataset()).features
    assert features["kind"] == rows.features["kind"]
    assert features["response"] == Value("string")


@pytest.mark.parametrize("form", ["arrow", "pandas", "numpy"])
def test_a_dataset_in_another_format_is_read_the_same_and_stays_in_it(form):
    alpaca = Dataset.from_dict({"instruction": ["a"], "input": [None], "output": ["b"]}).with_format(form)
    pairs = as_pairs(alpaca)
    assert pairs.format["type"] == form
    assert rows(pairs.with_format(None)) == [{"instruction": "a", "input": "", "response": "b"}]


def test_a_message_without_a_role_is_refused():
    with pytest.raises(ColumnError, match="row 0"):
        as_pairs(Dataset.from_dict({"messages": [[{"content": "a"}, {"content": "b"}]]}))


def test_edits_with_a_null_are_refused_like_any_other():
    edits = Dataset.from_dict({**PAIRS, **{name: ["x", "y"] for name in RAW}, "response": ["a", None]})
    with pytest.raises(ColumnError, match="row 1: response is null"):
        as_pairs(edits)


def test_the_raw_side_of_edits_is_pairs_too():
    edits = Dataset.from_dict(
        {**PAIRS, "raw_instruction": ["a", "b"], "raw_input": [None, "c"], "raw_response": ["d", "e"]}
    )
    raw = as_pairs(edits, columns={"instruction": "raw_instruction", "input": "raw_input", "response": "raw_response"})
    assert rows(raw) == [
        {"instruction": "a", "input": "", "response": "d"},
        {"instruction": "b", "input": "c", "response": "e"},
    ]
