"""A clear reply has its verdict in any script; an unclear one has none, and says why; two orders make one verdict."""

import json
import math
import sys
import unicodedata
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midb.judging.verdict import (
    Parsed,
    merge,
    parse_verdict,
    preference,
    unswap,
)

REPLIES = json.loads((Path(__file__).parent / "verdict_parsing.json").read_text())
VERDICTS = {"1": "a", "2": "b", "0": "tie"}
LABELS = {"K7": "a", "Q2": "b", "T9": "tie"}
FINISH = (None, "stop", "length", "content_filter")
A, B, TIE = (Parsed(verdict, "ok") for verdict in ("a", "b", "tie"))


def no(status):
    return Parsed(None, status)


def cases(table):
    return pytest.mark.parametrize(("text", "expected"), table, ids=lambda value: ascii(value)[:40])


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply["what"])
def test_the_public_replies_are_read_as_agreed(reply):
    parsed = parse_verdict(reply["text"], reply["finish_reason"])
    assert parsed == (reply["verdict"], reply["status"])
    assert parse_verdict(reply["text"], reply["finish_reason"], strict=True).verdict == reply["strict"]


# --- one verdict, in sixteen languages -------------------------------------------------------------------------------


@cases(
    [
        ("إجابة المساعد ب أدق. الحكم النهائي: [[٢]]", B),
        ("Odpověď asistenta A je úplnější.\n\nKonečný verdikt: [[1]]", A),
        ("Antwort B ist genauer. Endgültiges Urteil: „[[2]]“", B),
        ("Οι δύο απαντήσεις είναι ισάξιες.\n\n**Τελική ετυμηγορία:** [[0]]", TIE),
        ("La respuesta B es mejor. Veredicto final: \\[\\[2\\]\\]", B),
        ("La réponse A est meilleure. Verdict final : « [[1]] »", A),
        ("Kedua jawaban sama baiknya.\n\n> [[0]]", TIE),
        ("La risposta A è più precisa.\n\n### [[1]]", A),
        ("アシスタントAの回答がより正確です。\n\n最終判定：［［１］］", A),
        ("最終的な判定は[[1]]です。", A),
        ("最終判定：[[2]]（アシスタントBの方が正確です）", B),
        ("두 답변은 비슷합니다. 최종 판정은 [[0]]입니다.", TIE),
        ("Jawapan Pembantu B lebih lengkap. [ [2] ]", B),
        ("As duas respostas são iguais. [[_0_]]", TIE),
        ("Ответ ассистента А точнее. Итог: [[«1»]]", A),
        ("คำตอบของผู้ช่วย B ดีกว่า คำตัดสินสุดท้าย: [[๒]]", B),
        ("Sonuç: [[1]]'dir.", A),
        ("Kararım [[2]]'si.", B),
        ("Câu trả lời của trợ lý A tốt hơn.\n\nPhán quyết: ⟦1⟧", A),
    ],
)
def test_every_language_has_its_way_to_write_a_verdict(text, expected):
    assert parse_verdict(text) == parse_verdict(text, strict=True) == expected


@cases(
    [
        ("[[۱]]", A),  # Persian
        ("[[२]]", B),  # Devanagari
        ("[[𝟎]]", TIE),
        ("[[①]]", A),
        ("【【１】】", A),
        ("〖〖2〗〗", B),
        ("〚0〛", TIE),
        ("﹇﹇1﹈﹈", A),
        ("[\u200b[\u20682\u2069]\u200f]", B),
        ("[[\u00a01\u3000]]", A),
        ("[[\n2\n]]", B),
        ("[ [ 1 ] ]", A),
        ("[[[1]]]", A),
        ("【最終判定】[[1]]", A),
        ("[['1']]", A),
        ("[[”2”]]", B),
        ("[[「0」]]", TIE),
        ("$\\boxed{[[2]]}$", B),
        ('{"verdict": "[[1]]"}', A),
        ("1\r\n\r\n[[2]]\r\n", B),
    ],
)
def test_brackets_digits_and_marks_have_many_forms(text, expected):
    assert parse_verdict(text) == expected


