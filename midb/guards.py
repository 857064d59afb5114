"""May this edit stand? Pure functions that look at a raw pair and its new version and give a reason to refuse, or nothing.

A guard blames a *change* only: a field that was left alone, or that already had the fault, passes. A guard speaks only
when it is sure, because a wrong refusal costs a good edit. Knows pairs, languages and text; not where the text came from.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import isroutine
from typing import Any

import numpy as np

from midb.identify import (
    ISO_15924,
    LATIN,
    MANY_LANGUAGES,
    SPACED,
    glance,
    languages,
    letters,
    prose,
    scripts,
    together,
    twins,
    width,
)  # fmt: skip
from midb.languages import BY_CODE
from midb.schema import Completion, Pair

Guard = Callable[[Pair, Pair, str | None, Completion], str | None]


def check(
    guards: Sequence[Guard], raw: Pair, new: Pair | None, language: str | None, completion: Completion
) -> str | None:
    """Ask the guards in their order.

    Args:
        guards: Any of this module, or functions of your own with the same signature.
        raw: The pair as it was.
        new: The pair as parsed from the completion; None when it did not parse.
        language: ISO 639 code of the pair; None lets the raw text speak for itself.
        completion: What the generator returned.

    Returns:
        The first reason, as `code` or `code: detail`; None when the edit may stand. A guard that raises, or returns
        something else than text or None, gives the reason `guard_failed: …`: the row keeps its raw pair, others go on.
    """
    if new is None:
        return "truncated" if completion.finish_reason == "length" else "unparsed"
    for guard in guards:
        try:
            reason = guard(raw, new, language, completion)
        except Exception as error:
            return _reason("guard_failed", f"{guard_name(guard)} raised {type(error).__name__}: {error}", 200)
        if reason is not None and not isinstance(reason, str):
            return _reason("guard_failed", f"{guard_name(guard)} returned {reason!r}", 200)
        if reason:
            return reason
    return None


def guard_name(guard: Guard) -> str:
    """Where a guard is defined: `module.function`, or the type of an object that is called."""
    named: Any = guard.func if isinstance(guard, partial) else guard
    named = named if isroutine(named) else type(named)
    return f"{named.__module__}.{named.__qualname__}"


def try_guards(guards: Sequence[Guard], pairs: Sequence[Pair], language: str | None) -> None:
    """Call guards of the user's own on raw pairs, before anything is paid.

    Raises:
        ValueError: A guard cannot be called with four arguments, raises, or returns something else than text or None.
    """
    for guard in (each for each in guards if not guard_name(each).startswith("midb.")):
        for row, raw in enumerate(pairs):
            for new in (raw, raw._replace(response=f"{raw.response}\n{raw.instruction}")):
                found = check((guard,), raw, new, language, Completion(new.response))
                if found and found.startswith("guard_failed"):
                    raise ValueError(
                        f"{found.partition(': ')[2]} on row {row}, where it was tried before the first call; a guard is called "
                        "with (raw, new, language, completion) and returns a reason (text) or None"
                    )


# --- cut, empty, left over: certain and cheap ------------------------------------------------------------------------


def empty(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse an instruction or response with nothing left to read. An emptied input is a legitimate edit."""
    for name, before, after in _changed(raw, new):
        if name != "input" and not _visible(after) and _visible(before):
            return f"empty: {name}"
    return None


