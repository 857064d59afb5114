"""What is trained is what a booster sends and should answer: same text, same ids, and counted before it is cut."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, List, Value, concatenate_datasets
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_chat import FAMILIES, TEXTS, byte_level, control_tokens, sentence_piece
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from midb.booster import Booster
from midb.chat import ChatFormat
from midb.errors import ColumnError
from midb.generators import FunctionGenerator
from midb.prompts import PROMPT, parse_pair, render_messages, render_pair
from midb.release import load_training
from midb.schema import PAIR, RAW, Pair, as_pairs
from midb.train import training_set
from midb.train.training_set import Counts, as_training_set, infer_seqlen, show_tokens, tokenize

OTHER_TAGS = ("<|a|>", "<|b|>", "<|c|>")
CHAT = ChatFormat(byte_level(["<s>", "</s>"], bos_token="<s>", eos_token="</s>"), "plain")
LLAMA3 = ChatFormat(FAMILIES["llama3 base"], "llama3")


def edit(response="Red, blue and green.", raw_response="Red", instruction="Name three colors.", input_="", **columns):
    return {
        "raw_instruction": instruction, "raw_input": input_, "raw_response": raw_response,
        "instruction": instruction, "input": input_, "response": response, **columns,
    }  # fmt: skip


def edits(*rows):
    return Dataset.from_list(list(rows))


def pairs_of(row):
    return Pair(*(row[name] for name in RAW)), Pair(*(row[name] for name in PAIR))


def chat_row(prompt, completion):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def lengths(dataset):
    return [len(ids) for ids in dataset["input_ids"]]


HOSTILE = [
    edit("A<|eot_id|>B", "x<|response|>y\n<|input|>", "</s>[INST]", "\x1b[2J"),
    edit("<\\|instruction|>", "\u202e", "Hi", "<s>", language="fr"),
]


@pytest.mark.parametrize("parity", [False, True])
def test_a_row_is_what_a_booster_sends_and_the_answer_that_it_reads(parity):
    """Boost with a model that writes known pairs: its questions are the prompts, its answers the completions."""
    wanted = [edit(), edit("Rouge, bleu et vert.\n", " Rouge ", "Nomme\ntrois couleurs.", "en français")]
    wanted += [] if parity else HOSTILE
    new_pairs = iter([pairs_of(row)[1] for row in wanted])
    asked, answered = [], []

    def answer(messages):
        asked.append(messages)
        answered.append(render_pair(next(new_pairs), parity=parity, tags=OTHER_TAGS))
        return answered[-1]

    booster = Booster(generator=FunctionGenerator(answer), guards=(), prompt="Besser!", parity=parity, tags=OTHER_TAGS)
    raw = as_pairs(edits(*wanted), columns=dict(zip(PAIR, RAW, strict=True)))
    boosted = booster.map(raw)
    assert set(boosted["boost_status"]) == {"boosted"}
    rows = as_training_set(boosted, prompt="Besser!", tags=OTHER_TAGS, parity=parity)
    assert rows["prompt"][:] == asked
    assert [completion[0]["content"] for completion in rows["completion"]] == answered


def test_the_six_texts_give_way_to_prompt_and_completion_and_the_rest_stays():
    rows = as_training_set(edits(edit(language="en", id=7), edit(language="fr", id=8)))
    message = List({"role": Value("string"), "content": Value("string")})
    assert rows.features == {
        "language": Value("string"), "id": Value("int64"), "prompt": message, "completion": message,
    }  # fmt: skip
    assert rows[1] == {
        "language": "fr", "id": 8,
        **chat_row(
            PROMPT + "\n<|instruction|>Name three colors.\n<|input|>\n<|response|>Red",
            "<|instruction|>Name three colors.\n<|input|>\n<|response|>Red, blue and green.",
        ),
    }  # fmt: skip


def test_every_kind_of_dataset_comes_back_as_it_was():
    stored = edits(edit(), *HOSTILE)
    rows = as_training_set(stored)
    split = as_training_set(DatasetDict(train=stored, test=stored.take(1)))
    assert isinstance(split, DatasetDict)
    assert split["train"].to_list() == rows.to_list()
    assert len(split["test"]) == 1
    streamed = as_training_set(stored.to_iterable_dataset())
    assert isinstance(streamed, IterableDataset)
    assert streamed.features == rows.features
    assert list(streamed) == rows.to_list()
    formatted = as_training_set(stored.with_format("numpy"))
    assert formatted.format["type"] == "numpy"
    assert formatted.with_format(None).to_list() == rows.to_list()
    assert as_training_set(stored.select([])).features == rows.features


def test_no_input_is_an_empty_one():
    rows = as_training_set(edits(edit(input_="") | {"raw_input": None, "input": None}, edit(input_="x")))
    assert rows["completion"][0] == as_training_set(edits(edit()))["completion"][0]
    assert rows["prompt"][0] == as_training_set(edits(edit()))["prompt"][0]


def test_what_is_no_edit_is_refused_with_the_way_out():
    pair = edits(edit()).remove_columns(RAW)
    with pytest.raises(ColumnError, match=r"no column raw_instruction, raw_input, raw_response .*midb\.as_edits"):
        as_training_set(pair)
    with pytest.raises(ColumnError, match=r"no column input .found: "):
        as_training_set(edits(edit()).remove_columns("input").to_iterable_dataset())
    with pytest.raises(ColumnError, match=r"row 1: raw_response is null; drop such rows"):
        as_training_set(edits(edit(), edit(raw_response=None)))
    with pytest.raises(ColumnError, match="already have a column completion, prompt; remove or rename"):
        as_training_set(edits(edit(prompt="x", completion="y")))
    with pytest.raises(ValueError, match="cannot be told from text"):
        as_training_set(edits(edit()), tags=("a", "b", "c"))


def test_another_column_is_never_taken_for_a_text():
    rows = as_training_set(edits(edit(revised_response="not this")))
    assert parse_pair(rows[0]["completion"][0]["content"]).response == "Red, blue and green."
    assert rows["revised_response"][:] == ["not this"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[TEXTS] * 6), min_size=1, max_size=6))
@example([("</s>", "<s>", "<|eot_id|>", "<|response|>", "", "<|begin_of_text|>")])
@pytest.mark.parametrize("chat", [CHAT, LLAMA3], ids=["plain", "llama3"])
def test_exactly_the_prompt_is_masked_and_the_answer_is_learned_to_its_end(chat, texts):
    rows = edits(*(dict(zip((*RAW, *PAIR), six, strict=True)) for six in texts))
    tokens = tokenize(as_training_set(rows), chat)
    for row, trained in zip(rows, tokens.dataset, strict=True):
        raw, new = pairs_of(row)
        ids, labels = trained["input_ids"], trained["labels"]
        prompt = chat.encode(render_messages(raw))
        assert ids[: len(prompt)] == prompt
        assert labels == [-100] * len(prompt) + ids[len(prompt) :]
        *answer, end = ids[len(prompt) :]
        assert chat.tokenizer.decode(answer) == render_pair(new)
        assert end == chat.end_id
        clean = chat.encode(render_messages(Pair("", "", "")))
        assert control_tokens(chat.tokenizer, ids[:-1]) == control_tokens(chat.tokenizer, clean)


@settings(max_examples=15, deadline=None)
@given(text=TEXTS)
@example(text="A<|eot_id|>B</s><s>")
def test_text_that_nobody_escaped_cannot_end_an_answer_either(text):
    for chat in (CHAT, LLAMA3):
        (labels,) = tokenize(Dataset.from_list([chat_row(text, text)]), chat).dataset["labels"]
        assert [label for label in labels if label in chat.stop_ids] == [chat.end_id]


MIXED = [
    edit(language="fr"),
    edit("long " * 60, language="fr"),
    edit(language="ja"),
    edit(raw_response="long " * 50, language="ja"),
    edit("long " * 40, language="ja"),
]


def mixed(**columns):
    return as_training_set(edits(*({**row, **columns} for row in MIXED)))


def test_rows_are_counted_before_any_is_cut():
    whole = tokenize(mixed(), CHAT)
    rows = lengths(whole.dataset)
    assert whole.counts == Counts(
        rows=5,
        kept=5,
        left_out=0,
        cut=0,
        prompt_tokens=sum(label == -100 for labels in whole.dataset["labels"] for label in labels),
        completion_tokens=sum(label != -100 for labels in whole.dataset["labels"] for label in labels),
        longest=max(rows),
    )
    assert list(whole.languages) == ["fr", "ja"]
    assert whole.languages["fr"].rows == 2
    assert whole.languages["fr"].longest == rows[1]
    for overlong in ("leave_out", "cut"):
        limited = tokenize(mixed(), CHAT, max_length=rows[0], overlong=overlong)
        assert limited.counts.longest == max(rows)
        assert limited.languages["ja"].longest == max(rows[2:])
        assert limited.overlong_rows == (1, 3, 4)


def test_rows_that_are_too_long_are_left_out_and_said_so():
    whole = tokenize(mixed(), CHAT).dataset
    fits = len(whole[0]["input_ids"])
    tokens = tokenize(mixed(), CHAT, max_length=fits)
    assert tokens.dataset.to_list() == [whole[0], whole[2]]
    assert (tokens.counts.rows, tokens.counts.kept, tokens.counts.left_out, tokens.counts.cut) == (5, 2, 3, 0)
    assert tokens.counts.prompt_tokens + tokens.counts.completion_tokens == 2 * fits
    assert {name: each.left_out for name, each in tokens.languages.items()} == {"fr": 1, "ja": 2}
    assert f"longer than {fits} tokens: 3 (row 1, 3, 4)" in str(tokens)
    assert tokenize(mixed(), CHAT, max_length=fits - 1 + len(whole[3]["input_ids"])).counts.left_out == 0


def test_rows_that_are_too_long_are_cut_as_the_reference_cuts_them():
    whole = tokenize(mixed(), CHAT).dataset
    limit = len(whole[0]["input_ids"])
    tokens = tokenize(mixed(), CHAT, max_length=limit, overlong="cut")
    assert lengths(tokens.dataset) == [limit] * 5
    for before, after in zip(whole, tokens.dataset, strict=True):
        source = before["labels"].count(-100)
        prompt, answer = before["input_ids"][:source], before["input_ids"][source:]
        kept_source, kept_target = infer_seqlen(len(prompt), len(answer), limit)
        assert after["input_ids"] == prompt[:kept_source] + answer[:kept_target]
        assert after["labels"] == [-100] * kept_source + answer[:kept_target]
    ended = [row["labels"][-1] == CHAT.end_id for row in tokens.dataset]
    assert ended == [True, False, True, True, False]  # the fourth row's question gave way, not its answer
    assert (tokens.counts.kept, tokens.counts.left_out, tokens.counts.cut) == (5, 0, 3)
    assert tokens.counts.prompt_tokens + tokens.counts.completion_tokens == 5 * limit
    assert tokens.languages["fr"].cut == 1


def test_a_row_that_is_cut_to_a_bare_prompt_teaches_nothing_and_is_left_out():
    rows = Dataset.from_list([chat_row("a" * 40, "bcd"), chat_row("a", "b")])
    tokens = tokenize(rows, CHAT, max_length=5, overlong="cut")
    assert infer_seqlen(43, 4, 5) == (5, 0)
    assert (tokens.counts.kept, tokens.counts.left_out, tokens.counts.cut) == (1, 1, 0)


def test_a_row_too_long_can_be_refused_with_the_length_that_holds_all():
    longest = tokenize(mixed(), CHAT).counts.longest
    with pytest.raises(ValueError, match=rf"3 of 5 rows are longer .* max_length={longest} holds all"):
        tokenize(mixed(), CHAT, max_length=300, overlong="refuse")
    assert tokenize(mixed(), CHAT, max_length=longest, overlong="refuse").counts.kept == 5


def test_what_leaves_nothing_to_train_on_is_an_error():
    shortest = min(lengths(tokenize(mixed(), CHAT).dataset))
    with pytest.raises(ValueError, match=rf"none of 5 rows fits max_length=10, the shortest has {shortest} tokens"):
        tokenize(mixed(), CHAT, max_length=10)
    with pytest.raises(ValueError, match="there is no row to train on"):
        tokenize(mixed().select([]), CHAT)


def test_what_are_no_rows_to_train_on_is_refused_with_the_way_out():
    with pytest.raises(ColumnError, match=r"no column completion, prompt; .* as_training_set"):
        tokenize(edits(edit()), CHAT)
    with pytest.raises(ColumnError, match=r"row 0: .* not a chat and one assistant message; .* as_training_set"):
        tokenize(Dataset.from_list([{"prompt": "Hi", "completion": "Hello"}]), CHAT)
    turns = [{"role": role, "content": "x"} for role in ("assistant", "user", "assistant")]
    with pytest.raises(ColumnError, match=r"row 1: .* one assistant message"):
        tokenize(Dataset.from_list([chat_row("a", "b"), {**chat_row("a", "b"), "completion": turns}]), CHAT)
    for rows in (mixed().to_iterable_dataset(), DatasetDict(train=mixed())):
        with pytest.raises(TypeError, match=r"give one stored split, e\.g\. dataset\['train'\]"):
            tokenize(rows, CHAT)
    with pytest.raises(ValueError, match="overlong='drop' is unknown; use"):
        tokenize(mixed(), CHAT, overlong="drop")


def test_the_trainer_gets_ids_and_labels_and_nothing_else():
    plain = tokenize(mixed(), CHAT)
    for form in ("numpy", "arrow"):
        tokens = tokenize(mixed(boost_status="boosted").with_format(form), CHAT)
        assert tokens.dataset.features == {"input_ids": List(Value("int32")), "labels": List(Value("int32"))}
        assert tokens.dataset.to_list() == plain.dataset.to_list()
        assert tokens.languages == plain.languages


def test_rows_without_a_language_are_counted_together():
    tokens = tokenize(as_training_set(edits(edit())), CHAT)
    assert tokens.languages == {}
    assert tokens.counts.rows == 1
    unsaid = tokenize(as_training_set(edits(edit(language=None), edit(language="fr"))), CHAT)
    assert {name: each.rows for name, each in unsaid.languages.items()} == {"None": 1, "fr": 1}


def test_the_report_is_a_table_for_people():
    rows = [{**chat_row("ab", "c"), "language": "fr"}] * 2 + [{**chat_row("a" * 30, "c"), "language": "Japanese"}] * 11
    tokens = tokenize(Dataset.from_list(rows), CHAT, max_length=20)
    assert str(tokens) == (
        "language  rows  kept  left out  cut  prompt tokens  completion tokens  longest\n"
        "fr           2     2         0    0              8                  4        6\n"
        "Japanese    11     0        11    0              0                  0       34\n"
        "all         13     2        11    0              8                  4       34\n"
        "longer than 20 tokens: 11 (row 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …)\n"
        f"fingerprint {tokens.fingerprint}"
    )


def test_the_fingerprint_is_of_the_data_and_nothing_else(tmp_path):
    rows = mixed()
    tokens = tokenize(rows, CHAT)
    columns = [tokens.dataset[name][:] for name in ("input_ids", "labels")]
    flat = [[len(ids) for ids in columns[0]], *([each for row in column for each in row] for column in columns)]
    streams = [hashlib.sha256(np.array(values, "<i4").tobytes()).digest() for values in flat]
    assert tokens.fingerprint == hashlib.sha256(b"".join(streams)).hexdigest()[:16]

    rows.save_to_disk(tmp_path, num_shards=3)
    same = [
        Dataset.load_from_disk(tmp_path),
        concatenate_datasets([rows.take(2), rows.skip(2)]),
        concatenate_datasets([rows, rows]).select(range(5)),
        rows.remove_columns("language"),
    ]
    assert {tokenize(each, CHAT).fingerprint for each in same} == {tokens.fingerprint}
    limit = len(columns[0][0])
    others = [
        tokenize(rows.select([1, 0, 2, 3, 4]), CHAT),
        tokenize(rows, CHAT, max_length=limit),
        tokenize(rows, CHAT, max_length=limit, overlong="cut"),
        tokenize(Dataset.from_list([chat_row("ab", "c")]), CHAT),
        tokenize(Dataset.from_list([chat_row("a", "bc")]), CHAT),
    ]
    assert len({tokens.fingerprint, *(each.fingerprint for each in others)}) == 6


def test_many_rows_are_hashed_as_one():
    rows = Dataset.from_list([chat_row(f"a{row}", "b") for row in range(2500)])
    tokens = tokenize(rows, CHAT)
    halves = concatenate_datasets([tokenize(part, CHAT).dataset for part in (rows.take(1100), rows.skip(1100))])
    assert halves.to_list() == tokens.dataset.to_list()
    assert tokenize(concatenate_datasets([rows.take(1100), rows.skip(1100)]), CHAT).fingerprint == tokens.fingerprint


def test_no_cache_keeps_the_rows_of_another_version_of_this_package(monkeypatch, tmp_path):
    edits(edit()).save_to_disk(tmp_path)

    def made():
        chat = ChatFormat(CHAT.tokenizer, "plain")
        rows = as_training_set(Dataset.load_from_disk(tmp_path))
        return rows["completion"][:], tokenize(rows, chat).fingerprint

    now = made()
    assert made() == now
    with monkeypatch.context() as patch:
        patch.setattr(training_set, "render_pair", lambda pair, **how: "another text")
        assert made()[0] == [[{"role": "assistant", "content": "another text"}]]
    with monkeypatch.context() as patch:
        patch.setattr(ChatFormat, "encode_answer", lambda chat, text: [chat.end_id])
        assert made()[0] == now[0]
        assert made()[1] != now[1]


# Of the reference, run: tokens of source and target, the limit, and what it kept of each.
CUTS = [
    (100, 100, 4096, 100, 100), (5000, 100, 4096, 3996, 100), (100, 5000, 4096, 100, 3996), (5000, 5000, 4096, 2048, 2048),
    (3000, 2000, 4096, 2096, 2000), (2048, 2048, 4096, 2048, 2048), (2047, 3000, 4096, 2047, 2049),
    (3000, 2047, 4096, 2049, 2047), (3000, 2048, 4096, 2435, 1661), (2048, 2049, 4096, 2048, 2048), (1, 1, 4096, 1, 1),
    (3000, 1, 2048, 2047, 1), (3000, 400, 2048, 1648, 400), (3000, 1100, 2048, 1499, 549),
]  # fmt: skip


AT_HALF = (2048, 3000, 4096, 1662, 2434)  # worked out from the published rule: half the limit is not below it


@pytest.mark.parametrize(("source", "target", "cutoff", "kept_source", "kept_target"), [*CUTS, AT_HALF])
def test_as_much_is_kept_as_the_reference_keeps(source, target, cutoff, kept_source, kept_target):
    assert infer_seqlen(source, target, cutoff) == (kept_source, kept_target)


@pytest.mark.shared
def test_the_reference_keeps_as_much(shared: Path):
    vectors = json.loads((shared / "vectors" / "infer_seqlen_vectors.json").read_text(encoding="utf-8"))
    assert {tuple(vector) for vector in vectors} == set(CUTS)


@given(*[st.integers(1, 6000)] * 3)
def test_what_is_kept_fits_and_wastes_nothing(source, target, cutoff):
    kept = infer_seqlen(source, target, cutoff)
    assert 0 <= kept[0] <= source
    assert 0 <= kept[1] <= target
    assert sum(kept) == min(source + target, cutoff)


SHOWN = r"""
11 tokens, 6 of them trained
 place       id           text
     0      328           '<s>'
     1       83           't'
     2       71           'h'
     3      279           'ree'
     4      291           '\n\n'
     5      290  trained  b'\xe8\x89'
     6      110  trained  b'\xb2'
     7      220  trained  ' '
     8      215  trained  '\x1b'
     9      198  trained  '\n'
    10      329  trained  '</s>'
