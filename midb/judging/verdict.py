"""A judge's reply → a verdict; the verdicts of two orders → one; log-probabilities → a preference.

Knows text and the three verdicts; no prompts, generators or datasets. A reply that does not clearly name the better answer has
no verdict, and its status gives the reason, so that the judge can be asked again.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

Verdict = Literal["a", "b", "tie"]  # a reply names the first shown "a"; un-swapped, "a" is the answer of dataset a

DIGITS: Mapping[str, Verdict] = {"1": "a", "2": "b", "0": "tie"}
# What judges trained on other prompts write in the brackets (FastChat's letters, arena-hard's labels), without blanks.
WORDS: Mapping[str, Verdict] = {
    "a": "a", "assistanta": "a", "a>b": "a", "a>>b": "a", "b<a": "a", "b<<a": "a",
    "b": "b", "assistantb": "b", "b>a": "b", "b>>a": "b", "a<b": "b", "a<<b": "b",
    "c": "tie", "tie": "tie", "draw": "tie", "a=b": "tie", "b=a": "tie",
}  # fmt: skip

LONGEST = 16  # characters in a token's brackets; what is longer is prose
ECHO = 240  # characters that the repeated instruction may take
TRIM = " \t\n*_\"'“”„‟‘’‚‛«»‹›「」『』"  # blanks, emphasis and quotes around the verdict
BRACKETS = {"【": "[", "〖": "[", "】": "]", "〗": "]", "⟦": "[[", "〚": "[[", "⟧": "]]", "〛": "]]"}

TOKEN = re.compile(r"\[\[([^\[\]]*)\]\]")
MANGLED = re.compile(r"(?<!\[)\[([^\[\]]*)\]\]")  # [1]]
ALONE = re.compile(r"(?:[^\[\]:.!?;。؟]{1,40}:[ \t*_]*+)?\[([^\[\]]*)\]")  # [1] or Verdict: [1], as a whole line
LINK_OR_NAME = re.compile(r"\(|[*_]*['’]s(?![^\W\d_])", re.IGNORECASE)  # not the Turkish [[2]]'si
GLUED = re.compile(r"[*_]*[A-Za-z]")
THINK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
FENCE = re.compile(r"`{3,}|^[ \t>]*~{3,}", re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)(``?)(?!`)(.+?)(?<!`)\1(?!`)")
CODE = " code "  # a word in place of code
SENTENCE_END = re.compile(r"[.!?;。؟\n]")  # in plain text, which has no full-width marks left
BLANK_LINE = re.compile(r"\n[ \t]*\n")
WORD = re.compile(r"[^\W_]")


class Parsed(NamedTuple):
    """What a reply says.

    Attributes:
        verdict: `a` (the first shown is better), `b`, `tie`; None when the reply gives none.
        status: `ok`, or why there is no verdict: `missing`, `invalid` (brackets around something else), `ambiguous`,
            `truncated`, `empty`, `refusal` (the server filtered it).
    """

    verdict: Verdict | None
    status: str


class Preference(NamedTuple):
    """Probability of the verdict.

    Attributes:
        p_first: Probability that the first shown is better, a tie counting half.
        mass: Probability of all verdicts together before they were scaled to 1; low means that other tokens were likelier.
    """

    p_first: float
    mass: float


class _Token(NamedTuple):
    start: int
    end: int
    key: str
    verdict: Verdict | None  # None: a bad token


def parse_verdict(
    text: str | None,
    finish_reason: str | None = None,
    *,
    strict: bool = False,
    labels: Mapping[str, Verdict] | None = None,
) -> Parsed:
    """Read the verdict from a judge's reply, in any of the scripts that judges write.

    Args:
        text: The reply.
        finish_reason: Why it ended; `length` and `content_filter` matter.
        strict: Take `[[1]]`, `[[2]]` and `[[0]]` only (or the labels): what else is a verdict by default, such as
            `[[A]]`, `[[Tie]]` or a last line `[1]`, is none.
        labels: What stands for each verdict instead of the digits, such as `{"K7": "a", "Q2": "b", "T9": "tie"}`, in any
            case. Then nothing else in brackets counts, so a `[[2]]` planted in an answer neither decides nor spoils.

    Source: FastChat's and arena-hard's formats; the rules are our own, made on stored replies.
    """
    cut, filtered = finish_reason == "length", finish_reason == "content_filter"
    exact = DIGITS if labels is None else {_key(_plain(label)): verdict for label, verdict in labels.items()}
    known = {**DIGITS, **WORDS} if labels is None else exact

    # An empty reply, by the eye.
    text = _plain(text or "")
    if not text.strip():
        return Parsed(None, "refusal" if filtered else "empty")

    # A verdict inside the reasoning is a draft.
    *_, thought = [None, *THINK.finditer(text)]
    if thought and not thought[1]:
        return Parsed(None, "truncated")
    text = _without_code(text[thought.end() :] if thought else text)

    tokens = list(_without_echo(list(_tokens(text, known, bad=labels is None)), text))
    if not tokens:
        alone = None if strict or cut else _alone(text, known)
        missing = "truncated" if cut else "refusal" if filtered else "missing"
        return Parsed(alone, "ok" if alone else missing)

    # The last one decides.
    last = tokens[-1]
    if last.verdict is None:
        return Parsed(None, "invalid")

    # Two verdicts in one breath, as in "[[1]] or [[2]]" and "[[1]] is better than [[2]]", are no verdict.
    different = [token for token in tokens if token.verdict not in (None, last.verdict)]
    mangled = [token for token in _mangled(text, known) if token.verdict not in (None, last.verdict)]
    before = max((token for token in (*different, *mangled) if token.end <= last.start), default=None)
    if before:
        between = text[before.end : last.start]
        same_sentence = not SENTENCE_END.search(between)
        directly_before = not WORD.search(TOKEN.sub("", between))
        words_follow = different and WORD.search(text[last.end :].partition("\n")[0])
        if same_sentence or directly_before or words_follow:
            return Parsed(None, "ambiguous")

    # A reply that was cut in its explanation might have changed its mind.
    if cut and WORD.search(text, last.end):
        return Parsed(None, "truncated")
    if strict and last.key not in exact:
        return Parsed(None, "invalid")
    return Parsed(last.verdict, "ok")


def holds_token(text: str) -> bool:
    """Whether a text holds what `parse_verdict` would read as a verdict, in whatever signs."""
    if not any(bracket in text for bracket in ("[", "［", *BRACKETS)):
        return False
    return any(token.verdict for token in _tokens(_plain(text), {**DIGITS, **WORDS}, bad=False))


def unswap(verdict: Verdict | None) -> Verdict | None:
    """Turn a verdict on two answers into the verdict on the same two shown in the other order."""
    if verdict == "a":
        return "b"
    return "a" if verdict == "b" else verdict


def merge(
    verdict_ab: Verdict | None, verdict_ba: Verdict | None, rule: Literal["conservative", "decisive"] = "conservative"
) -> Verdict | None:
    """Make one verdict of the two orders, both in terms of the datasets.

    A missing verdict is never a tie: the other order alone carries the judge's taste for a place, so there is none.

    Args:
        verdict_ab: With the answer of dataset a shown first.
        verdict_ba: With that of b shown first, un-swapped.
        rule: `conservative`: what is not unanimous is a tie. `decisive`: a win and a tie make a win, and opposite wins
            make no verdict.

    Source: FastChat's `show_result` (conservative).
    """
    if verdict_ab is None or verdict_ba is None:
        return None
    if verdict_ab == verdict_ba:
        return verdict_ab
    if rule == "conservative":
        return "tie"
    if verdict_ab == "tie":
        return verdict_ba
    return verdict_ab if verdict_ba == "tie" else None


def preference(logprobs: Any, labels: Mapping[str, Verdict] = DIGITS) -> Preference | None:
    """Read the probabilities of the verdicts from a reply's log-probabilities.

    The position read is the last one after `[[` (without one, the last position) that lists at least two verdicts. A
    tokeniser may join brackets to a label or split a label: then its beginning counts, if no other label begins so.

    Args:
        logprobs: `choices[0].logprobs` of a chat completion, with `top_logprobs`.
        labels: The word that stands for each verdict.

    Returns:
        None if no position lists two verdicts, or the structure is not that of a chat completion.

    Source: alpaca_eval's weighted preference, with a third verdict.
    """
    keys = {_key(_plain(label)): verdict for label, verdict in labels.items()}
    decision: dict[Verdict, float] = {}
    try:
        places = logprobs["content"]
        for at in reversed(range(len(places))):
            found = _probabilities(places[at], keys)
            if len(found) < 2:
                continue
            decision = decision or found
            *before, written = (_plain(place["token"]) for place in places[max(0, at - 4) : at + 1])
            glued = written[: len(written) - len(written.lstrip(TRIM + "["))]
            if "".join([*before, glued]).replace(" ", "").rstrip(TRIM).endswith("[["):
                decision = found
                break
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    mass = sum(decision.values())
    if not mass > 0:  # nothing found, or not a number
        return None
    return Preference((decision.get("a", 0.0) + decision.get("tie", 0.0) / 2) / mass, mass)


def _plain(text: str) -> str:
    """The text as it is matched: one kind of bracket, digit, blank and line end, and nothing invisible.

    Character by character: normalising the whole takes hours on a megabyte of combining marks.
    """
    lines = "\n".join(text.splitlines())
    text = lines if text.isascii() else lines.translate({ord(each): _plain_character(each) for each in set(text)})
    text = text.replace("\\[", "[").replace("\\]", "]")
    text = re.sub(r"\[[ \t]+(?=\[)", "[", text)
    return re.sub(r"(?<=\])[ \t]+\]", "]", text)


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    match unicodedata.category(character):
        case "Cf":
            return ""
        case "Nd":
            return str(unicodedata.decimal(character))
    if character == "（":  # opens a gloss, where the ASCII one makes a link
        return character
    compatible = unicodedata.normalize("NFKC", character)
    return BRACKETS.get(compatible, compatible)


def _key(text: str) -> str:
    return "".join(text.casefold().split())


def _without_code(text: str) -> str:
    """Code goes, an unclosed block with all that follows; but a token alone in code stays."""
    prose, opened, at = [], None, 0
    for fence in FENCE.finditer(text):
        if opened is None:
            prose.append(text[at : fence.start()])
            opened = fence[0].lstrip(" \t>")
            at = fence.end()
        elif fence[0].endswith(opened):
            body = text[at : fence.start()]
            info, _, below = body.partition("\n")
            prose.append(_token_or_code(body if "[[" in info else below))
            opened = None
            at = fence.end()
    prose.append(CODE if opened else text[at:])
    return INLINE_CODE.sub(lambda code: _token_or_code(code[2]), "".join(prose))


def _token_or_code(body: str) -> str:
    body = body.strip(TRIM)
    return body if TOKEN.fullmatch(body) else CODE


def _tokens(text: str, known: Mapping[str, Verdict], bad: bool) -> Iterator[_Token]:
    for match in TOKEN.finditer(text):
        inside = match[1].strip(TRIM)
        key = _key(inside)
        if len(inside) > LONGEST or (key not in known and not bad):
            continue
        if LINK_OR_NAME.match(text, match.end()) or (not key.isdigit() and GLUED.match(text, match.end())):
            continue
        yield _Token(match.start(), match.end(), key, known.get(key))


def _mangled(text: str, known: Mapping[str, Verdict]) -> Iterator[_Token]:
    for match in MANGLED.finditer(text):
        key = _key(match[1].strip(TRIM))
        yield _Token(match.start(), match.end(), key, known.get(key))


def _without_echo(tokens: list[_Token], text: str) -> Iterator[_Token]:
    """Three tokens that name each verdict in the prompt's order are the prompt's words."""
    at = 0
    while at < len(tokens):
        echo = tokens[at : at + 3]
        start, end = echo[0].start, echo[-1].end
        in_order = [token.verdict for token in echo] in (["a", "b", "tie"], ["tie", "a", "b"])
        if in_order and end - start <= ECHO and not BLANK_LINE.search(text, start, end):
            at += 3
        else:
            yield tokens[at]
            at += 1


def _alone(text: str, known: Mapping[str, Verdict]) -> Verdict | None:
    """The verdict in single brackets that is the whole last line but for a short label."""
    line = text.rstrip().rpartition("\n")[2]
    match = ALONE.fullmatch(line.strip(TRIM + "#>-.!。"))
    return known.get(_key(match[1].strip(TRIM))) if match else None


def _probabilities(place: Any, keys: Mapping[str, Verdict]) -> dict[Verdict, float]:
    """The verdicts that could have been written at one place of a reply; what was written need not be among the top."""
    found: dict[Verdict, float] = {}
    for listed in (*(place["top_logprobs"] or ()), place):
        start = _key(_plain(listed["token"]).strip(TRIM + "[]"))
        begun = [verdict for key, verdict in keys.items() if start and key.startswith(start)]
        if len(begun) == 1 and not (listed is place and begun[0] in found):
            found[begun[0]] = found.get(begun[0], 0.0) + math.exp(min(listed["logprob"], 0.0))
    return found
