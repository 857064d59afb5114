"""Messages → the exact text and token ids that a model sees, and a hash of how.

Takes a tokenizer object of `transformers` and loads neither it nor torch. Knows chats, not what they are for.

Text from a dataset is hostile: it may hold `<|eot_id|>`, `[INST]` or any other control token of the tokenizer at hand.
`prompts.py` escapes the families it knows as text; this room is the second wall and holds for any tokenizer: only the
template writes control tokens, and a control token in a message is encoded as the letters it is made of. A chat without
one has the ids of the reference, id for id. (`sanitize_control_tokens` of transformers ≥ 5.23 does this for whole
tokens; this also covers older versions, the llama3 text, and tokens that only normalisation or a border forms.)
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any, Literal

from jinja2 import TemplateError

from midb.schema import Message

Rendering = Literal["auto", "template", "llama3", "plain"]

_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# Some templates print today's date. Another day must not be another prompt, so the day is the one that Llama 3.1's own
# template falls back to. A macro, because transformers turns a function passed to a template into text.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%m', '07') | replace('%b', 'Jul')"
    " | replace('%B', 'July') | replace('%Y', '2024') | replace('%y', '24') }}{% endmacro %}{{ '' }}"
)


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer's model reads chats.

    Args:
        tokenizer: A tokenizer of `transformers`.
        rendering: `template` is the model's own chat template; `llama3` the published method's text for base models;
            `plain` one question and its answer as bare text, for base models that were trained with it;
            `auto` the first of `template` and `llama3` that the tokenizer can.
        parity: Encode control tokens inside messages as control tokens, as the reference implementation does.

    Raises:
        ValueError: The tokenizer cannot do this rendering.
    """

    tokenizer: Any
    rendering: Rendering = "auto"
    parity: bool = False

    def __post_init__(self) -> None:
        """Resolve `auto`, so that nobody asks twice."""
        has_template = bool(self.tokenizer.chat_template)
        has_llama3 = set(_LLAMA3_TOKENS) <= self.tokenizer.get_vocab().keys()
        if self.rendering == "auto":
            if not has_template and not has_llama3:
                raise ValueError(
                    "the tokenizer has neither a chat template nor Llama 3's header tokens; "
                    "use an instruct model, set tokenizer.chat_template, or pass rendering='plain' to train a base model "
                    "and to ask one that was trained so"
                )
            object.__setattr__(self, "rendering", "template" if has_template else "llama3")
        elif self.rendering == "template" and not has_template:
            raise ValueError(
                "the tokenizer has no chat template; pass rendering='llama3' for a Llama 3 base model, 'plain' for another"
            )
        elif self.rendering == "llama3" and not has_llama3:
            raise ValueError("the tokenizer has no Llama 3 header tokens; pass rendering='template'")
        elif self.rendering == "plain" and self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end token to close an answer with; set tokenizer.eos_token")
        elif self.rendering not in ("template", "llama3", "plain"):
            raise ValueError(f"rendering={self.rendering!r} is unknown; use 'auto', 'template', 'llama3' or 'plain'")

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The text of a chat, control tokens included.

        A template that refuses system messages gets the system text at the top of the first user message.

        Args:
            messages: The turns.
            answer: End with the header under which the model answers.

        Raises:
            ValueError: `plain` is asked to hold more than one question and its answer.
        """
        if self.rendering == "llama3":
            turns = [_llama3_header(message["role"]) + message["content"] + "<|eot_id|>" for message in messages]
            return "<|begin_of_text|>" + "".join(turns) + (_llama3_header("assistant") if answer else "")
        if self.rendering == "plain":
            return self._plain(messages, answer)
        try:
            return self._apply(list(messages), answer)
        except TemplateError:
            if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
                raise
            content = messages[0]["content"] + "\n\n" + messages[1]["content"]
            return self._apply([Message(role="user", content=content), *messages[2:]], answer)

    def encode(self, messages: Sequence[Message], *, answer: bool = True) -> list[int]:
        """The token ids of a chat, in which only the template has written control tokens.

        Raises:
            ValueError: The template or the tokenizer leaves no way to keep a message's control tokens apart.
        """
        text = self.render(messages, answer=answer)
        ids = self._ids(text)
        if self.parity:
            return ids
        pieces = list(self._pieces(messages, answer))
        written = [each for piece, is_template in pieces if is_template for each in self._controls(self._ids(piece))]
        # Judged by ids, not by searching the text: a normaliser may form a control token from text that holds none.
        if "".join(piece for piece, _ in pieces) == text and self._controls(ids) == written:
            return ids
        ids = []
        for piece, is_template in pieces:
            encode = (self._inner if ids else self._ids) if is_template else self._letters
            ids += encode(piece)
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """The token ids that a model should write after `encode(messages)` to answer `text`, its end token included.

        Not the end of the rendered whole: what a template puts between its header and an answer (an empty thought, a
        trimmed space) is not what the model is asked to write.

        Raises:
            ValueError: The tokenizer leaves no way to keep the text's control tokens apart, or has no token to end with.
        """
        ids = self._inner(text)
        if not self.parity and self._controls(ids):
            cuts = [0, *(found.end(1) for found in self._control_start.finditer(text)), len(text)]
            ids = [each for start, end in pairwise(cuts) for each in self._letters(text[start:end])]
        return [*ids, self.end_id]

    def hash(self) -> str:
        """16 hex digits over everything that turns messages into text: part of a generator's identity."""
        probe = self.render([Message(role="user", content="user text")])
        source = ""
        if self.rendering == "template":
            source = self.template
        elif self.rendering == "plain":  # the probe ends before the token that an answer ends with
            source = self.tokenizer.eos_token
        return hashlib.sha256("\0".join([self.rendering, source, probe]).encode()).hexdigest()[:16]

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's own end, and what the template writes after an answer.

        A base model's tokenizer often names an end of text, and not the end of turn that training taught.
        """
        also = ["<|eom_id|>"] if self.rendering == "llama3" else []  # the reference stops there too
        found = set(self._written_end) | {self._control[t] for t in also if t in self._control}
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return sorted(found)

    @cached_property
    def end_id(self) -> int:
        """The one of `stop_ids` that an answer is trained to end with: the template's own, else the tokenizer's.

        Raises:
            ValueError: There is neither.
        """
        ends = [*self._written_end, self.tokenizer.eos_token_id]
        if ends[0] is None:
            raise ValueError("neither the chat template nor the tokenizer names an end token; set tokenizer.eos_token")
        end: int = ends[0]
        return end

    @cached_property
    def _written_end(self) -> list[int]:
        """The control token that the rendering writes after an answer; none where it writes text or nothing."""
        chat = [Message(role="user", content="user text"), Message(role="assistant", content="assistant text")]
        after = self._ids(self.render(chat, answer=False).rpartition("assistant text")[2].lstrip())[:1]
        return self._controls(after)

    @cached_property
    def template(self) -> str:
        """The model's own template, with one date for all days: a prompt must not change overnight."""
        source: str = self.tokenizer.get_chat_template()
        return _FIXED_DATE + source if "strftime_now" in source else source

    @cached_property
    def _control(self) -> dict[str, int]:
        """Control tokens by text: special ones, and others that the template writes (`<think>`, `[INST]`).

        Not the whitespace and HTML tags that Gemma adds for ordinary text, not a word added to the vocabulary, and not
        the unknown token, which is how some tokenizers write a rare character.
        """
        source = self.template if self.rendering == "template" else ""
        ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return {
            token.content: number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if (token.special or (token.content in source and re.search(r"[^\w\s]", token.content)))
            and (number != self.tokenizer.unk_token_id or number in ends)
        }

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._control.values())

    @cached_property
    def _control_start(self) -> re.Pattern[str]:
        # Looking ahead finds tokens that overlap; "(?!)", for a tokenizer without any, finds nothing.
        tokens = "|".join(re.escape(token) for token in self._control if token) or "(?!)"
        return re.compile(f"(?={tokens})(.)", re.DOTALL)

    def _controls(self, ids: list[int]) -> list[int]:
        return [each for each in ids if each in self._control_ids]

    def _apply(self, messages: list[Message], answer: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=answer
        )
        return text

    def _plain(self, messages: Sequence[Message], answer: bool) -> str:
        roles = [message["role"] for message in messages]
        asked = len(roles) - roles[-1:].count("assistant")
        if not asked or set(roles[:asked]) - {"system", "user"} or (answer and asked < len(roles)):
            raise ValueError(
                f"the turns are {roles}, and rendering='plain' holds one question (system and user text) and its answer; "
                "use a model with a chat template for longer chats"
            )
        question = (self.tokenizer.bos_token or "") + "\n\n".join(message["content"] for message in messages[:asked])
        if asked < len(roles):
            return question + "\n\n" + messages[-1]["content"] + self.tokenizer.eos_token
        return question + "\n\n" if answer else question

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _pieces(self, messages: Sequence[Message], answer: bool) -> Iterator[tuple[str, bool]]:
        """The rendered chat in pieces: `(text, whether the template wrote it)`, with a cut inside every control token.

        White space around a message counts as the template's, so that a template that trims does so as ever.
        """
        contents = "".join(message["content"] for message in messages)
        start, end = islice((chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in contents), 2)
        marked = []
        for message in messages:
            before, core, after = re.fullmatch(r"(\s*)(.*?)(\s*)", message["content"], re.DOTALL).groups()  # type: ignore[union-attr]
            # Cut before the template sees it: some templates act upon a `</think>` that they find in a message.
            core = start + self._control_start.sub(rf"\1{end}{start}", core) + end if core else ""
            marked.append(Message(role=message["role"], content=before + core + after))
        is_template = True
        for piece in re.split(f"([{start}{end}])", self.render(marked, answer=answer)):
            if piece in (start, end):
                if is_template != (piece == start):
                    raise ValueError("the chat template takes a message apart; pass parity=True if you trust the text")
                is_template = not is_template
            elif piece:
                yield piece, is_template

    def _letters(self, text: str) -> list[int]:
        """Encode text of a message; a control token that only the normaliser sees is met by single characters."""
        for attempt in ([text], text):
            ids = list(chain.from_iterable(self._inner(part) for part in attempt))
            if not self._controls(ids):
                return ids
        raise ValueError("a single character of a message is a control token of this tokenizer; pass parity=True")

    def _inner(self, text: str) -> list[int]:
        """Encode text from the middle of a chat: SentencePiece would begin it with a space that is not there."""
        newline = self._ids("\n")
        ids = self._ids("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._ids(text)


def _llama3_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