@cases(
    [
        ("[[a]]", A), ("[[B]]", B), ("[[c]]", TIE), ("[[TIE]]", TIE), ("[[draw]]", TIE), ("[[Assistant B]]", B), ("[[assistant  a]]", A),
        ("[[A>B]]", A), ("[[A >> B]]", A), ("[[A=B]]", TIE), ("[[b>a]]", B), ("[[B>>A]]", B), ("[[A<<B]]", B), ("[[B<A]]", A), ("[[Ａ＞Ｂ]]", A),
    ]
)  # fmt: skip
def test_the_words_of_other_prompts_are_verdicts_unless_strict(text, expected):
    assert parse_verdict(f"So: {text}") == expected
    assert parse_verdict(f"So: {text}", strict=True) == no("invalid")


@cases(
    [
        ("[[3]]", no("invalid")),
        ("[[12]]", no("invalid")),
        ("[[-1]]", no("invalid")),
        ("[[1.0]]", no("invalid")),
        ("[[]]", no("invalid")),
        ("[[x]]", no("invalid")),
        ("[[1 or 2]]", no("invalid")),
        ("[[D]]", no("invalid")),
        ("[[A>A]]", no("invalid")),
        ("[[1]]. Rating: [[7]]", no("invalid")),
        ("Rating: [[7]].\n\nVerdict: [[1]] is right.", A),  # a bad token is no second opinion
        ("[[the answer of Assistant A]]", no("missing")),  # too long to be a token
        ("[[**  1234567890123456  **]]", no("invalid")),
        ("[[**  12345678901234567  **]]", no("missing")),
        ("[[1], [2]]", no("missing")),
        ("{{1}} <<1>> ((1)) 「「1」」", no("missing")),
        ("[[1]", no("missing")),
        ("答えはAです。", no("missing")),
    ],
)
def test_what_is_no_verdict_is_invalid_in_double_brackets_and_missing_elsewhere(text, expected):
    assert parse_verdict(text) == expected


# --- what is not meant as a verdict ----------------------------------------------------------------------------------


@cases(
    [
        ("See [[1]](https://example.org/1).", no("missing")),
        ("See [[2]](https://example.org/2).\n\n[[1]]", A),
        ("[[1]] (Assistant A is right)", A),
        ("[[1]]'s answer is wrong.", no("missing")),
        ("**[[2]]**’s answer is right.", no("missing")),
        ("[[A]]ccurate and [[B]]rief", no("missing")),
        ("**[[A]]**ccurate", no("missing")),
        ("[[1]]is my verdict", A),
        ("[[A]]です", A),
        ("[[B]]입니다", B),
    ],
)
def test_links_names_and_initials_are_no_verdicts(text, expected):
    assert parse_verdict(text) == expected


@cases(
    [
        ("```\n[[1]]\n```", A),
        ("```text\n[[2]]\n```", B),
        ("```[[2]]```", B),
        ("```[[2]]\n```", B),
        ("```\n**[[2]]**```", B),
        ("~~~\n[[0]]\n~~~", TIE),
        ("````\n```\n[[1]]\n```\n````", no("missing")),
        ("Verdict: `[[1]]`", A),
        ("Verdict: `` [[1]] ``", A),
        ("Verdict: ｀[[1]]｀", A),
        ("`x = [[1]]`", no("missing")),
        ("[[2]]\n\nIn R, `df[[1]]` is a column.", B),
        ("[[2]]\n```r\ndf[[1]]\n```", B),
        ("Fine: ```python\ngrid = [[0]]\n``` which is right. [[1]]", A),
        ("[[2]]\n```python\ngrid = [[0]]", B),
        ("[[2]]\n~~~r\ndf[[1]]\n~~~", B),
        ("[[2]]\n``df[[1]]``", B),
        ("```\n[[1]]", no("missing")),
        ("Assistant A`s answer is better. [[1]]", A),
        ("Assistant A`s is better.\n[[1]]\nAssistant B`s is not.", A),
        ("좋아요~~~ [[1]]", A),
        ("```\n[[1]]\n```\n```\n[[2]]\n```", no("ambiguous")),
        ("Draft: [1] `x`", no("missing")),
        ("see [`x`[1]]", no("missing")),
    ],
)
def test_code_counts_only_if_it_is_one_token(text, expected):
    assert parse_verdict(text) == expected


