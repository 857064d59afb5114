"""Row ⇄ messages: the published template, written and read back without loss.

Knows text only: not which model reads it (`chat.py`), not whether the answer may stand (`guards.py`).
"""

import re

from midb.schema import Message, Pair

# The published prompt, for every language; "grammarly" is the original's spelling. Source: MIDB, assets/MEB_dataset_template.
PROMPT = (
    "Improve the following content to be more specific, detailed with more logical steps and grammarly corrected; "
    "avoid generating incorrect and misleading information in output; minimize hallucination in output."
)

# The published tags are plain text, not special tokens. Source: as above.
TAGS = ("<|instruction|>", "<|input|>", "<|response|>")

# Text that some model family reads as control, after its first character. A backslash between the two disarms it:
# `<|im_end|>` travels as `<\|im_end|>`. Text that already has backslashes there gets one more, so that taking one away
# gives back exactly what was there: no pattern has the start of another inside, so each is met at the same places again.
# <mask> is left alone: it ends nothing, and published rows hold it as text.
_WORDS = (
    r"s|bos|eos|pad|unk|cls|sep|sop|eo[a-z]|bom|seed:\w+|\w+_token|end_of_\w+|start_of_\w+|begin_of_\w+|im_\w+|"  # SentencePiece, Gemma, Aya
    r"think|tool_\w+|image|image_\w+|audio_\w+|video_\w+|fim[-_]\w+|file_sep|repo_name|"  # reasoning, tools, pictures, code
    r"unused_?\d+|extra_id_\d+|reserved_\w+|special_\w+|custom_\w+|0x[0-9a-f]{2}|_\w+|endoftext|startoftext"  # T5, Nemotron, Baichuan
)
_NAMES = (
    r"INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_\w+|IMG\w*|AUDIO|BEGIN_AUDIO|THINK|ARGS|CALL_ID|MODEL_SETTINGS|PREFIX|MIDDLE|SUFFIX|"
    r"REFERENCE_DOC_\d+|control_\d+|CLS|SEP|gMASK|sMASK|PAD|UNK|BOS|EOS"  # Mistral, BERT, GLM
)
_ANGLE = (
    rf"[|｜]|(?i:/?(?:{_WORDS})\s*/?>)|/?[A-Za-z_]{{1,24}}\|>|</?SYS>>"  # <|...|>, <｜...｜>, <name>, <name|>, <<SYS>>
)
_SQUARE = rf"/?(?:{_NAMES})\]|\||e~\["  # [NAME], EXAONE's [|...|], MiniMax's [e~[
_CLOSING = r"~!?b[\[\]]"  # MiniMax's ]~b] and ]~!b[
_CONTROL = re.compile(rf"<\\*(?={_ANGLE})|\[\\*(?={_SQUARE})|\]\\*(?={_CLOSING})")
_ESCAPED = re.compile(rf"<\\+(?={_ANGLE})|\[\\+(?={_SQUARE})|\]\\+(?={_CLOSING})")


def escape(text: str) -> str:
    """Disarm everything in `text` that a model or `parse_pair` could read as control; clean text passes unchanged."""
    return _CONTROL.sub(lambda found: found[0][0] + "\\" + found[0][1:], text)


def unescape(text: str) -> str:
    """Undo `escape`: `unescape(escape(text)) == text` for any text."""
    return _ESCAPED.sub(lambda found: found[0][0] + found[0][2:], text)


def check_tags(tags: tuple[str, str, str]) -> None:
    """Refuse tags that text could forge: only `<|word|>` is covered by `escape`.

    Raises:
        ValueError: A tag has another shape, or two are the same.
    """
    if len(set(tags)) != 3 or not all(re.fullmatch(r"<\|\w+\|>", tag) for tag in tags):
        raise ValueError(f"tags={tags!r} cannot be told from text; give three different tags of the form <|word|>")


def render_pair(pair: Pair, *, tags: tuple[str, str, str] = TAGS, parity: bool = False) -> str:
    """Write a pair between the three tags, one per line; an empty input leaves its tag standing.

    Args:
        pair: Any text in any field; it is escaped, so that it can neither end a turn nor move a field.
        tags: The instruction, input and response tag.
        parity: No escaping, as the reference does.

    Source: MIDB, assets/MEB_dataset_template (METHOD: no space after tags, inner newlines kept).
    """
    fields = pair if parity else map(escape, pair)
    return "\n".join(tag + field for tag, field in zip(tags, fields, strict=True))


def parse_pair(text: str, *, tags: tuple[str, str, str] = TAGS, parity: bool = False) -> Pair | None:
    """Read a pair back: each tag exactly once, in order; None for anything else.

    What stands before the first tag (a model's "Sure, here it is:") belongs to no field and is left out. One newline
    before a tag is the template's; every other character of a field is kept.
    """
    if any(text.count(tag) != 1 for tag in tags):
        return None
    _, rest = text.split(tags[0])
    if rest.find(tags[1]) < 0 or rest.find(tags[2]) < rest.find(tags[1]):
        return None
    instruction, rest = rest.split(tags[1])
    input_, response = rest.split(tags[2])
    fields = (instruction.removesuffix("\n"), input_.removesuffix("\n"), response)
    return Pair(*(fields if parity else map(unescape, fields)))


def render_messages(
    pair: Pair, prompt: str = PROMPT, *, tags: tuple[str, str, str] = TAGS, parity: bool = False
) -> list[Message]:
    """The chat that asks a model to boost `pair`: one user turn, the prompt and the tagged pair joined by a newline."""
    return [{"role": "user", "content": f"{prompt}\n{render_pair(pair, tags=tags, parity=parity)}"}]
