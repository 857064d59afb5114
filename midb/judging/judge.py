"""Comparisons → verdicts: what the judge is asked, what comes back, and what each row becomes.

Knows no engine (a `Generator` answers chats), no loop (`run.py` asks) and no statistics (`summarize` reads the rows).
"""

import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from midb.cost import Estimate, Price, most_tokens
from midb.errors import ColumnError
from midb.generators import Completion, Generator, Sampling
from midb.generators.base import fingerprint, settings_of
from midb.judging.comparisons import COLUMNS, Missing, Mode, as_comparisons
from midb.judging.fidelity import off_language
from midb.judging.prompts import FOLLOW_UP, JudgePrompts, Template, guard, random_labels, relabel, render
from midb.judging.verdict import Parsed, Verdict, holds_token, merge, parse_verdict, preference, unswap
from midb.languages import BY_CODE
from midb.prompts import escape
from midb.run import Ask, Reply, Row, Task
from midb.schema import Message, column_names, without_format

if TYPE_CHECKING:
    from datasets import Dataset

ASKED_AGAIN = {"missing", "invalid", "ambiguous"}  # in the same conversation: a question, not another roll of the dice
FOLLOW_UP_TOKENS = 16
EXPLANATION_TOKENS = 250  # an explanation and a verdict, for an estimate
ALTERNATIVES = 20  # for each token of a reply, with log-probabilities: the most that OpenAI gives
HOW = ("swap", "labels", "strict", "follow_up", "identical", "empty", "name_language", "logprobs", "parity", "seed")


class Call(NamedTuple):
    """Which call of a row: the control that it belongs to (None: the row itself), the order, and its verdict words."""

    control: int | None
    swapped: bool
    labels: tuple[tuple[str, Verdict], ...] | None