@cases(
    [
        ("<think>[[1]] or [[2]]?</think>\n[[2]]", B),
        ("<thinking>[[1]]</thinking>[[0]]", TIE),
        ("The draft was [[1]]</think>[[2]]", B),
        ("<THINK>[[1]]</THINK><think>[[2]]</think> [[0]]", TIE),
        ("<think>[[1]]</think>", no("missing")),
        ("<think>[[1]]", no("truncated")),
        ("<think>[[1]]</think>[[2]]<think>once more", no("truncated")),
        ("<think>```</think>[[1]]", A),
    ],
)
def test_reasoning_is_no_verdict(text, expected):
    assert parse_verdict(text) == expected


@cases(
    [
        ('Output "[[1]]" if A is better, "[[2]]" if B is better, and "[[0]]" for a tie.', no("missing")),
        ("[[0]]: tie\n[[1]]: A\n[[2]]: B\n\n[[1]]", A),
        ("[[A]] for A, [[B]] for B, [[C]] for a tie. I choose B: [[B]]", B),
        ("[[2]]\n\n([[1]] is A, [[2]] is B, [[0]] is a tie.)", B),
        ("[[1]], [[2]], [[0]] or [[0]], [[1]], [[2]]", no("missing")),
        ("[[2]] B, [[1]] A, [[0]] tie", no("ambiguous")),  # not the prompt's order
        ("[[1]] A\n\n[[2]] B\n\n[[0]] tie", no("ambiguous")),  # a blank line between
        ("[[1]] A, [[2]] B, [[9]] joke, [[0]] tie", no("ambiguous")),  # not in a row
        (f"[[1]] A, [[2]] B, {'very ' * 36}[[0]]", no("missing")),
        (f"[[1]] A, [[2]] B, {'very ' * 48}[[0]]", no("ambiguous")),  # too far apart
        ("[[1]] A, [[2]] B, [[0]] tie\nVerdict: [2]", B),
    ],
)
def test_the_repeated_format_is_no_verdict(text, expected):
    assert parse_verdict(text) == expected


# --- one verdict or two ----------------------------------------------------------------------------------------------


@cases(
    [
        ("[[1]] or [[2]]", no("ambiguous")),
        ("[[1]] ou [[2]] ?", no("ambiguous")),
        ("[[1]]か[[2]]", no("ambiguous")),
        ("[[2]]のほうが[[1]]より優れている。", no("ambiguous")),
        ("**[[A]]** is better than **[[B]]**.", no("ambiguous")),
        ("[[C]] for the second question, but [[A]] for the entire conversation", no("ambiguous")),
        ("[[1]]. [[2]]", no("ambiguous")),  # directly before
        ("[[1]]\n\n---\n\n**[[2]]**", no("ambiguous")),
        ("[[1]]\n[[2]] [[2]]", no("ambiguous")),
        ("First [[1]]. Then [[2]] for the examples.", no("ambiguous")),  # words follow
        ("The first [1]] is better than [[2]]", no("ambiguous")),  # mangled
        ("[1]]\n[[2]]", no("ambiguous")),
        ("[2]] and [[2]]", B),
        ("[[1]], and not [2]]", A),
        ("A returns [[0], [0]] first.\n\n[[1]] for A, then.", A),
        ("[[1]] and again [[1]] for A", A),
        ("[[2]] if brevity counted; it does not: [[1]]", A),
        ("[[1]] at first! Then [[2]].", B),
        ("أولا [[1]] ؟ لا بل [[2]]", B),
        ("まず[[1]]と考えた。最終判定は[[2]]。", B),
        ("¿[[1]]? No.\n\nVeredicto: [[0]]", TIE),
        ("Turn 1: [[1]]\nTurn 2: [[2]]", B),
        ("[[2]] reads better at first. Facts decide.\n\n[[1]]\n\nIt is right.", A),
    ],
)
def test_two_verdicts_in_one_breath_are_none_and_a_later_sentence_corrects_an_earlier(text, expected):
    assert parse_verdict(text) == expected