def truncated(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse a text cut off: the engine says so, a code fence stays open, or its end is surely none.

    Where the engine says nothing, 55 to 65 of 100 cuts are seen: a list item without a full stop may be whole.
    """
    if completion.finish_reason == "length":
        return "truncated: token limit reached"
    before, after = raw.response, new.response
    if before == after:
        return None
    if after.count("```") % 2 and not before.count("```") % 2:
        return "truncated: a code fence stays open"
    if _breaks_off(after, raw, new) and not _breaks_off(before, raw, new):
        return _reason("truncated", f"response ends in {after.rstrip()[-20:]}")
    return None


# Chat control tokens, instruction-format headings, slots that were never filled, and the tags of MIDB, even broken ones.
_TAG = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?(?:s|bos|eos|pad|unk|think|tool_call|instruction|input|response|output)>"
    r"|<\s?\|\s?(?:instruction|input|response)\b|\b(?:instruction|input|response)\s?\|\s?>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|PAD|BOS|EOS|RESPONSE)\]|<</?SYS>>|\{(?:instruction|input|response|output)\}"
    r"|^(?-i:### (?:Instruction|Input|Response):)",
    re.MULTILINE | re.IGNORECASE,
)
_PROMPTS = (
    "to be more specific, detailed",
    "with more logical steps and grammarly",
    "minimize hallucination in output",
    "Improve the following instruction",
    "Below is an instruction that describes a task",
)
_BETTER = r"(?:improved|revised|rewritten|enhanced|updated|refined|polished|corrected|edited|boosted|optimized|better)"
_LABEL = re.compile(
    rf"[\s*#]*(?:(?:{_BETTER} )?(?:instruction|response)|{_BETTER} (?:input|output))\s*\**:\**", re.IGNORECASE
)
# A model that talks about the edit: "Sure! Here is the improved ...", "I have revised ...".
_OPENER = re.compile(
    r"^[ \t*#>\"']{0,6}(?:sure|certainly|of course|okay|ok)?[,!. ]{0,3}"
    r"(?:(?:here(?:['’]s| is| are)|below is|this is)(?: the| an| a| my| your)?(?: more)?|i(?:['’]ve| have))"
    rf" {_BETTER}\b",
    re.IGNORECASE | re.MULTILINE,
)
_ASKS_TO_IMPROVE = re.compile(
    r"\b(?:improv|revis|re-?writ|re-?phras|paraphras|re-?word|enhanc|updat|refin|polish|correct|edit|optimi|better|fix|grammar)",
    re.IGNORECASE,
)


def leftover(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse control tokens, template tags, prompt text or talk about the edit that the field did not have before."""
    for name, before, after in _changed(raw, new):
        found = _TAG.search(after) if any(sign in after for sign in "<>[{#") else None
        if found and not _TAG.search(before):
            return _reason("leftover", f"{found[0]} in the {name}")
        if any(prompt in after and prompt not in before for prompt in _PROMPTS):
            return f"leftover: the boosting prompt in the {name}"
        label = _LABEL.match(after) if name != "input" else None
        if label and not _LABEL.match(before):
            return _reason("leftover", f"{name} is labelled {label[0]}")
        opener = _OPENER.search(after)
        # Asked to improve a text, an answer may begin so.
        asked = name == "response" and _ASKS_TO_IMPROVE.search(raw.instruction)
        if opener and not asked and not _OPENER.search(before):
            return _reason("leftover", f"{name} says {opener[0]}")
    return None


# --- what must survive -----------------------------------------------------------------------------------------------

# A URL ends where a script begins that writes no spaces, or hangs its particles on words: "https://a.com/pathです".
_URL = re.compile(
    r"(?:(?:https?|ftp)://|www\.)([^\s<>\"'()\[\]{}،؛؟«»।\u0e00-\u0eff\u2000-\U0010ffff]{3,300})", re.IGNORECASE
)
_URL_TAIL = re.compile(r"[\W_]+\Z")


def lost_url(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse when a URL of a field is nowhere in the new pair; its scheme and closing punctuation may change."""
    for name, before, _ in _changed(raw, new):
        for url in _URL.findall(before.replace("&amp;", "&")):
            url = _URL_TAIL.sub("", url.removeprefix("www."))
            if not _kept(url, name, new):
                return _reason("lost_url", url)
    return None


# {name} {{name}} {first name} {0} {} ${name} %s %1$s %(name)s <name> [NAME]; not LaTeX (\frac{a}), HTML tags or
# Alpaca's <noinput>, nor List<String>.
_PLACEHOLDER = re.compile(
    r"(?<![\\\w}^_])\$?\{\{?[ ]?(?:[^\W\d][\w. -]{0,40}|\d{0,2})[ ]?\}?\}|(?<![\w%])%(?:\([\w.-]{1,40}\)|\d\$)?[sd](?!\w)"
    r"|\[(?-i:[A-Z][A-Z_ ]{2,30})\]"
    r"|(?<![A-Za-z0-9_])<(?!/|no ?(?:in|out)put|(?:a|b|i|u|p|s|br|hr|h[1-6]|em|strong|code|pre|div|span|ul|ol|li|table|tr|td|th|html|head"
    r"|body|title|img|form|input|button|script|style|link|meta|nav|main|header|footer|section|label|select|option)\b)"
    r"[^\W\d][\w -]{1,40}>",
    re.IGNORECASE,
)


_BLANK = re.compile(r"(?<![\w\]])\[[^\W\d][\w' .-]{1,30}\](?![(\[])")
_INNER_SPACE = re.compile(r"(?<=[{<\[])\s+|\s+(?=[}>\]])")


def lost_placeholder(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse when a placeholder of a field is gone from it.

    A blank such as [Your name] only where a prompt loses it: experts fill in or reword every second one of a response.
    $name and :name are not looked for: no expert edit holds one, so nothing says how they fare.
    """
    for name, before, _ in _changed(raw, new):
        found = _PLACEHOLDER.findall(before) if any(sign in before for sign in "{%<[") else []
        for placeholder in found if name == "response" else found + _BLANK.findall(before):
            alone = placeholder == before.strip("`\"'. ")  # "<no input>" in any language: a blank, not a placeholder
            if not alone and not _kept(placeholder, name, new):
                return _reason("lost_placeholder", placeholder)
    return None


# Lines that are hardly anything but program text, in the common languages.
_CODE_LINE = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(.*:|class \w+.*[:{]|(?:import|from) [\w.]+(?: import .+)?;?$|#include ?[<\"]|"
    r"(?:public|private|static|void|int|var|let|const|function)\b.*[;{(]|return\b.*;|(?:for|while|if) ?\(.*\)|"
    r"(?:for|while|if) .+:$|\w+\(.*\);?$|[\w.\[\]]+ ?[-+*]?= ?[^=\s].*;?$|<\/?\w+[^<>\n]*>|SELECT\b.*\bFROM\b|"
    r"(?:INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE)\b)",
    re.MULTILINE,
)
CODE_LINES = 3  # fewer are a formula or a tag in passing


def lost_code(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse when a fenced block of code is gone, or a field with lines of code has none left."""
    for name, before, after in _changed(raw, new):
        blocks, left = before.count("```") // 2, after.count("```") // 2
        if left < blocks:
            return f"lost_code: {left} of {blocks} blocks of code left in the {name}"
        if len(_CODE_LINE.findall(before)) >= CODE_LINES and not _CODE_LINE.search(after) and after.count("`") < 2:
            return f"lost_code: no line of code left in the {name}"
    return None


# --- length, loops, leaks --------------------------------------------------------------------------------------------

# Expert edits reach 149 times the raw length (p99: a one-word answer became a page) but hardly 4,400 characters, so
# only a text that is both far longer than its source and far longer than any expert wrote is absurd.
LONG_TEXT = 5_000
GROWTH = 5
# And none of the eight languages has an expert who kept less than 8 % of a response of 300 characters or more.
LONG_SOURCE, SHRINK = 150, 0.04


def absurd_length(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse a field that became both huge and many times its source, or a long response that all but vanished."""
    for name, before, after in _changed(raw, new):
        if len(after) < LONG_TEXT / 2 and len(before) < LONG_SOURCE / 2:
            continue
        old, now = width(before), width(after)
        if now > LONG_TEXT and now > GROWTH * old:
            return f"absurd_length: {name} grew from {len(before)} to {len(after)} characters"
        if name == "response" and old >= LONG_SOURCE and now < SHRINK * old:
            return f"absurd_length: {name} shrank from {len(before)} to {len(after)} characters"
    return None


LOOP_ANCHOR = 6  # characters that must come again for a loop to be looked at
LOOP_PERIOD = 1_500  # the longest loop body looked for
LOOP_STEP = 10  # how far anchors stand apart: a loop of LOOP_SPAN characters and a step more is always met
LOOP_SPAN = {True: 30, False: 200}  # with letters in the body; without, rules and blanks ("____") are ordinary text
# How often a body up to that length must come: "ha ha ha" is no loop, a sentence three times is.
LOOP_TIMES = ((24, 6), (LOOP_PERIOD, 3))
COUNTED_TIMES = 10  # lines that differ in their numbers only: a division worked out has fewer steps


def loop(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse a text that says the same thing over and over, be it a character, a phrase or lines that only count up."""
    for name, before, after in _changed(raw, new):
        body = _loop_body(after)
        if body and not _loop_body(before):
            return _reason("loop", f"{name} repeats {body}")
    return None


LEAK_PIECE = 24  # letters and digits; an answer may begin with the words of its question, so one piece is not enough
LEAK_SHARE = 0.4  # of a response's pieces: the better part of it in a changed prompt is no accident
LEAK_LEAST = 16  # a shorter response may be a term that the task names; wide characters count double
_NOT_WORD = re.compile(r"[\W_]+")


def leak(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse an instruction or input that gives away a response which the raw prompt did not hold."""
    if (raw.instruction, raw.input) == (new.instruction, new.input):
        return None
    source = _squeeze(f"{raw.instruction} {raw.input}")
    for name in ("instruction", "input"):
        before, after = getattr(raw, name), getattr(new, name)
        added = _squeeze(after.replace(before, " ", 1)) if before and before in after else ""
        after = _squeeze(after)
        for response in {_squeeze(new.response), _squeeze(raw.response)} if before != getattr(new, name) else ():
            if len(response) > 1 and response == added:
                return f"leak: the response was added to the {name}"
            pieces = [response[start : start + LEAK_PIECE] for start in range(0, len(response), LEAK_PIECE)]
            pieces = [piece for piece in pieces if width(piece) >= LEAK_LEAST]
            leaked = sum(piece in after and piece not in source for piece in pieces)
            if leaked > (LEAK_SHARE if leaked > 1 else 0.5) * len(pieces):
                return f"leak: the response stands in the {name}"
    return None


# --- script and language ---------------------------------------------------------------------------------------------

SCRIPT_LETTERS = 3  # a script is a text's own only with this many letters: a formula has a pi, a recipe a "½ l"
SCRIPT_OWN = 0.6  # ... and this share of them
SCRIPT_LEFT = 0.2  # less than this left of the own script is drift: brand names, code and quotes leave more
SCRIPT_NEW = 0.2  # more than this of a script (not Latin: names and code are Latin) that the raw pair lacks is drift


def script_drift(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse a field that left the script of its source, or took in another one that the raw pair does not have."""
    home = ISO_15924.get(BY_CODE[language].script) if language in BY_CODE else None
    for name, before, after in _changed(raw, new):
        now, old = scripts(prose(after)), scripts(before)
        total = now.sum()
        # An English text, or a number, that is now in the script of its declared language came home.
        if total < SCRIPT_LETTERS or now.argmax() == home:
            continue
        enough = max(SCRIPT_LETTERS, SCRIPT_NEW * total)
        strange = np.where(old > 0, 0, now)
        strange[LATIN] = 0
        if strange.max() >= enough and strange[scripts("\n".join(raw)) == 0].max(initial=0) >= enough:
            return f"script_drift: {name} mixes in another script"
        task = scripts(raw.instruction) if now.argmax() != old.argmax() else now
        if old.sum() < SCRIPT_LETTERS:
            old = task
        own = int(old.argmax())
        left = old[own] >= max(SCRIPT_LETTERS, SCRIPT_OWN * old.sum()) and now[own] < SCRIPT_LEFT * total
        # A response that was "XLII" or "Chien" and now explains itself in the script of its instruction came home.
        if left and now.argmax() != task.argmax():
            return f"script_drift: {name} left its script"
    return None


# Chosen on, not only tested on, the expert edits of nine languages: 3 of 20,000 refused, 99 % of swapped fields caught.
LETTERS = 12  # shorter text is too short to tell; wide characters count double
SURE = 0.2  # the wrong language must be this likely; a short text shares its odds among relatives (es, gl, an, ext)
TIMES = 20  # ... and this many times likelier than all languages that the source may be in, together
OWN = 0.2  # a source this likely in the declared language may be in no other
PLAUSIBLE = 0.05  # else in any language at least this likely
EXEMPT = 0.3  # English or code at least this likely in the source exempts it


def wrong_language(raw: Pair, new: Pair, language: str | None, completion: Completion) -> str | None:
    """Refuse a field that surely changed its language; silent where the source is English, code or too short to tell."""
    own = twins(language)
    for name, before, after in _changed(raw, new):
        text, source = prose(after), prose(before)
        now, old = scripts(text), scripts(source)
        least = LETTERS
        if letters(old) < LETTERS:  # then the rest of the raw pair must speak for it, and the new text be clear
            source = prose("\n".join(raw))
            old, least = scripts(source), 3 * LETTERS
        if letters(old) < LETTERS or letters(now) < least:
            continue
        script = int(now.argmax())
        if script == int(old.argmax()) and script not in MANY_LANGUAGES:
            continue
        if glance(text) in (own or twins(glance(source))):
            continue
        odds = languages(text)
        top = max(odds, key=odds.__getitem__)
        if odds[top] < SURE or top == "zxx" or together(odds, own) * TIMES >= odds[top]:
            continue
        was = languages(source if own else prose("\n".join(raw)))  # more text, where no language is declared
        if was.get("zxx", 0.0) >= EXEMPT or (own and "en" not in own and was.get("en", 0.0) >= EXEMPT):
            continue
        may_be = own
        if together(was, own) < OWN:
            may_be = own.union(*(twins(code) for code, likely in was.items() if likely >= PLAUSIBLE))
        if together(odds, may_be) * TIMES < odds[top]:
            return f"wrong_language: {name} reads as {top}, not {language or max(was, key=was.__getitem__)}"
    return None


DEFAULT_GUARDS: tuple[Guard, ...] = (
    empty, truncated, leftover, lost_url, lost_placeholder, lost_code, absurd_length, leak, loop, script_drift, wrong_language,
)  # fmt: skip


# --- how texts are looked at -----------------------------------------------------------------------------------------

DETAIL = 60  # characters of the dataset's text that a reason may quote


def _reason(code: str, detail: str, most: int = DETAIL) -> str:
    """One line of printable text, whatever the dataset holds."""
    clean = "".join(char if char.isprintable() else " " for char in detail[: 4 * most])
    clean = " ".join(clean.split())
    return f"{code}: {clean if len(clean) <= most else clean[: most - 1] + '…'}"


def _changed(raw: Pair, new: Pair) -> Iterator[tuple[str, str, str]]:
    """Name, old and new text of every field that is not what it was; the response first, where most changes are."""
    for name in ("response", "instruction", "input"):
        before, after = getattr(raw, name), getattr(new, name)
        if before != after:
            yield name, before, after


def _visible(text: str) -> bool:
    return any(char.isprintable() and not char.isspace() for char in text)


# The end of a sentence inside a line; "C.S. Lewis", "1. item" and "IV. item" end none.
_SENTENCE_END = re.compile(
    r"(?<![.\s]\w)(?<!^\w)(?<!^[IVX]{2})(?<!^[IVX]{3})(?<!\d)[.!?؟।…](?:[\"'“”’»)*]| »)*\s+|[。！？][”」』）]*\s*",
    re.MULTILINE,
)
_BROKEN_TAIL = 12  # a shorter rest may be a name or a flourish ("Enjoy")
_PARAGRAPHS = 2  # that many whole ones before a broken one: a title or a formula may follow a sentence
_BROKEN_LINE = 4  # words: a shorter line may be an item of a list
_USED = 5  # a word met so often inside sentences, never at the end of one, ends none: "of", "und"
_OPEN = (*"()", *"[]", *"{}", *"（）", *"「」", *"『』", *"“”", *"«»")
_BULLET = re.compile(r"\s*(?:([-*•+–—#|>])|\d{1,3}[.)、])")
_BARE_BULLET = re.compile(r"\s*(?:[-*•+]|\d{1,2}[.)])[\s*\"(]*")
_AROUND = ".,;:!?\"'()[]*_`«»“”‘’،؛؟…-"


def _ends_sentence(text: str) -> bool:
    return text.rstrip("\"'“”’»」』）)*_ \n").endswith((".", "!", "?", "؟", "।", "…", "。", "！", "？"))


def _breaks_off(text: str, raw: Pair, new: Pair) -> bool:
    """Whether the text surely stops before its end. Tuned on the nine languages' edits: at most 1 in 1,000 is refused for it."""
    text = text.rstrip()
    *above, line = text.split("\n")
    words = line.split()
    if above and _BARE_BULLET.fullmatch(line):
        return True
    if not words or _ends_sentence(text) or words[-1].startswith("#"):
        return False
    if any(line.rfind(opened) > line.rfind(closed) for opened, closed in zip(_OPEN[::2], _OPEN[1::2], strict=True)):
        return True
    if line[-1] in ",،、，":
        return width(line) > 20  # "Sincerely,"
    if not line[-1].isalnum() or "=" in line:
        return False
    whole = _ends_sentence(raw.response)
    # What was appended to a whole text may be a headline or a signature.
    if whole and not text.startswith(raw.response) and _end_is_missing(above, line):
        return True
    if whole and raw.response.startswith(text) and raw.response[len(text)].isalnum():
        return True
    return len(words) >= _BROKEN_LINE and _ends_in_part(words[-1], text, whole, raw, new)


def _end_is_missing(above: list[str], line: str) -> bool:
    """Whether sentences before, in the line or in all lines of its kind, end as sentences do and the last does not."""
    *_, end = (0, *(match.end() for match in _SENTENCE_END.finditer(line)))
    rest = line[end:]  # an author, an aside and hashtags need no full stop
    if width(rest) < _BROKEN_TAIL or (end and (rest[0] in "-–—*(" or "#" in rest)):
        return False
    like = [_ends_sentence(other) for other in above if other.strip() and _kind(other) == _kind(line)]
    return end > 0 or (len(like) >= (1 if _kind(line) else _PARAGRAPHS) and all(like))


def _kind(line: str) -> str:
    """The mark of a list's line, "1" for any number, nothing for plain text."""
    bullet = _BULLET.match(line)
    return (bullet[1] or "1") if bullet else ""


def _ends_in_part(last: str, text: str, whole: bool, raw: Pair, new: Pair) -> bool:
    """Whether the last word is the beginning of another one and no word itself, or one that ends no sentence."""
    last, body = last.strip(_AROUND), "\n".join((*raw, new.instruction, new.input, text))
    if not last or (len(last) == 1 and last.isupper()):
        return False
    counts = scripts(last)
    if 0 < counts.sum() == counts[SPACED].sum() and (len(last) > 1 or whole):
        last, known = last.casefold(), [word.strip(_AROUND) for word in body.casefold().split()]
        if known.count(last) == 1 and any(word.startswith(last) and len(word) > len(last) + 1 for word in known):
            return True
    uses = re.findall(rf"(?<!\w){re.escape(last)}(?!\w)([^\S\n]\w)?", body[: -len(last)], re.IGNORECASE)
    return last[-1].isalpha() and len(uses) >= _USED and all(uses)


def _squeeze(text: str) -> str:
    """Letters and digits only: punctuation and layout hide no leak."""
    return _NOT_WORD.sub("", text).casefold()


def _kept(piece: str, name: str, new: Pair) -> bool:
    """Whether what a response held is still in the response, or what a prompt held still in the prompt."""
    text = new.response if name == "response" else f"{new.instruction}\n{new.input}"
    return piece in text or _INNER_SPACE.sub("", piece) in _INNER_SPACE.sub("", text.replace("&amp;", "&"))


_DIGITS = re.compile(r"\d+")


def _loop_body(text: str) -> str:
    """The body of a loop in the text, or nothing. Linear: each anchor looks ahead no farther than LOOP_PERIOD."""
    masked, numbers = _DIGITS.subn("0", text)
    for counted in (text, masked) if numbers >= COUNTED_TIMES else (text,):
        for start in range(0, len(counted) - LOOP_SPAN[True] + 1, LOOP_STEP):
            anchor = counted[start : start + LOOP_ANCHOR]
            again = counted.find(anchor, start + 1, start + LOOP_PERIOD + LOOP_ANCHOR)
            if again < 0 or not counted.startswith(body := counted[start:again], again):
                continue
            words = any(map(str.isalpha, body))
            if counted is not text and not words:
                continue  # numbers in a row are a list of numbers
            times = next(times for longest, times in LOOP_TIMES if len(body) <= longest)
            times = max(times, COUNTED_TIMES if counted is not text else 0, -(-LOOP_SPAN[words] // len(body)))
            if counted.startswith(body * times, start):
                return body
    return ""