@dataclass(frozen=True)
class Order:
    """What came of one order, in terms of the datasets."""

    verdict: Verdict | None = None
    status: str = "not_asked"
    text: str = ""
    follow_up: str = ""
    error: str = ""
    replies: tuple[Completion, ...] = ()
    p_a: float | None = None
    mass: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judge(Task):
    """Say which of two answers is better, row by row: N comparisons in, N rows out, both orders asked, nothing dropped.

    `judge.compare(ds_a, ds_b)` joins two datasets and judges them. `judge.map(comparisons)`, and a judge as a batch function,
    for `Dataset.map(batched=True)` and Ray Data, take the rows of `as_comparisons`, which hold the controls.

    Reads: the columns of `as_comparisons`.
    Adds: `verdict` (`a`, `b`, `tie` or null: both orders, and a tie where they disagree), `verdict_ab`, `verdict_ba` (each
    order's, in terms of the datasets; `ab` shows a first), `status_ab`, `status_ba` (`ok`; `missing`, `invalid`, `ambiguous`,
    `truncated`, `empty`, `refusal`: the judge answered, without a verdict, also when asked again; `failed`: no answer came,
    a rerun asks again; `not_run`: the budget was spent; `not_asked`: the second order without `swap`; and without a call
    `identical`, `forfeit_empty`, `no_answer`, `unmatched_a`, `unmatched_b`), `reply_ab`, `reply_ba`, `follow_up_ab`,
    `follow_up_ba` (the judge's words), `error`, `p_a`, `decided_mass` (with `logprobs`), `len_a`, `len_b` (characters),
    `edit_distance` (characters between the two), `changed` (fields, of pairs), `off_language_a`, `off_language_b` (the
    answer is not in the row's language; null where that is not sure), `token_in_answer` (an answer holds a verdict token),
    `reference` (one was shown), `prompt_tokens`, `completion_tokens`, `calls`, `remembered` (calls that a journal answered),
    `judged_by`, `judge_identity`, `judge_settings` (JSON), `controls` (the verdicts on the controls made from this row).
    Rows: n → n.

    Args:
        generator: Who judges; in a `Journal`, so that a rerun asks only what is missing.
        prompts: The judge's instructions; the first form is the published one.
        sampling: Greedy, and room for an explanation. The generator's own sampling is not used.
        swap: Ask in both orders. One order alone carries the judge's taste for a place.
        labels: `random` gives every call its own verdict words, drawn from all that it shows, so that no answer can know
            them beforehand; `published` is 1, 2 and 0.
        strict: Take only the digits as verdicts, and not also A, B, C, Tie or A>B.
        follow_up: Ask once more where a reply holds no verdict or was cut off.
        identical: Equal answers are a `tie` without a call, or go to the judge.
        empty: An empty answer is a `forfeit` without a call, or goes to the judge.
        name_language: Add the line that an answer should be in the question's language.
        logprobs: Ask for the probabilities of the verdict token, where the server gives them.
        system_role: False puts the system text into the user's turn.
        parity: Text unescaped, no reference answers, no added line, no follow-up: the published prompt as it is. Second turns
            and training pairs, for which none is published, keep our form.
        check_language: Look whether each answer is in its row's language; costs no call.
        controls: Comparisons of each kind with a known outcome, asked in every run; 0 for none.
        price: Money per million prompt and completion tokens, and a currency's word if you like; for `estimate`,
            `max_cost` and the summary.
        seed: Chooses the controls and the random labels.

    Source: MIDB's evaluation prompt; both orders and the conservative merge are FastChat's; the rest is ours.
    """

    verb: ClassVar[str] = "judge"
    counted: ClassVar[tuple[str, ...]] = ("status_ab", "error", "verdict")
    drops: ClassVar[tuple[str, ...]] = ("question", "answer_a", "answer_b", "reference", "planned")

    generator: Generator
    prompts: JudgePrompts = field(default_factory=JudgePrompts)
    sampling: Sampling = field(default_factory=Sampling)
    swap: bool = True
    labels: Literal["published", "random"] = "published"
    strict: bool = False
    follow_up: bool = True
    identical: Literal["tie", "judge"] = "tie"
    empty: Literal["forfeit", "judge"] = "forfeit"
    name_language: bool = False
    logprobs: bool = False
    system_role: bool = True
    parity: bool = False
    check_language: bool = True
    controls: int = 8
    price: Price | tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.generator, Generator):
            raise TypeError(
                f"generator={self.generator!r:.60} is no generator; give one, e.g. OpenAIGenerator('my-model')"
            )
        choices = {"labels": ("published", "random"), "identical": ("tie", "judge"), "empty": ("forfeit", "judge")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not a choice; use {' or '.join(map(repr, allowed))}"
                )
        if self.parity and (self.labels == "random" or self.name_language):
            raise ValueError("parity is the published prompt as it is; leave out labels='random' and name_language")
        if not isinstance(self.controls, int) or self.controls < 0:
            raise ValueError(f"controls={self.controls!r} cannot be; use a whole number of controls of each kind")
        Price.of(self.price)

    def compare(
        self,
        dataset_a: "Dataset",
        dataset_b: "Dataset | None" = None,
        *,
        on: str = "id",
        mode: Mode = "auto",
        missing: Missing = "keep",
        max_cost: float | None = None,
    ) -> "Dataset":
        """Judge dataset a against dataset b: two systems' answers, or two versions of a training set.

        Reads: as `as_comparisons`, which says what the arguments mean. With one dataset of edits, a is what stands and b
        the raw side.
        Adds: the columns of `Judge`, and `controls`: what the judge said of the controls that were made from this row.
        Rows: one per question, language and turn.

        Args:
            max_cost: Stop before more than this is spent, in the currency of `price`; what was judged is kept and the
                rest, a random part of the questions, are `not_run` rows. It holds as long as the engine keeps to
                `max_tokens`, since every call is reckoned that long: so lower it where judges are brief. What a journal
                remembers costs nothing. Without a count of tokens from the engine, the rule of thumb of `estimate` counts.

        Raises:
            ColumnError: The datasets cannot be joined; nothing was asked.
            GenerationError: The engine is dead; what it answered is safe in the journal.
        """
        return self.map(self._joined(dataset_a, dataset_b, on=on, mode=mode, missing=missing), max_cost=max_cost)

    def estimate(
        self,
        dataset: Any,
        dataset_b: "Dataset | None" = None,
        *,
        on: str = "id",
        mode: Mode = "auto",
        missing: Missing = "keep",
    ) -> Estimate:
        """Say what `compare` with the same arguments would take; calls nothing."""
        return super().estimate(self._joined(dataset, dataset_b, on=on, mode=mode, missing=missing))

    def preview(  # type: ignore[override]
        self,
        dataset: Any,
        dataset_b: "Dataset | None" = None,
        n: int | None = 3,
        *,
        on: str = "id",
        mode: Mode = "auto",
        missing: Missing = "keep",
    ) -> list[list[Message]]:
        """The exact messages of the first `n` calls of `compare` with the same arguments; calls nothing."""
        return super().preview(self._joined(dataset, dataset_b, on=on, mode=mode, missing=missing), n)

    def _joined(self, dataset: Any, dataset_b: Any, **how: Any) -> Any:
        """The comparisons of two datasets; rows that are comparisons stay as they are."""
        if dataset_b is None and set(COLUMNS) <= set(getattr(dataset, "column_names", None) or ()):
            return dataset
        return as_comparisons(dataset, dataset_b, controls=self.controls, seed=self.seed, **how)

    def prepare(self, split: Any) -> Any:
        """Check that the rows are comparisons.

        Raises:
            ColumnError: They are not.
        """
        names = column_names(split)
        if missing := [name for name in COLUMNS if name not in names]:
            raise ColumnError(
                f"the rows lack {missing}; join two datasets first: midb.judging.as_comparisons(ds_a, ds_b)"
            )
        return without_format(split)

    def first(self, split: Any) -> Collection[int]:
        """The rows that hold controls."""
        return {row for row, planned in enumerate(split["planned"]) if planned}

    def asks(self, row: Row) -> Sequence[Ask]:
        """Both orders of the comparison, where it needs a judge, and of its controls.

        Raises:
            ColumnError: The row is no comparison.
        """
        if missing := [name for name in COLUMNS if name not in row]:
            raise ColumnError(
                f"the row lacks {missing}; join two datasets first: midb.judging.as_comparisons(ds_a, ds_b)"
            )
        asks = [] if self.decided(row) else list(self._calls(row, None))
        for number, control in enumerate(row["planned"]):
            asks += self._calls({**row, **control}, number)
        return asks

    def again(self, row: Row, replies: Sequence[Reply]) -> Sequence[Ask]:
        """One more call for each reply without a verdict."""
        if not self.follow_up or self.parity:
            return ()
        once = {call: each[0] for call, each in _by_call(replies).items() if len(each) == 1}
        return [ask for each in once.values() if (ask := self._once_more(*each)) is not None]

    def becomes(self, row: Row, replies: Sequence[Reply]) -> Row:
        """What one row becomes."""
        by_call = _by_call(replies)
        controls = []
        for number, control in enumerate(row["planned"]):
            ab, ba = self._orders(by_call, number)
            if ab.status != "not_run":
                told = {
                    "verdict_ab": ab.verdict,
                    "verdict_ba": ba.verdict,
                    "status_ab": ab.status,
                    "status_ba": ba.status,
                }
                controls.append({"kind": control["kind"], **told, "reply_ab": ab.text, "reply_ba": ba.text})
        status = self.decided(row)
        orders = _without_call(row, status) if status else self._orders(by_call, None)
        return {**self._verdict(row, *orders), "controls": controls}

    def made(self) -> dict[str, str]:
        """How the rows were made: `judged_by`, `judge_identity`, `judge_settings`."""
        return self._made

    @cached_property
    def _made(self) -> dict[str, str]:
        forms = {name: fingerprint(*getattr(self.prompts, name)) for name in sorted(self.prompts.__dataclass_fields__)}
        settings = {name: getattr(self, name) for name in (*HOW, "system_role", "check_language")} | {
            "midb": version("midb"), "sampling": asdict(self.sampling), "prompts": forms, "generator": settings_of(self.generator),
        }  # fmt: skip
        return {
            "judged_by": self.generator.name,
            "judge_identity": fingerprint(self.generator.identity(), settings),
            "judge_settings": json.dumps(settings, sort_keys=True, ensure_ascii=False),
        }

    def adds(self) -> dict[str, Any]:
        """The columns that come out beside those that came in, with their `datasets` types."""
        from datasets import List, Value

        text, number, share, flag = Value("string"), Value("int64"), Value("float64"), Value("bool")
        control = ("verdict_ab", "verdict_ba", "status_ab", "status_ba", "reply_ab", "reply_ba")
        return {
            **dict.fromkeys(("verdict", *control, "follow_up_ab", "follow_up_ba", "error"), text),
            **dict.fromkeys(("p_a", "decided_mass"), share),
            **dict.fromkeys(("len_a", "len_b", "edit_distance"), number),
            "changed": text,
            **dict.fromkeys(("off_language_a", "off_language_b", "token_in_answer", "reference"), flag),
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "calls", "remembered"), number),
            **dict.fromkeys(("judged_by", "judge_identity", "judge_settings"), text),
            "controls": List(dict.fromkeys(("kind", *control), text)),
        }

    def decided(self, row: Row) -> str:
        """Why this comparison needs no judge; empty where it needs one."""
        answer_a, answer_b = row["answer_a"], row["answer_b"]
        if answer_a is None or answer_b is None:
            return "unmatched_a" if answer_a is None else "unmatched_b"
        if None in answer_a or None in answer_b:
            return "no_answer"
        if self.identical == "tie" and [_normal(each) for each in answer_a] == [_normal(each) for each in answer_b]:
            return "identical"
        if self.empty == "forfeit" and not (answer_a[-1].strip() and answer_b[-1].strip()):
            return "forfeit_empty"
        return ""

    def _calls(self, row: Row, control: int | None) -> Iterator[Ask]:
        """The prompts for one comparison: dataset a's answer first, then second."""
        template, shared = self._form(row)
        names = ("instruction", "input", "response") if row["mode"] == "pairs" else None
        language = BY_CODE[row["language"]].name if self.name_language and row["language"] in BY_CODE else ""
        sides = [[self._guarded(text, template) for text in row[side]] for side in ("answer_a", "answer_b")]
        for swapped in (False, True) if self.swap else (False,):
            values = dict(shared)
            for place, texts in zip("ab", reversed(sides) if swapped else sides, strict=True):
                if names:
                    values |= {f"{name}_{place}": text for name, text in zip(names, texts, strict=True)}
                elif len(texts) == 1:
                    values[f"answer_{place}"] = texts[0]
                else:
                    values |= {f"answer_{place}_{turn}": text for turn, text in enumerate(texts, 1)}
            labels = random_labels(self.seed, *values.values()) if self.labels == "random" else None
            messages = render(template, values, labels=labels, language=language, system_role=self.system_role)
            later = (0, 0)
            if self.follow_up and not self.parity:
                room = self.sampling.max_tokens
                later = (most_tokens(messages) + room + 100, max(FOLLOW_UP_TOKENS, 2 * room))
            call = Call(control, swapped, tuple(labels.items()) if labels else None)
            yield Ask(messages, self._drawn, call, EXPLANATION_TOKENS, later=later)

    @cached_property
    def _drawn(self) -> Sampling:
        return replace(self.sampling, logprobs=ALTERNATIVES) if self.logprobs else self.sampling

    def _once_more(self, ask: Ask, completion: Completion) -> Ask | None:
        """The one follow-up that this reply deserves."""
        if completion.error is not None:
            return None
        status = self._parsed(ask.key, completion).status
        if status in ASKED_AGAIN:
            answer: Message = {"role": "assistant", "content": escape(completion.text)}
            question: Message = {"role": "user", "content": relabel(FOLLOW_UP, _labels(ask.key))}
            short = replace(self._drawn, max_tokens=FOLLOW_UP_TOKENS)
            return Ask([*ask.messages, answer, question], short, ask.key)
        if status == "truncated":
            return Ask(ask.messages, replace(self._drawn, max_tokens=2 * self._drawn.max_tokens), ask.key)
        if status == "empty":
            return Ask(ask.messages, replace(self._drawn, index=self._drawn.index + 1), ask.key)
        return None

    def _orders(self, by_call: Mapping[Call, list[Reply]], control: int | None) -> tuple[Order, Order]:
        """What came of both orders of the row, or of one of its controls."""
        ab, ba = Order(), Order()
        for call, replies in by_call.items():
            if call.control == control:
                order = self._order(call, [reply.completion for reply in replies])
                ab, ba = (ab, order) if call.swapped else (order, ba)
        return ab, ba

    def _order(self, call: Call, completions: Sequence[Completion]) -> Order:
        """Read the reply of one order and, where there is one, of its follow-up."""
        first, *more = completions
        if first.finish_reason == "not_run":
            return Order(status="not_run")
        if first.error is not None:
            return Order(status="failed", error=first.error, replies=(first,))
        parsed, judged = self._parsed(call, first), first
        error = follow_up = ""
        for second in more:
            if second.error is not None:  # the first status stands; a journal keeps no failure, so a rerun asks again
                error = second.error
                continue
            follow_up = second.text
            if (found := self._parsed(call, second)).verdict is not None:
                parsed, judged = found, second
        verdict = unswap(parsed.verdict) if call.swapped else parsed.verdict
        p_a = mass = None
        if self.logprobs and (likely := preference(judged.logprobs, *filter(None, [_labels(call)]))) is not None:
            p_a, mass = 1 - likely.p_first if call.swapped else likely.p_first, likely.mass
        return Order(verdict, parsed.status, first.text, follow_up, error, tuple(completions), p_a, mass)

    def _parsed(self, call: Call, completion: Completion) -> Parsed:
        return _parsed(completion.text, completion.finish_reason, self.strict, call.labels)

    def _form(self, row: Row) -> tuple[Template, dict[str, str]]:
        """Which form asks this comparison, with the values that both orders share."""
        if row["mode"] == "pairs":
            return self.prompts.pairs, {}
        questions, references = row["question"], None if self.parity else row["reference"]
        if len(questions) == 1:
            template = self.prompts.reference if references else self.prompts.answers
            named = {"question": questions[0]} | ({"reference": references[0]} if references else {})
        else:
            template = self.prompts.second_turn_reference if references else self.prompts.second_turn
            named = {f"question_{turn}": text for turn, text in enumerate(questions, 1)}
            named |= {f"reference_{turn}": text for turn, text in enumerate(references or (), 1)}
        return template, {name: self._guarded(text, template) for name, text in named.items()}

    def _guarded(self, text: str, template: Template) -> str:
        return text if self.parity else guard(text, template)

    def _verdict(self, row: Row, ab: Order, ba: Order) -> Row:
        """The columns of one comparison."""
        from rapidfuzz.distance import Levenshtein

        pairs = row["mode"] == "pairs"
        texts_a, texts_b = ([each or "" for each in row[side] or []] for side in ("answer_a", "answer_b"))
        judged_a, judged_b = ("\n".join(texts) if pairs else "".join(texts[-1:]) for texts in (texts_a, texts_b))
        both = bool(texts_a and texts_b)
        asked = [order for order in (ab, ba) if order.replies]
        replies = [*ab.replies, *ba.replies]
        likely = [order for order in asked if order.p_a is not None and order.mass is not None]
        complete = len(likely) == (2 if self.swap else 1)
        fields = ("instruction", "input", "response")
        changed = [name for name, a, b in zip(fields, texts_a, texts_b, strict=False) if a != b] if pairs else []
        return {
            "verdict": merge(ab.verdict, ba.verdict) if self.swap or not asked else ab.verdict,
            "verdict_ab": ab.verdict, "verdict_ba": ba.verdict, "status_ab": ab.status, "status_ba": ba.status,
            "reply_ab": ab.text, "reply_ba": ba.text, "follow_up_ab": ab.follow_up, "follow_up_ba": ba.follow_up,
            "error": ab.error or ba.error,
            "p_a": sum(order.p_a or 0 for order in likely) / len(likely) if complete else None,
            "decided_mass": min(order.mass or 0 for order in likely) if complete else None,
            "len_a": sum(map(len, texts_a)) if pairs else len(judged_a),
            "len_b": sum(map(len, texts_b)) if pairs else len(judged_b),
            "edit_distance": Levenshtein.distance(judged_a, judged_b) if both else None,
            "changed": "+".join(changed),
            "off_language_a": self._off_language(texts_a, row["language"]), "off_language_b": self._off_language(texts_b, row["language"]),
            "token_in_answer": holds_token(judged_a) or holds_token(judged_b),
            "reference": bool(row["reference"]) and not self.parity and not pairs,
            "prompt_tokens": _sum([reply.prompt_tokens for reply in replies]),
            "completion_tokens": _sum([reply.completion_tokens for reply in replies]),
            "calls": len(replies), "remembered": sum(reply.remembered for reply in replies),
        }  # fmt: skip

    def _off_language(self, texts: list[str], language: str) -> bool | None:
        return off_language(texts[-1], language) if self.check_language and texts and language else None


def _by_call(replies: Sequence[Reply]) -> dict[Call, list[Reply]]:
    found: dict[Call, list[Reply]] = {}
    for reply in replies:
        found.setdefault(reply.ask.key, []).append(reply)
    return found


def _labels(call: Call) -> dict[str, Verdict] | None:
    return dict(call.labels) if call.labels else None


@lru_cache(maxsize=1024)
def _parsed(text: str, finish_reason: str, strict: bool, labels: tuple[tuple[str, Verdict], ...] | None) -> Parsed:
    """Read a reply once, although both the follow-up and the verdict need it."""
    return parse_verdict(text, finish_reason, strict=strict, labels=dict(labels) if labels else None)


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum of what the engine counted; None where it counted nothing."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _without_call(row: Row, status: str) -> tuple[Order, Order]:
    verdict: Verdict | None = None
    if status == "identical":
        verdict = "tie"
    elif status == "forfeit_empty":
        has_a, has_b = (bool(row[side][-1].strip()) for side in ("answer_a", "answer_b"))
        verdict = "tie" if has_a == has_b else "a" if has_a else "b"
    return Order(verdict, status), Order(verdict, status)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