@cases(
    [
        ("A is better.\n\n[1]", A),
        ("**Final verdict:** [2].", B),
        ("**Verdict**: **[A]**", A),
        ("Gründe [1] und [2].\nUrteil: [0]\n\n", TIE),
        ("최종 판정: 【2】", B),
        ("الحكم: [١]", A),
        ("判定：［２］", B),
        ("Verdict: \\[1\\]", A),
        ("I choose [1]", no("missing")),
        ("[1] is better", no("missing")),
        ("A is right. Verdict: [1]", no("missing")),
        ("Verdict: [1]\nThank you.", no("missing")),
        ("Verdict: [3]", no("missing")),
        ("Verdict: [1] [2]", no("missing")),
        ("This is what the encyclopedia says about the treaty: [1]", no("missing")),
        ("Verdict: `[1]`", no("missing")),
    ],
)
def test_single_brackets_count_where_they_are_the_whole_last_line(text, expected):
    assert parse_verdict(text) == expected
    assert parse_verdict(text, "length") == no("truncated")
    assert parse_verdict(text, strict=True) == no("missing")


# --- why the reply ended ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        (None, None, no("empty")),
        (" \n\t\u200b\ufeff", "stop", no("empty")),
        ("", "length", no("empty")),
        (None, "content_filter", no("refusal")),
        ("  ", "content_filter", no("refusal")),
        ("I cannot", "content_filter", no("refusal")),
        ("So: [[1]]", "content_filter", A),
        ("A is", "length", no("truncated")),
        ("So: [[1", "length", no("truncated")),
        ("So: [[1]]", "length", A),
        ("So: **[[1]]**.\n", "length", A),
        ("So: [[1]]\n\nBecause", "length", no("truncated")),
        ("So: [[1]]です", "length", no("truncated")),
        ("So: [[1]]\n```python\n", "length", no("truncated")),
        ("So: [[9]]", "length", no("invalid")),
        ("[[1]] or [[2]], I", "length", no("ambiguous")),
        ("<think>a</think>", "length", no("truncated")),
        ("<think>a", "content_filter", no("truncated")),
    ],
)
def test_a_reply_that_was_cut_or_filtered_says_so(text, finish_reason, expected):
    assert parse_verdict(text, finish_reason) == expected


# --- labels of one's own ---------------------------------------------------------------------------------------------


@cases(
    [
        ("So: [[K7]]", A),
        ("So: **[[ q2 ]]**", B),
        ("So: [[T٩]]", TIE),
        ("So: [K7]", A),
        ("[[2]] says the answer, and [[B]], and [[8]]. [[K7]]", A),
        ("[[K7]] because the answer begs for [[2]]", A),
        ("[[2]]", no("missing")),
        ("[[A]]", no("missing")),
        ("[[K8]]", no("missing")),
        ("[[K7]] or [[Q2]]", no("ambiguous")),
        ("[[K7]] A, [[Q2]] B, [[T9]] tie. [[Q2]]", B),
        ("[[T9]] tie, [[K7]] A, [[Q2]] B.", no("missing")),
        ("[[K7]](https://example.org)", no("missing")),
        ("[[K7]]'s answer", no("missing")),
        ("[[K7]]ept", no("missing")),
        ("`[[T9]]`", TIE),
    ],
)
def test_with_labels_nothing_else_in_brackets_counts(text, expected):
    assert parse_verdict(text, labels=LABELS) == expected


def test_labels_may_be_digits_and_mean_anything():
    assert parse_verdict("[[1]]", labels={"1": "b", "2": "a", "0": "tie"}) == B
    assert parse_verdict("[[1]]", labels={}) == no("missing")


# --- any text --------------------------------------------------------------------------------------------------------

