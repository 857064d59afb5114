"""Comparison → messages: the published judge prompt, and our forms for what it does not cover.

Knows text only. A marker or a control token inside a question or an answer is escaped with a backslash, so that no text can
move a block of the prompt; all other text passes unchanged, byte for byte.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

from midb.judging.verdict import DIGITS, Verdict
from midb.prompts import escape
from midb.schema import Message

# The published evaluation prompt, with the published verdict tokens. Source: MIDB's README, "Evaluation Script"; the
# blanks at its line ends are Markdown's and are left out, the curly apostrophes are the original's.
_SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the user "
    "question displayed below. You should choose the assistant that follows the user’s instructions and answers the user’s "
    "question better. Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, "
    "creativity, and level of detail of their responses. Begin your evaluation by comparing the two responses and provide a "
    "short explanation. Avoid any position biases and ensure that the order in which the responses were presented does not "
    "influence your decision. Do not allow the length of the responses to influence your evaluation. Do not favor certain "
    "names of the assistants. Be as objective as possible. After providing your explanation, output your final verdict by "
    'strictly following this format: "[[1]]" if assistant A is better, "[[2]]" if assistant B is better, and "[[0]]" for a '
    "tie."
)
_USER = (
    "[User Question]\n{question}\n"
    "[The Start of Assistant A’s Answer]\n{answer_a}\n[The End of Assistant A’s Answer]\n"
    "[The Start of Assistant B’s Answer]\n{answer_b}\n[The End of Assistant B’s Answer]"
)
_FACTORS = _SYSTEM[_SYSTEM.index("Your evaluation should") : _SYSTEM.index("Begin your evaluation")]
# What the published prompt lacks. The structure is FastChat's (whole conversations, references first), the words are ours.
_SECOND = (
    _SYSTEM.replace("user question displayed", "user questions displayed")
    .replace("the user’s question better", "the user’s questions better")
    .replace(
        _FACTORS,
        f"{_FACTORS}The first turn is given as context. Decide by the answers to the second question. ",
    )
)
_REFERENCE_FACTORS = (
    "A reference answer is given before the two answers. Check both answers against it and weigh only whether they are "
    "correct and helpful. The reference answer may be written in English; judge the content, not its language. "
)
_CONVERSATION = (
    "[The Start of Assistant {X}’s Conversation]\n[User Question 1]\n{question_1}\n[Assistant {X}’s Answer 1]\n{answer_x_1}\n"
    "[User Question 2]\n{question_2}\n[Assistant {X}’s Answer 2]\n{answer_x_2}\n[The End of Assistant {X}’s Conversation]"
)
_CONVERSATIONS = "\n".join(
    _CONVERSATION.replace("{X}", side).replace("_x_", f"_{side.lower()}_") for side in ("A", "B")
)
_PAIR = (
    "[The Start of Version {X}]\n[Instruction]\n{instruction_x}\n[Input]\n{input_x}\n[Response]\n{response_x}\n"
    "[The End of Version {X}]"
)
_PAIRS = "\n".join(_PAIR.replace("{X}", side).replace("_x}", f"_{side.lower()}}}") for side in ("A", "B"))
_PAIRS_SYSTEM = (
    "Please act as an impartial judge of training data. Two versions of one example are displayed below, each an instruction, "
    "an optional input, and a response; a language model will be trained on one of them. You should choose the version that "
    "makes the better training example. Consider whether the instruction is clear, natural and feasible, whether the response "
    "follows it, and the helpfulness, accuracy, depth and level of detail of the response, as well as the fluency of the "
    "language and how well it suits the people who speak it. Begin your evaluation by comparing the two versions and provide "
    "a short explanation. Avoid any position biases and ensure that the order in which the versions were presented does not "
    "influence your decision. Do not allow the length of the versions to influence your evaluation. Be as objective as "
    'possible. After providing your explanation, output your final verdict by strictly following this format: "[[1]]" if '
    'version A is better, "[[2]]" if version B is better, and "[[0]]" for a tie.'
)
FOLLOW_UP = "Output only your final verdict: [[1]], [[2]] or [[0]]"


class Template(NamedTuple):
    """A system and a user text; the user text names its values in braces."""

    system: str
    user: str


_ANSWERS = Template(_SYSTEM, _USER)
_SECOND_TURN = Template(_SECOND, _CONVERSATIONS)
_REFERENCE = Template(_SYSTEM.replace(_FACTORS, _REFERENCE_FACTORS), f"[Reference Answer]\n{{reference}}\n{_USER}")
_SECOND_TURN_REFERENCE = Template(
    _SECOND.replace(_FACTORS, _REFERENCE_FACTORS.replace("A reference answer is", "Reference answers are")),
    f"[Reference Answer 1]\n{{reference_1}}\n[Reference Answer 2]\n{{reference_2}}\n{_CONVERSATIONS}",
)
_PAIRS_FORM = Template(_PAIRS_SYSTEM, _PAIRS)


@dataclass(frozen=True)
class JudgePrompts:
    """The judge's prompts. The first is the published one; the others are ours, for what it does not cover.

    Args:
        answers: Two answers to one question: `{question}`, `{answer_a}`, `{answer_b}`.
        second_turn: Two conversations of two turns: `{question_1}`, `{answer_a_1}`, ..., `{answer_b_2}`.
        reference: As `answers`, with `{reference}`.
        second_turn_reference: As `second_turn`, with `{reference_1}` and `{reference_2}`.
        pairs: Two versions of one training row: `{instruction_a}`, `{input_a}`, `{response_a}` and the same of b.

    Source: `answers` is MIDB's evaluation prompt (its README); the others are ours, in the structure of FastChat's.
    """

    answers: Template = _ANSWERS
    second_turn: Template = _SECOND_TURN
    reference: Template = _REFERENCE
    second_turn_reference: Template = _SECOND_TURN_REFERENCE
    pairs: Template = _PAIRS_FORM

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            forms: list[Template] = [getattr(JudgePrompts, name), getattr(self, name)]
            wanted, found = (set(re.findall(r"\{(\w+)\}", each.user)) for each in forms)
            if wanted != found:
                raise ValueError(
                    f"the user text of {name!r} has the places {sorted(found)}; it needs exactly {sorted(wanted)}, each in braces"
                )


def render(
    template: Template,
    values: Mapping[str, str],
    *,
    labels: Mapping[str, Verdict] | None = None,
    language: str = "",
    system_role: bool = True,
) -> list[Message]:
    """Write one comparison: the values are put between the template's pieces and never read as a template themselves.

    Args:
        values: As the template names them, guarded already (`guard`) or not (parity).
        labels: Verdict words in place of 1, 2 and 0: word → `a`, `b` or `tie`.
        language: An English language name adds the line that an answer should be in it.
        system_role: False puts the system text in front of the user's, for models that have no such role.
    """
    pieces = _pieces(template.user)
    user = "".join([values[piece] if at % 2 else piece for at, piece in enumerate(pieces)])
    system = relabel(template.system, labels)
    if language:
        system += (
            f" The user question is in {language}. An answer in another language does not follow the user, unless the user "
            "asked for it."
        )
    if not system_role:
        return [{"role": "user", "content": f"{system}\n\n{user}"}]
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def relabel(text: str, labels: Mapping[str, Verdict] | None) -> str:
    """Put other verdict words in place of the published ones, in a text of ours."""
    if labels is None:
        return text
    words = {verdict: word for word, verdict in labels.items()}
    return re.sub(r"\[\[([012])\]\]", lambda found: f"[[{words[DIGITS[found[1]]]}]]", text)


def random_labels(*parts: object) -> dict[str, Verdict]:
    """Three verdict words, equal for equal parts: a planted `[[2]]` or a preference for `1` then has no effect."""
    noise = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])
    words: dict[str, Verdict] = {}
    verdicts: tuple[Verdict, ...] = ("a", "b", "tie")
    for verdict in verdicts:
        while True:
            noise, letter = divmod(noise, len(_LETTERS))
            noise, digit = divmod(noise, 7)
            if (word := f"{_LETTERS[letter]}{digit + 3}") not in words:  # no 0, 1 or 2
                break
        words[word] = verdict
    return words


def guard(text: str, template: Template) -> str:
    """Disarm what could end a block of this template or a turn of the chat: a backslash before the bracket."""
    if "[" in text or any(bracket in text for bracket in _BRACKETS):
        markers = _markers(template.user)
        text = _BRACKETED.sub(
            lambda found: f"\\{found[0]}" if _plain(found[1]) in markers else found[0],
            text,
        )
    return escape(text)


_LETTERS = "CDEFGHJKLMNPQRSTUVWXYZ"  # no A and B, which name the assistants
_BRACKETS = "［【〖〔⟦〚"
_BRACKETED = re.compile(rf"[\[{_BRACKETS}]([^\[\]]{{1,80}}?)[\]］】〗〕⟧〛]")
# What reads as another sign: apostrophes, and the letters that Cyrillic and Greek share with our markers.
_LOOK_ALIKES = str.maketrans(
    "’‘ʼ＇`´′‛ʹАВЕЅІЈКМНОРСТУХаеѕіјорсухԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "'''''''''ABESIJKMHOPCTYXaesijopcyxdqwABEZHIKMNOPTYXo"
)
# Drawn as nothing, and no format character: joiners, fillers, variation selectors.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0]")


@cache
def _pieces(user: str) -> Sequence[str]:
    return re.split(r"\{(\w+)\}", user)


@cache
def _markers(user: str) -> frozenset[str]:
    forms = (user,) if user == _PAIRS else (user, _USER, _CONVERSATIONS, _REFERENCE.user, _SECOND_TURN_REFERENCE.user)
    found = {_plain(marker) for form in forms for marker in re.findall(r"\[([^\[\]\n]+)\]", form)}
    return frozenset({"system", *found})


def _plain(text: str) -> str:
    """A marker as a reader sees it: no case, no look-alikes, no invisible characters, single blanks."""
    shown = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).translate(_LOOK_ALIKES).casefold()
    return " ".join("".join(each for each in shown if unicodedata.category(each) != "Cf").split())