""".strip()


def test_a_row_is_shown_token_by_token():
    row = tokenize(Dataset.from_list([chat_row("three", "色 \x1b\n")]), CHAT).dataset[0]
    assert show_tokens(**row, tokenizer=CHAT.tokenizer) == SHOWN
    with pytest.raises(ValueError, match="shorter"):
        show_tokens(row["input_ids"], row["labels"][1:], CHAT.tokenizer)


def test_the_space_that_decoding_would_take_is_shown():
    tokenizer = sentence_piece(["</s>"], eos_token="</s>")
    strip = decoders.Strip(" ", 1, 0)  # as Llama 2 has it
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([tokenizer.backend_tokenizer.decoder, strip])
    ids = tokenizer.encode("a 色é", add_special_tokens=False)
    assert tokenizer.decode(ids[:1]) == ""
    texts = [line.split(maxsplit=2)[2] for line in show_tokens(ids, ids, tokenizer).splitlines()[2:]]
    assert texts == ["trained  " + text for text in ("' '", "'a'", "' '", "'色'", "'é'")]


SHELLS = [byte_level(["</s>"], eos_token="</s>"), sentence_piece(["</s>"], eos_token="</s>")]


@given(text=TEXTS | st.text(), tokenizer=st.sampled_from(SHELLS))
@example(text="\x1b]0;x\x07\u202e\u2028\r\x00\x9b", tokenizer=SHELLS[0])
@example(text="\x1b]0;x\x07\u202e\u2028\r\x00\x9b", tokenizer=SHELLS[1])
def test_no_text_of_a_dataset_commands_the_terminal_that_shows_it(text, tokenizer):
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = show_tokens(ids, ids, tokenizer)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert len(shown.split("\n")) == len(ids) + 2


def test_the_ids_are_those_of_the_template_that_any_trainer_applies():
    """For clean text; up to the end token, after which a template may write more."""
    tokenizer = FAMILIES["phi"]
    rows = as_training_set(edits(edit(), edit("–\n\n色を三つ")))
    for row, trained in zip(rows, tokenize(rows, ChatFormat(tokenizer)).dataset, strict=True):
        how = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **how)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], **how)
        assert trained["input_ids"] == whole[: len(trained["input_ids"])]
        assert trained["labels"] == [-100] * len(prompt) + trained["input_ids"][len(prompt) :]


# Llama 3's own vocabulary, and the reference's figures with it.

NAMED = {
    128000: "begin_of_text", 128001: "end_of_text", 128004: "finetune_right_pad_id", 128006: "start_header_id",
    128007: "end_header_id", 128008: "eom_id", 128009: "eot_id", 128010: "python_tag",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama3():
    """Llama 3.1's tokenizer as on the Hub, from the vocabulary that Meta's package carries."""
    found = importlib.util.find_spec("llama_models")
    if found is None:
        pytest.skip("Llama 3's vocabulary is not here; pip install llama-models")
    vocabulary = Path(found.submodule_search_locations[0]) / "llama3" / "tokenizer.model"
    reserved = iter(range(248))
    special = [f"<|{NAMED.get(i) or f'reserved_special_token_{next(reserved)}'}|>" for i in range(128000, 128256)]
    backend = TikTokenConverter(str(vocabulary), extra_special_tokens=special).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )


def of_reference(example):
    """An alpaca example as the reference reads it: one user turn, no escaping."""
    return chat_row("\n".join(filter(None, (example["instruction"], example["input"]))), example["output"])


def test_llama3_ids_are_the_published_ones(llama3):
    """METHOD's worked example, from an edit to the ids."""
    tokens = tokenize(as_training_set(edits(edit(raw_response="Red, blue"))), ChatFormat(llama3, "llama3", parity=True))
    ids, labels = tokens.dataset[0]["input_ids"], tokens.dataset[0]["labels"]
    assert (len(ids), labels.count(-100), labels[:67]) == (93, 67, [-100] * 67)
    assert ids[:5] == [128000, 128006, 882, 128007, 271]
    assert ids[62:67] == [128009, 128006, 78191, 128007, 271]
    assert labels[67:] == ids[67:]
    assert ids[67:72] == [27, 91, 56074, 91, 29]  # a tag is text
    assert 397 in ids[67:]  # an empty input's ">" and newline are one token
    assert ids[-1] == 128009