NOISE = [
    "[", "]", "[[", "]]", "[[1]]", "[[2]]", "[[0]]", "[[A]]", "[[9]]", "[1]", "[2]]", "[[K7]]", "`", "``", "```", "~~~", "\n", "\n\n", "<think>", "</think>",
    " or ", ". ", "'s", "(", "*", "\\", "\u200b", "：", "です", "Verdict: ",
]  # fmt: skip
replies = st.lists(st.sampled_from(NOISE) | st.text(max_size=4), max_size=14).map("".join)
prose = st.text(st.characters(exclude_characters="`~｀～<＜")).filter(
    lambda text: not set(_plain_brackets(text)) & set("[]")
)
nd_digits = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Nd"]
invisible = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]


def _plain_brackets(text):
    alike = dict.fromkeys("【〖⟦〚", "[") | dict.fromkeys("】〗⟧〛", "]")
    return [alike.get(character, character) for character in unicodedata.normalize("NFKC", text)]


@given(replies | st.none(), st.sampled_from(FINISH), st.booleans(), st.sampled_from([None, LABELS]))
def test_any_text_is_read_without_an_error(text, finish_reason, strict, labels):
    verdict, status = parse_verdict(text, finish_reason, strict=strict, labels=labels)
    assert verdict in ("a", "b", "tie", None)
    assert (verdict is not None) == (status == "ok")
    assert status in ("ok", "missing", "invalid", "ambiguous", "truncated", "empty", "refusal")


@given(replies, st.sampled_from(FINISH), st.sampled_from([None, LABELS]))
@example("[[A]] or [[2]]", "stop", None)
def test_strict_never_finds_what_the_default_does_not(text, finish_reason, labels):
    strict = parse_verdict(text, finish_reason, strict=True, labels=labels)
    assert strict.verdict in (None, parse_verdict(text, finish_reason, labels=labels).verdict)


@given(prose, st.sampled_from("120"), st.sampled_from(FINISH), st.booleans())
@example("\\", "1", None, False)
def test_a_verdict_in_a_last_sentence_of_its_own_is_always_found(text, digit, finish_reason, strict):
    assert parse_verdict(f"{text}\n\n[[{digit}]]", finish_reason, strict=strict) == (VERDICTS[digit], "ok")


@given(prose, replies)
def test_a_planted_verdict_is_nothing_to_a_judge_with_labels(text, planted):
    planted = planted.translate(dict.fromkeys(map(ord, "`~<｀～＜")))
    for label in LABELS:
        planted = planted.replace(label, "")
    assert parse_verdict(f"{text}[[2]]{text}\n\nSo:\n\n[[K7]]", labels=LABELS) == A
    assert parse_verdict(f"{planted}\n\nSo:\n\n[[K7]]", labels=LABELS).verdict in ("a", None)


@given(st.sampled_from(nd_digits))
def test_the_digits_of_every_script_are_read(digit):
    expected = VERDICTS.get(str(unicodedata.decimal(digit)))
    assert parse_verdict(f"[[{digit}]]").verdict == expected


@given(st.lists(st.sampled_from(invisible), min_size=6, max_size=6), st.sampled_from(["1", "2", "0", "A", "8"]))
def test_invisible_characters_change_nothing(marks, inside):
    plain = f"So: [[{inside}]]"
    marked = "So: " + "".join(mark + shown for mark, shown in zip(marks, f"[[{inside}]]", strict=False)) + marks[-1]
    assert parse_verdict(marked) == parse_verdict(plain)


