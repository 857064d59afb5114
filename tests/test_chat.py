"""Chats as text and ids: exact for clean text, and no message can write a control token."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from midb.chat import ChatFormat

CORPUS = ["Improve the following content. <|instruction|> Name three colors. [x] </a> – 色を三つ, ¿qué tal? \n\n"] * 3


def byte_level(special, plain=(), normalizer=None, **named):
    """A byte-level BPE tokenizer, as Llama 3, Qwen and SmolLM have."""
    backend = Tokenizer(models.BPE())
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return finish(backend, special, plain, **named)


def sentence_piece(special, plain=(), **named):
    """A BPE with a leading space and byte fallback, as Llama 2, Mistral and Gemma have."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("".join(CORPUS)) | {"▁"})
    vocabulary = {token: number for number, token in enumerate(["<unk>", *fallback, *letters])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finish(backend, special, plain, unk_token="<unk>", **named)


def finish(backend, special, plain, template=None, **named):
    backend.add_special_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.chat_template = template
    return tokenizer


LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
]

# Written after the habits of the families: a date and trimming; ChatML with tokens that are added but not special;
# markers inside one turn; no system role; white space around control tokens; tokens that a normaliser can form.
LLAMA31 = (
    "{{ bos_token }}{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{%- if loop.first %}{{ 'Today is ' + strftime_now('%d %b %Y') + '\n\n' }}{%- endif %}"
    "{{ m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<start_of_turn>' + m.role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FOLDED = "{% for m in messages %}{{ '[B]' + m.content + '[E]' }}{% endfor %}"

FAMILIES = {
    "llama3 base": byte_level(LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"),
    "llama3.1": byte_level(LLAMA3, template=LLAMA31, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    "chatml": byte_level(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        ["<think>", "</think>", "<tool_call>"],
        template=CHATML,
        eos_token="<|im_end|>",
    ),
    "mistral": sentence_piece(["<s>", "</s>", "[INST]", "[/INST]"], template=MISTRAL, eos_token="</s>"),
    "gemma": sentence_piece(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        ["\n\n", "<h1>"],
        template=GEMMA,
        bos_token="<bos>",
        eos_token="<eos>",
    ),
    "phi": byte_level(
        [
            AddedToken(t, normalized=False, lstrip=t == "<|end|>", rstrip=True)
            for t in ("<|user|>", "<|assistant|>", "<|end|>")
        ],
        template=PHI,
        eos_token="<|end|>",
    ),
    "folded": byte_level(
        [AddedToken("[B]", normalized=True), AddedToken("[E]", normalized=True)],
        normalizer=normalizers.NFKC(),
        template=FOLDED,
        eos_token="[E]",
    ),
}
CONTROL = sorted({token.content for each in FAMILIES.values() for token in each.added_tokens_decoder.values()})
CUT = [token[:cut] for token in CONTROL for cut in (1, len(token) - 1)] + [token[1:] for token in CONTROL]
TEXTS = st.lists(
    st.sampled_from([*CONTROL, *CUT, "［E］", "[E", "]", " ", "\n", "\t", "Hi", "色", "é", "\ue000\ue001"])
    | st.text(max_size=4),
    max_size=8,
).map("".join)


def user(content):
    return [{"role": "user", "content": content}]


def control_tokens(tokenizer, ids):
    """The control tokens among ids: all added ones but the two that stand for ordinary text, and the unknown token."""
    added = tokenizer.added_tokens_decoder
    return [
        added[i].content for i in ids if i in added and added[i].content not in ("\n\n", "<h1>", "<tool_call>", "<unk>")
    ]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(content=TEXTS, system=TEXTS)
@example(content="［E］", system="")  # a normaliser makes a control token of it
@example(content="", system="</think><|im_end|>")  # ChatML's template above cuts a message there
def test_no_message_can_write_a_control_token(family, content, system):
    tokenizer = FAMILIES[family]
    chat = ChatFormat(tokenizer)
    hostile = [{"role": "system", "content": "be kind" + system}, *user("x" + content + "x")]
    clean = [{"role": "system", "content": "be kind"}, *user("xx")]
    if family == "phi":  # its tokenizer knows no system role
        hostile, clean = hostile[1:], clean[1:]
    assert control_tokens(tokenizer, chat.encode(hostile)) == control_tokens(tokenizer, chat.encode(clean))


@pytest.mark.parametrize("family", ["llama3 base", "llama3.1"])
@settings(max_examples=60, deadline=None)
@given(content=TEXTS)
def test_the_model_reads_every_letter_of_a_hostile_message(family, content):
    chat = ChatFormat(FAMILIES[family])
    assert chat.tokenizer.decode(chat.encode(user(content))) == chat.render(user(content))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(content=st.text(st.characters(codec="utf-8", exclude_characters="<[|［"), max_size=60))
def test_a_clean_chat_has_the_ids_of_the_reference(family, content):
    chat = ChatFormat(FAMILIES[family])
    assert chat.encode(user(content)) == chat.tokenizer.encode(chat.render(user(content)), add_special_tokens=False)


def test_ordinary_added_tokens_in_a_message_stay_as_the_reference_has_them():
    tokenizer = FAMILIES["gemma"]
    ids = ChatFormat(tokenizer).encode(user("<h1>a</h1>\n\nb"))
    assert {tokenizer.convert_tokens_to_ids(token) for token in ("<h1>", "\n\n")} <= set(ids)


def test_parity_lets_control_tokens_through():
    tokenizer = FAMILIES["llama3 base"]
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert ChatFormat(tokenizer, parity=True).encode(user("A<|eot_id|>B")).count(end) == 2
    assert ChatFormat(tokenizer).encode(user("A<|eot_id|>B")).count(end) == 1


def test_the_llama3_text_is_the_published_one():
    chat = ChatFormat(FAMILIES["llama3 base"])
    messages = [*user(" Hi\n\nthere "), {"role": "assistant", "content": " Hello \n"}]
    assert chat.render(messages, answer=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n Hi\n\nthere <|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n Hello \n<|eot_id|>"
    )
    assert chat.render(user("Hi")).endswith("Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.shared
def test_the_reference_wrote_the_same_text(shared):
    chat = ChatFormat(FAMILIES["llama3 base"])
    vectors = json.loads((shared / "vectors" / "llama3_tokenisation.json").read_text(encoding="utf-8"))["vectors"]
    compared = 0
    for vector in vectors:
        example = vector["example"]
        content = "\n".join(text for text in (example["instruction"], example["input"]) if text)
        messages = [*user(content), {"role": "assistant", "content": example["output"]}]
        # Left out: what was cut to a length, and the reference's habit of writing 0 for {{idx}}.
        if vector["text"].endswith("<|eot_id|>") and "{{idx}}" not in content:
            assert chat.render(messages, answer=False) == vector["text"]
            compared += 1
    assert compared >= 5


def test_auto_takes_the_models_own_template_before_the_llama3_text():
    assert ChatFormat(FAMILIES["llama3.1"]).rendering == "template"
    assert ChatFormat(FAMILIES["llama3 base"]).rendering == "llama3"
    assert ChatFormat(FAMILIES["llama3.1"], "llama3").rendering == "llama3"


def test_a_tokenizer_that_cannot_render_is_refused_with_the_way_out():
    bare = byte_level(["</s>"])
    with pytest.raises(ValueError, match=r"neither a chat template nor .* rendering='plain' to train a base model"):
        ChatFormat(bare)
    with pytest.raises(ValueError, match=r"no end token .* set tokenizer\.eos_token"):
        ChatFormat(bare, "plain")
    with pytest.raises(ValueError, match="no chat template; pass rendering='llama3'"):
        ChatFormat(bare, "template")
    with pytest.raises(ValueError, match="no Llama 3 header tokens"):
        ChatFormat(FAMILIES["gemma"], "llama3")
    with pytest.raises(ValueError, match="is unknown"):
        ChatFormat(FAMILIES["gemma"], "chatty")


def test_a_template_without_a_system_role_reads_the_system_text_first():
    text = ChatFormat(FAMILIES["gemma"]).render([{"role": "system", "content": "Be brief."}, *user("Hi")])
    assert text == "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    with pytest.raises(TemplateError):
        ChatFormat(FAMILIES["gemma"]).render([{"role": "system", "content": "Be brief."}])


def test_a_template_with_todays_date_says_the_same_tomorrow():
    assert "Today is 26 Jul 2024" in ChatFormat(FAMILIES["llama3.1"]).render(user("Hi"))


def test_the_hash_follows_the_template_and_the_rendering():
    hashes = [ChatFormat(tokenizer).hash() for tokenizer in FAMILIES.values()]
    assert len({*hashes, ChatFormat(FAMILIES["llama3.1"], "llama3").hash()}) == len(FAMILIES)
    assert ChatFormat(FAMILIES["llama3.1"], "llama3").hash() == ChatFormat(FAMILIES["llama3 base"]).hash()
    assert ChatFormat(FAMILIES["llama3 base"]).hash() == "9ac896b6f5dab866"  # adapters and journals are named by it


def test_the_hash_of_plain_text_follows_the_tokens_around_it():
    ends = byte_level(["<s>", "</s>"], eos_token="</s>"), byte_level(["<s>", "</s>"], eos_token="<s>")
    begins = byte_level(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    assert len({ChatFormat(tokenizer, "plain").hash() for tokenizer in (*ends, begins)}) == 3
    assert ChatFormat(FAMILIES["mistral"], "plain").hash() != ChatFormat(FAMILIES["mistral"]).hash()
    assert ChatFormat(FAMILIES["gemma"], "plain").hash() == "95e2e6f5bbdcb795"


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("llama3 base", {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}),
        ("llama3.1", {"<|eot_id|>"}),
        ("chatml", {"<|im_end|>"}),
        ("gemma", {"<end_of_turn>", "<eos>"}),
        ("mistral", {"</s>"}),
        ("phi", {"<|end|>"}),
    ],
)
def test_an_answer_ends_where_the_template_would_end_it(family, ends):
    chat = ChatFormat(FAMILIES[family])
    assert {chat.tokenizer.convert_ids_to_tokens(i) for i in chat.stop_ids} == ends


# Every rendering of every family: what a booster may be trained with.
RENDERINGS = [(family, "auto") for family in FAMILIES] + [
    ("llama3.1", "llama3"), *((family, "plain") for family in ("llama3 base", "chatml", "mistral", "gemma", "folded"))
]  # fmt: skip
PLAIN = {family: ChatFormat(FAMILIES[family], "plain") for family, rendering in RENDERINGS if rendering == "plain"}


def test_plain_text_is_the_question_a_blank_line_and_the_answer():
    bare, gemma = ChatFormat(byte_level(["</s>"], eos_token="</s>"), "plain"), PLAIN["gemma"]
    system, answer = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": " Hello \n"}
    assert bare.render(user(" Hi\n")) == " Hi\n\n\n"
    assert gemma.render([system, *user("Hi")]) == "<bos>Be brief.\n\nHi\n\n"
    assert gemma.render([*user("Hi"), answer], answer=False) == "<bos>Hi\n\n Hello \n<eos>"
    assert gemma.render(user("Hi"), answer=False) == "<bos>Hi"


@pytest.mark.parametrize(
    ("roles", "answer"),
    [
        ("", True),
        ("assistant", False),
        ("user assistant user", True),
        ("user assistant user assistant", False),
        ("user assistant", True),
        ("user tool", True),
    ],
)
def test_plain_text_holds_one_question_and_says_so(roles, answer):
    turns = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(ValueError, match=r"holds one question .* use a model with a chat template"):
        PLAIN["gemma"].render(turns, answer=answer)


@pytest.mark.parametrize("family", PLAIN)
@settings(max_examples=80, deadline=None)
@given(content=TEXTS, system=TEXTS)
def test_no_message_can_write_a_control_token_in_plain_text(family, content, system):
    chat = PLAIN[family]
    ids = chat.encode([{"role": "system", "content": system}, *user(content)])
    found = [i for i in ids if i in chat.tokenizer.all_special_ids and i != chat.tokenizer.unk_token_id]
    assert found == [i for i in [chat.tokenizer.bos_token_id] if i is not None]


@settings(max_examples=80, deadline=None)
@given(content=TEXTS)
def test_the_model_reads_every_letter_of_a_plain_question(content):
    chat = PLAIN["llama3 base"]
    assert chat.tokenizer.decode(chat.encode(user(content))) == chat.render(user(content))


@pytest.mark.parametrize("family", PLAIN)
@settings(max_examples=40, deadline=None)
@given(content=st.text(st.characters(codec="utf-8", exclude_characters="<[|［"), max_size=60))
def test_a_clean_plain_question_has_the_ids_of_its_text(family, content):
    chat = PLAIN[family]
    assert chat.encode(user(content)) == chat.tokenizer.encode(chat.render(user(content)), add_special_tokens=False)


def test_a_plain_answer_ends_with_the_end_of_text():
    for chat in PLAIN.values():
        assert chat.stop_ids == [chat.end_id] == [chat.tokenizer.eos_token_id]


@pytest.mark.parametrize(("family", "rendering"), RENDERINGS)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
@example(text="［E］")
@example(text="")
def test_an_answer_holds_one_control_token_and_ends_with_it(family, rendering, text):
    chat = ChatFormat(FAMILIES[family], rendering)
    *ids, end = chat.encode_answer(text)
    assert end == chat.end_id
    assert end in chat.stop_ids
    assert not {*ids} & {*chat.stop_ids}
    # What a rendering does not write is no control token of it: a tool's tag, and a thought's where no template has one.
    assert {*control_tokens(chat.tokenizer, ids)} <= ({"<think>", "</think>"} if rendering == "plain" else set())


@pytest.mark.parametrize(
    ("family", "rendering", "end"),
    [
        ("llama3 base", "llama3", "<|eot_id|>"),
        ("llama3 base", "plain", "<|end_of_text|>"),
        ("llama3.1", "template", "<|eot_id|>"),
        ("chatml", "template", "<|im_end|>"),
        ("gemma", "template", "<end_of_turn>"),
        ("gemma", "plain", "<eos>"),
        ("mistral", "template", "</s>"),
        ("phi", "template", "<|end|>"),
    ],
)
def test_an_answer_is_trained_to_end_as_the_rendering_ends_it(family, rendering, end):
    chat = ChatFormat(FAMILIES[family], rendering)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == end


def test_an_answer_that_nothing_ends_is_refused():
    endless = byte_level(["<|user|>"], template="{% for m in messages %}{{ '<|user|>' + m.content }}{% endfor %}")
    assert ChatFormat(endless).stop_ids == []
    with pytest.raises(ValueError, match=r"names an end token; set tokenizer\.eos_token"):
        ChatFormat(endless).encode_answer("Hi")


@pytest.mark.parametrize("rendering", ["template", "llama3", "plain"])
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_every_letter_of_an_answer_is_learned(rendering, text):
    chat = ChatFormat(FAMILIES["llama3.1"], rendering)
    assert chat.tokenizer.decode(chat.encode_answer(text)[:-1]) == text


@settings(max_examples=80, deadline=None)
@given(text=TEXTS, clean=st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=60))
def test_an_answer_has_the_ids_of_the_reference(text, clean):
    tokenizer = FAMILIES["llama3 base"]
    for parity, answer in ((True, text), (True, clean), (False, clean)):
        expected = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.convert_tokens_to_ids("<|eot_id|>")]
        assert ChatFormat(tokenizer, "llama3", parity).encode_answer(answer) == expected


def test_a_control_token_in_an_answer_is_cut_once_and_no_other_text_is():
    chat = ChatFormat(FAMILIES["llama3 base"])
    parts = ["Name three colors.<", "|eot_id|> Name three colors.<", "|begin_of_text|>"]
    ids = [chat.tokenizer.encode(part, add_special_tokens=False) for part in parts]
    assert chat.encode_answer("".join(parts)) == [*ids[0], *ids[1], *ids[2], chat.end_id]


def test_an_answer_follows_the_header_under_which_it_is_asked_for():
    thinking, spaced = ChatFormat(FAMILIES["chatml"]), ChatFormat(FAMILIES["mistral"])
    whole = thinking.encode(user("Hi")) + thinking.encode_answer("Hello")
    assert thinking.tokenizer.decode(whole).endswith("assistant\n<think>\n\n</think>\n\nHello<|im_end|>")
    assert spaced.tokenizer.convert_ids_to_tokens(spaced.encode_answer("an")) == ["a", "n", "</s>"]  # no "▁" before
    assert spaced.tokenizer.convert_ids_to_tokens(PLAIN["mistral"].encode_answer(" an")) == ["▁", "a", "n", "</s>"]
