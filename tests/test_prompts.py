import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midb.prompts import PROMPT, TAGS, check_tags, escape, parse_pair, render_messages, render_pair, unescape
from midb.schema import Pair

CONTROL = [
    *TAGS, "<|eot_id|>", "<|im_end|>", "<|im_start|>", "<|start_header_id|>", "<|end_of_text|>", "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<bos>", "<eos>", "<end_of_turn>", "<start_of_turn>", "<turn|>", "<|turn>",
    "<｜end▁of▁sentence｜>", "<think>", "</think>", "<tool_call>", "<tool_response>", "<unk>", "<pad>", "[TOOL_CALLS]",
    "[SEP]", "[gMASK]", "<0x0A>", "<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "[|assistant|]", "[|endofturn|]", "<seed:eos>",
    "<eoh>", "<eoa>", "<fim-prefix>", "]~b]", "[e~[", "]~!b[",
]  # fmt: skip
PIECES = [*CONTROL, *"<|>\\[]/~!b", "<\\|", "<\\\\|im_end|>", "\n", "\r\n", " ", "é", "text", PROMPT]

hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)


@given(st.builds(Pair, hostile, hostile, hostile))
@example(Pair("", "", ""))
@example(Pair("\n", "\n", "\n"))
@example(Pair("a<|input|>", "<\\|response|>", "<\\\\|response|>"))
def test_any_pair_comes_back_as_it_was(pair):
    assert parse_pair(render_pair(pair)) == pair


@given(hostile)
def test_escaping_is_undone_exactly(text):
    assert unescape(escape(text)) == text


@given(hostile, st.sampled_from(CONTROL))
def test_no_control_token_survives_in_a_field(text, token):
    assert token not in escape(text + token + text)


@given(st.builds(Pair, hostile, hostile, hostile))
def test_only_our_own_tags_stand_in_the_message(pair):
    content = render_messages(pair)[0]["content"]
    assert [content.count(tag) for tag in TAGS] == [1, 1, 1]
    assert content.replace(TAGS[0], "").replace(TAGS[1], "").replace(TAGS[2], "").count("<|") == 0


@pytest.mark.parametrize(
    "text",
    [
        "2 < 3 and a | b",
        "<b>bold</b> <div class='s'>",
        "x = [1, 2][0]",
        "C:\\path\\n",
        "[note] see <https://example.org>",
        "List<String> items",
    ],
)
def test_clean_text_renders_byte_for_byte_as_published(text):
    assert render_pair(Pair(text, "", text)) == f"<|instruction|>{text}\n<|input|>\n<|response|>{text}"


def test_the_message_is_the_published_prompt_a_newline_and_the_pair():
    messages = render_messages(Pair("Name three colors.", "", "Red, blue"))
    assert messages == [
        {"role": "user", "content": f"{PROMPT}\n<|instruction|>Name three colors.\n<|input|>\n<|response|>Red, blue"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "no tags at all",
        "<|instruction|>a\n<|response|>b",
        "<|instruction|>a\n<|response|>b\n<|input|>c",
        "<|input|>\n<|instruction|>a\n<|response|>b",
        "<|instruction|>a\n<|input|>\n<|response|>b<|response|>c",
        "<|instruction|>a\n<|input|><|input|>\n<|response|>b",
        "<|Instruction|>a\n<|Input|>\n<|Response|>b",
    ],
)
def test_text_without_each_tag_once_and_in_order_does_not_parse(text):
    assert parse_pair(text) is None


def test_a_greeting_before_the_first_tag_belongs_to_no_field():
    assert parse_pair("Sure!\n<|instruction|>a\n\n<|input|>b\n<|response|> c \n") == Pair("a\n", "b", " c \n")


def test_parity_writes_and_reads_without_escaping():
    pair = Pair("a <|eot_id|>", "", "[INST] <\\|x|>")
    assert render_pair(pair, parity=True) == "<|instruction|>a <|eot_id|>\n<|input|>\n<|response|>[INST] <\\|x|>"
    assert parse_pair(render_pair(pair, parity=True), parity=True) == pair


@pytest.mark.parametrize("tags", [("a", "b", "c"), ("<|a|>", "<|a|>", "<|b|>"), ("[INST]", "<|b|>", "<|c|>")])
def test_tags_that_text_could_forge_are_refused(tags):
    with pytest.raises(ValueError, match=r"<\|word\|>"):
        check_tags(tags)


@pytest.mark.shared
def test_the_published_rows_render_without_a_single_escape(shared):
    changed = 0
    for path in sorted((shared / "data/midb/MIDB_train").glob("*.json")):
        for row in json.loads(path.read_text()):
            changed += sum(isinstance(text, str) and escape(text) != text for text in row.values())
    assert changed == 0