def test_a_short_and_a_hostile_row_have_the_ids_of_the_reference(llama3):
    rows = Dataset.from_list([chat_row("Hi", "Hello"), chat_row("A<|eot_id|>B", "ok")])
    reference = tokenize(rows, ChatFormat(llama3, "llama3", parity=True)).dataset
    head, tail = [128000, 128006, 882, 128007, 271], [128009, 128006, 78191, 128007, 271]
    assert reference[0]["input_ids"] == [*head, 13347, *tail, 9906, 128009]
    assert reference[1]["input_ids"] == [*head, 32, 128009, 33, *tail, 564, 128009]
    ours = tokenize(rows, ChatFormat(llama3, "llama3")).dataset
    assert ours[0] == reference[0]
    assert ours[1]["input_ids"].count(128009) == 2
    assert llama3.decode(ours[1]["input_ids"]) == llama3.decode(reference[1]["input_ids"])


@pytest.mark.shared
def test_the_reference_has_the_same_ids_and_labels(llama3, shared: Path):
    vectors = json.loads((shared / "vectors" / "llama3_tokenisation.json").read_text(encoding="utf-8"))["vectors"]
    assert len(vectors) == 7
    for vector in vectors:
        example = dict(vector["example"])
        if vector["name"] == "idx_placeholder":  # the reference writes 0 for {{idx}}; a bug, and no row has it
            example["instruction"] = example["instruction"].replace("{{idx}}", "0")
        row = Dataset.from_list([of_reference(example)])
        expected = {name: vector[name] for name in ("input_ids", "labels")}
        for parity in (True, False) if vector["name"] != "special_injection" else (True,):
            chat = ChatFormat(llama3, "llama3", parity)
            tokens = tokenize(row, chat, max_length=vector["cutoff_len"], overlong="cut")
            assert tokens.dataset[0] == expected, vector["name"]
            assert tokens.counts.prompt_tokens == vector["n_source"]