@pytest.mark.parametrize(
    "hostile",
    ["[", "]", "[[", "[ ", "] ", "[[ ", "[[1", "[1]]", "[[1]]", "[[1]] [[2]] ", "[[1]][[2]][[0]]", "[[*", "\\", "\\[", "` ", "`` ` ", "*", "_",
     " ", "\n", "\n ", "\n\n", ">", "> ~~~", "'s", "(", ":", "a", "a.", "<think", "</think>", "```\n", "~~~\n", "\u0315\u0300", "\ufdfa"],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_one_go(hostile):
    """Nothing here looks at a clock: a quadratic rule would take hours."""
    long = hostile * (1_000_000 // len(hostile))
    for text in (f"So: [[1]]\n{long}", f"{long}\nSo: [[2]]"):
        assert parse_verdict(text).status in ("ok", "missing", "invalid", "ambiguous")
    assert parse_verdict(f"{'`' * 499_999} {'`' * 500_000}\n\n[[2]]") == B


@pytest.mark.parametrize(
    "many", ["` ", "`` ", "``` ", "[", "] ", "*", "[[1", "[ ", "<think", "\u0315\u0300", "[[7]] ", "[[1]]. "]
)
def test_a_verdict_after_a_megabyte_is_found(many):
    lines = many * (1_000_000 // len(many) // 2 * 2)
    assert parse_verdict(f"{lines}\n\nSo B it is.\n\n[[2]]") == B


# --- two orders ------------------------------------------------------------------------------------------------------

OUTCOMES = ("a", "b", "tie", None)


@pytest.mark.parametrize(
    ("ab", "ba", "conservative", "decisive"),
    [
        ("a", "a", "a", "a"), ("a", "tie", "tie", "a"), ("a", "b", "tie", None), ("a", None, None, None),
        ("tie", "a", "tie", "a"), ("tie", "tie", "tie", "tie"), ("tie", "b", "tie", "b"), ("tie", None, None, None),
        ("b", "a", "tie", None), ("b", "tie", "tie", "b"), ("b", "b", "b", "b"), ("b", None, None, None),
        (None, "a", None, None), (None, "tie", None, None), (None, "b", None, None), (None, None, None, None),
    ],
)  # fmt: skip
def test_two_orders_make_one_verdict(ab, ba, conservative, decisive):
    assert merge(ab, ba) == merge(ab, ba, "conservative") == conservative
    assert merge(ab, ba, "decisive") == decisive


@pytest.mark.parametrize(("ab", "ba"), list(product(OUTCOMES, OUTCOMES)))
def test_exchanging_the_datasets_exchanges_the_verdict(ab, ba):
    for rule in ("conservative", "decisive"):
        assert merge(unswap(ba), unswap(ab), rule) == unswap(merge(ab, ba, rule))


def test_the_merge_is_fastchats():
    stored = json.loads((Path(__file__).parent / "judging_vectors.json").read_text())
    vector = next(each for each in stored if each["id"] == "swap_truth_table")
    outcome = {"a": "win", "b": "loss", "tie": "tie", None: "dropped"}
    coded = {1: "a", 2: "b", 0: "tie", None: None}
    merged = [merge(coded[first], unswap(coded[second])) for first, second in vector["input"]]
    assert [outcome[verdict] for verdict in merged] == vector["expected"]


# --- log-probabilities -----------------------------------------------------------------------------------------------


def place(token, **top):
    """One place of a reply; the first of `top` is what was written unless `token` says otherwise."""
    listed = [{"token": each, "logprob": math.log(p)} for each, p in top.items()]
    return {"token": token, "logprob": listed[0]["logprob"] if listed else -0.01, "top_logprobs": listed}


def reply(*places):
    return {"content": list(places)}


def test_the_preference_is_that_of_the_last_verdict_and_a_tie_counts_half():
    logprobs = reply(
        place("[["), place("2", **{"2": 0.9, "1": 0.05}), place("]] if"), place(" [[", **{" [[": 0.9}),
        place("1", **{"1": 0.6, "2": 0.1, "0": 0.2, "x": 0.1}), place("]]"),
    )  # fmt: skip
    found = preference(logprobs)
    assert found == pytest.approx(((0.6 + 0.1) / 0.9, 0.9))
    assert preference(json.loads(json.dumps(logprobs))) == found


@pytest.mark.parametrize("glue", ["{}", " {}", "[[{}", " [[{}", "[{}", "{}]]", "[[{}]]", "**{}**", "【【{}", '"{}"'])
def test_a_label_may_be_glued_to_its_brackets(glue):
    top = {glue.format("2"): 0.75, glue.format("1"): 0.25}
    assert preference(reply(place("Verdict"), place(glue.format("2"), **top))) == pytest.approx((0.25, 1.0))


def test_the_ways_to_write_one_label_add_up():
    top = {"1": 0.3, " 1": 0.2, "١": 0.1, "2": 0.4}
    assert preference(reply(place("1", **top))) == pytest.approx((0.6, 1.0))


def test_what_was_written_counts_even_where_it_is_not_among_the_top():
    written = {"token": "1", "logprob": math.log(0.2), "top_logprobs": [{"token": "2", "logprob": math.log(0.6)}]}
    assert preference(reply(written)) == pytest.approx((0.25, 0.8))


def test_a_log_probability_that_rounding_left_above_zero_is_certainty():
    rounded = {"token": "1", "logprob": 1e-3, "top_logprobs": [{"token": "2", "logprob": -9999.0}]}
    assert preference(reply(rounded)) == (1.0, 1.0)


def test_digits_after_the_verdict_are_not_taken_for_it():
    verdict = place("1", **{"1": 0.9, "2": 0.1})
    closing = place("]]", **{"]]": 0.99, "0": 0.006, "2": 0.004})
    number = place("2", **{"2": 0.7, "1": 0.3})
    for opening in ([place("[["), verdict], [place("["), place(" ["), place("**"), verdict]):
        assert preference(reply(*opening, closing, place(" in turn "), number)) == pytest.approx((0.9, 1.0))
    assert preference(reply(verdict, place(" or "), number)) == pytest.approx((0.3, 1.0))


def test_labels_of_ones_own_are_read_whole_or_from_their_beginning():
    whole = reply(place("[["), place("q2", **{"Q2": 0.6, "K7": 0.2, "1": 0.1, "2": 0.1}))
    assert preference(whole, LABELS) == pytest.approx((0.25, 0.8))
    cut = reply(place("[["), place("Q", **{"Q": 0.6, "K": 0.2, "T": 0.2}), place("2", **{"2": 1.0}), place("]]"))
    assert preference(cut, LABELS) == pytest.approx((0.3, 1.0))
    assert preference(cut, {"Q1": "a", "Q2": "b", "K7": "tie"}) is None


@pytest.mark.parametrize(
    "logprobs",
    [
        None, {}, [], "content", 3, {"content": None}, {"content": []}, {"content": {}}, {"content": "12"}, {"content": [None]}, {"content": [{}]},
        reply({"token": "1", "logprob": -0.1}), reply({"token": None, "logprob": -0.1, "top_logprobs": []}),
        reply({"token": "1", "logprob": None, "top_logprobs": [{"token": "2", "logprob": -1}]}),
        reply({"token": "1", "logprob": "-1", "top_logprobs": [{"token": "2", "logprob": -1}]}),
        reply({"token": "1", "logprob": math.nan, "top_logprobs": [{"token": "2", "logprob": -1}]}),
        reply({"token": "1", "logprob": -(10**400), "top_logprobs": [{"token": "2", "logprob": -1}]}),
        reply({"token": "1", "logprob": -9999.0, "top_logprobs": [{"token": "2", "logprob": -math.inf}]}),
        reply({"token": "1", "logprob": -0.1, "top_logprobs": [3]}), reply({"token": "1", "logprob": -0.1, "top_logprobs": None}),
        reply(place("1", **{"1": 1.0})), reply(place("[["), place("x", x=0.5, y=0.5)),
    ],
)  # fmt: skip
def test_log_probabilities_that_show_no_two_verdicts_or_are_malformed_give_none(logprobs):
    assert preference(logprobs) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["1", "2", "[[0", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["content", "token", "logprob", "top_logprobs"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values, st.lists(json_values, max_size=3))
def test_no_structure_raises(anything, places):
    for logprobs in (anything, {"content": places}, reply({"token": "1", "logprob": anything, "top_logprobs": places})):
        found = preference(logprobs)
        assert found is None or (0 <= found.p_first <= 1 and found.mass > 0)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3))
def test_swapping_the_labels_mirrors_the_preference(weights):
    top = dict(zip("120", weights, strict=True))
    here = preference(reply(place("1", **top)))
    there = preference(reply(place("1", **top)), {"2": "a", "1": "b", "0": "tie"})
    assert here.p_first + there.p_first == pytest.approx(1)
    assert here.mass == pytest.approx(sum(weights))
