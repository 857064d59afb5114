"""A judge that is played: its preference, its taste for a place, its noise and its faults are known beforehand.

    python tests/fake_judge.py PORT '{"win": 0.6, "tie": 0.2, "first": 0.05}' [--latency S]

What it says follows from its settings and the texts that it reads, never from the order of the requests: a rerun, another
order and `Played.say` without any server give the same verdicts. It knows whose answer it reads by a mark in the answer's
own words, which `mark` makes: `A81fr1.1a2b3c4d` is system A's answer to the first turn of question 81 in French.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from fake_openai import FakeOpenAI, World, chat_reply, serve

ENOUGH_TOKENS = 4096  # a reply that is cut has no room below
MARK = re.compile(r"\b([AB])(\d+)([a-z]{2})([12])\.([0-9a-f]{8})\b")
BLOCKS = re.compile(
    r"\[User Question(?: 2)?\]\n(.*?)\n(?=\[The Start of Assistant A’s Answer\]|\[Assistant [AB]’s Answer 2\])"
    r"|\[(?:The Start of Assistant [AB]’s Answer|Assistant [AB]’s Answer 2)\]\n(.*?)\n\[The End of Assistant",
    re.DOTALL,
)
EXPLANATION = (
    "Both assistants answer what the user asked. The first keeps close to the question and gives its reasons in order; the "
    "second adds detail that was not asked for, though it is accurate as far as it goes. In depth and clarity they differ a "
    "little, and one of them leaves a step to the reader. I weighed helpfulness, relevance and accuracy, and paid no heed to "
    "length, nor to which of the two was shown first."
)
WORDS = re.compile(r'"\[\[(\w+)\]\]"')
NORMAL = NormalDist()
MIRROR = {"a": "b", "b": "a", "tie": "tie"}


def hashed(text: str) -> str:
    """Without the backslashes that the judge's prompt may add."""
    return f"{zlib.crc32(text.replace(chr(92), '').encode()):08x}"


def mark(system: str, question: int, language: str, turn: int, asked: str) -> str:
    """What an answer must hold: whose it is, and to what."""
    return f"{system}{question}{language}{turn}.{hashed(asked)}"


class Reading(NamedTuple):
    """What the judge sees in one prompt: the two answers as shown, their marks, and which of them answer the question."""

    answers: tuple[str, str]
    marks: list[re.Match[str] | None]
    fits: list[bool]

    @property
    def key(self) -> str:
        """Another one in the other order."""
        return ".".join(map(hashed, self.answers))

    @property
    def pair(self) -> str:
        """The same one in either order."""
        return ".".join(sorted(map(hashed, self.answers)))


def read(prompt: str) -> Reading | None:
    """None where there are no two answers."""
    found = BLOCKS.findall(prompt)
    questions, answers = [text for text, _ in found if text], [text for _, text in found if text]
    if not questions or len(answers) != 2:
        return None
    marks = [MARK.search(text) for text in answers]
    fits = [each is not None and each[5] == hashed(questions[-1]) for each in marks]
    return Reading((answers[0], answers[1]), marks, fits)


def share(*parts: object) -> float:
    """A number between 0 and 1 that looks drawn, and is the same for the same parts."""
    return (int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) + 0.5) / 2**64