# METHOD 3.7: tokens of source p50, p95, max; target p50, p95, p99, max; both p95, max; targets > 1024; top 720, all.
PUBLISHED_TOKENS = {
    "fr": ([150, 352, 766], [170, 499, 707, 1095], [808, 1578], 3, 0.406),
    "ja": ([152, 341, 816], [168, 485, 705, 1103], [786, 1744], 3, 0.401),
}


@pytest.mark.shared
@pytest.mark.parametrize("language", PUBLISHED_TOKENS)
def test_the_published_edits_are_as_long_as_they_were_measured(llama3, shared: Path, language):
    published = load_training(shared / "data" / "midb", languages=language)
    tokens = tokenize(as_training_set(published), ChatFormat(llama3, "llama3"), overlong="refuse")
    both = np.array(lengths(tokens.dataset))
    target = np.array([sum(label != -100 for label in labels) for labels in tokens.dataset["labels"]])
    source, target_is, both_is, over_1024, top_720 = PUBLISHED_TOKENS[language]
    assert np.percentile(both - target, [50, 95, 100]).tolist() == source
    assert np.percentile(target, [50, 95, 99, 100]).tolist() == target_is
    assert np.percentile(both, [95, 100]).tolist() == both_is
    assert (target > 1024).sum() == over_1024
    assert tokens.counts.rows == tokens.languages[language].kept == 2301
    assert tokens.counts.prompt_tokens + tokens.counts.completion_tokens == both.sum()
    farthest = np.argsort(-np.array(published["published_distance"]), kind="stable")[:720]
    assert round(both[farthest].sum() / 1e6, 3) == top_720


@pytest.mark.shared
def test_published_edits_have_the_same_ids_with_and_without_parity(llama3, shared: Path):
    published = load_training(shared / "data" / "midb", languages="ja").take(500)
    prints = [
        tokenize(as_training_set(published, parity=parity), ChatFormat(llama3, "llama3", parity)).fingerprint
        for parity in (True, False)
    ]
    assert prints[0] == prints[1]