@dataclass(frozen=True)
class Played:
    """How the judge judges. Shares are of all calls; a call is first refused or silent, then of one of the tastes.

    Args:
        seed: Another judge with the same habits.
        win: Probability that system A's answer is better, in the middle of the languages.
        tie: Probability that neither is.
        spread: How far a language may be from the middle.
        shared: Correlation of a question's outcomes, between languages and turns.
        first: Says the first shown, whatever it reads.
        noise: Says anything.
        longer: Says the longer one, in either order.
        obeys: Does what a planted note says.
        silent: Gives no verdict; half of them neither when asked once more.
        refused: Gives no text, as a filter does.
        cut: Needs `ENOUGH_TOKENS` to come to an end.
        sick: The server fails these at first: 500, 429, a reset, half a body.
        dead: The server fails these always.
    """

    seed: int = 0
    win: float = 0.4
    tie: float = 0.2
    spread: float = 0.0
    shared: float = 0.5
    first: float = 0.0
    noise: float = 0.0
    longer: float = 0.0
    obeys: bool = False
    silent: float = 0.0
    refused: float = 0.0
    cut: float = 0.0
    sick: float = 0.0
    dead: float = 0.0

    # What is true, and what this judge makes of it on average

    def wins(self, language: str) -> float:
        """Probability that A's answer is better in this language."""
        return self.win + self.spread * (2 * share("language", self.seed, language) - 1)

    def better(self, question: int, language: str, turn: int) -> str:
        """Which system's answer is better: `a`, `b` or `tie`; the question decides a part, and the rest is its own."""
        common = NORMAL.inv_cdf(share("question", self.seed, question))
        own = NORMAL.inv_cdf(share("row", self.seed, question, language, turn))
        place = NORMAL.cdf(self.shared**0.5 * common + (1 - self.shared) ** 0.5 * own)
        win = self.wins(language)
        return "a" if place < win else "tie" if place < win + self.tie else "b"

    def orders(self, language: str) -> dict[tuple[str, str], float]:
        """Probability of each pair of verdicts (A's answer shown first, B's first), in terms of the systems."""
        truths = {"a": self.wins(language), "tie": self.tie}
        truths["b"] = 1 - sum(truths.values())
        rest = 1 - self.first - self.noise
        pairs = dict.fromkeys([(ab, ba) for ab in truths for ba in truths], 0.0)
        for truth, p in truths.items():
            for ab, ba in pairs:
                says = [
                    self.first * (verdict == shown) + self.noise / 3 + rest * (verdict == truth)
                    for verdict, shown in ((ab, "a"), (ba, "b"))
                ]
                pairs[ab, ba] += p * says[0] * says[1]
        return pairs

    # What it says

    def verdict(self, seen: Reading) -> str:
        """Which of the shown is better: `a` (the first), `b` or `tie`."""
        notes = ["Note to the judge" in text for text in seen.answers]
        if self.obeys and notes[0] != notes[1]:
            return "a" if notes[0] else "b"
        taste = share("taste", self.seed, seen.key)
        if taste < self.first:
            return "a"
        if taste < self.first + self.noise:
            return ("a", "b", "tie")[int(3 * share("noise", self.seed, seen.key))]
        if share("length", self.seed, seen.pair) < self.longer:
            more = len(seen.answers[0]) - len(seen.answers[1])
            return "a" if more > 0 else "b" if more else "tie"
        one, other = seen.marks
        if one is None or other is None or seen.fits != [True, True]:
            return "tie" if seen.fits[0] == seen.fits[1] else "a" if seen.fits[0] else "b"
        if one[1] == other[1]:
            return "tie"
        found = self.better(int(one[2]), one[3], int(one[4]))
        return found if one[1] == "A" else MIRROR[found]

    def say(self, messages: Sequence[dict[str, Any]], max_tokens: int = ENOUGH_TOKENS) -> tuple[str | None, str]:
        """The reply to a chat, and why it ended."""
        asked_again = len(messages) > 2 and messages[-2]["role"] == "assistant"
        prompt = messages[-3 if asked_again else -1]["content"]
        seen = read(prompt)
        if seen is None:
            return "[[0]]", "stop"
        if share("refused", self.seed, seen.key) < self.refused:
            return None, "content_filter"
        if share("silent", self.seed, seen.key) < (self.silent / 2 if asked_again else self.silent):
            return "Both assistants answer the question, and neither is without flaws.", "stop"
        if max_tokens < ENOUGH_TOKENS and not asked_again and share("cut", self.seed, seen.key) < self.cut:
            return "Both assistants answer the question that the", "length"
        first, second, tie = WORDS.findall(messages[0]["content"])[:3]
        word = {"a": first, "b": second, "tie": tie}[self.verdict(seen)]
        if asked_again:
            return f"[[{word}]]", "stop"
        return f"{EXPLANATION}\n\nFinal verdict: [[{word}]]", "stop"


def answered(asked: Any, system: str, longer: float = 1.0) -> Any:
    """What a system says, marked as its own: text in the question's language, from 100 to 4,000 characters."""
    spoken: dict[str, list[str]] = {}
    for language, turns in zip(asked["language"], asked["turns"], strict=True):
        spoken.setdefault(language, []).extend(turns)
    texts = {
        language: (" ".join(turns) + " ") * math.ceil(9000 / len(" ".join(turns))) for language, turns in spoken.items()
    }

    def say(row: dict[str, Any], turn: int, question: str) -> str:
        where = system, row["id"], row["language"], turn
        text = texts[row["language"]]
        length = min(4000, int(longer * 700 * math.exp(1.5 * (share("length", *where) - 0.5))))
        start = int(share("start", *where) * (len(text) - length))
        return f"{mark(*where, question)} {text[start : start + length].replace('[', '(')}"

    answers = [[say(row, turn, question) for turn, question in enumerate(row["turns"], 1)] for row in asked]
    return asked.add_column("answers", answers)


def request_key(messages: Sequence[dict[str, Any]], max_tokens: int) -> str:
    """What `/asked` names a request by, as prompts are long."""
    return hashlib.sha256(json.dumps([messages, max_tokens]).encode()).hexdigest()[:16]


class JudgeWorld(World):
    """A server behind which the judge sits."""

    def __init__(self, played: Played, latency: float) -> None:
        super().__init__(latency, 0, 0.0)
        self.played = played

    def key_of(self, request: dict[str, Any]) -> str:
        return request_key(request["messages"], request["max_tokens"])

    def fault_of(self, text: str, times: int) -> str:
        if (fault := super().fault_of(text, times)) != "ok" or self.healed.is_set():
            return fault
        if share("dead", self.played.seed, text) < self.played.dead:
            return "500"
        if times <= 2 and share("sick", self.played.seed, text, times) < self.played.sick:
            return ("500", "429:0", "reset", "broken")[int(4 * share("fault", self.played.seed, text, times))]
        return "ok"

    def reply(self, request: dict[str, Any], key: str, fault: str) -> bytes:
        text, reason = self.played.say(request["messages"], request["max_tokens"])
        body = json.loads(chat_reply(request, "", "ok"))
        body["choices"][0] |= {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        data = json.dumps(body).encode()
        return data[: len(data) // 2] if fault == "broken" else data


class FakeJudge(FakeOpenAI):
    """The server as a context manager, in a process of its own."""

    def __init__(self, played: Played, latency: float = 0.0, port: int = 0) -> None:
        super().__init__()
        options = [str(port), json.dumps(asdict(played)), "--latency", str(latency)]
        self.command = [sys.executable, str(Path(__file__).resolve()), *options]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("played", type=json.loads)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, JudgeWorld(Played(**options.played), options.latency)))
