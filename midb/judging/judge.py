"""Comparisons → verdicts: what the judge is asked, what comes back, and what each row becomes.

Knows no engine (a `Generator` answers chats) and no statistics (`summarize` reads the rows); it joins the two to a dataset.
"""

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from midb.errors import ColumnError
from midb.generators import Generator, Sampling
from midb.generators.base import fingerprint
from midb.judging.asking import Asker, Call, Reply, count_tokens
from midb.judging.comparisons import COLUMNS, Missing, Mode, as_comparisons
from midb.judging.controls import Control, plan_controls
from midb.judging.fidelity import off_language
from midb.judging.prompts import (
    JudgePrompts,
    Template,
    guard,
    random_labels,
    render,
)
from midb.judging.verdict import Verdict, holds_token, merge
from midb.languages import BY_CODE
from midb.progress import RowBar, say
from midb.schema import Batch, Message, mapped

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Estimate:
    """What a run would take, before anything is asked. Tokens are a rule of thumb, money is in the price's currency.

    Args:
        comparisons: Rows that will come out.
        calls: Requests, controls included, follow-ups not.
        without_call: Rows decided, or left undecided, without asking: status → count.
        prompt_tokens: About; from the characters of the prompts.
        completion_tokens: About; 250 an explanation and verdict.
        cost: About; None without a price.
        cost_at_most: Every answer as long as `max_tokens` allows, follow-ups not counted; None without a price.
    """

    comparisons: int
    calls: int
    without_call: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    cost_at_most: float | None

    def __str__(self) -> str:
        free = ", ".join(f"{status} {count:,}" for status, count in self.without_call.items())
        money = "" if self.cost is None else f", about {self.cost:,.2f} (at most {self.cost_at_most:,.2f})"
        return (
            f"{self.comparisons:,} comparisons, {self.calls:,} calls{f' ({free} without a call)' if free else ''}, about "
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens{money}"
        )


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Say which of two answers is better, row by row: N comparisons in, N rows out, both orders asked, nothing dropped.

    A batch function over the rows of `as_comparisons`, so that `Dataset.map(batched=True)` and Ray take it as it is;
    `judge.compare(ds_a, ds_b)` joins, adds controls, keeps to a budget, and is what most people want.

    Adds: `verdict` (`a`, `b`, `tie` or null: both orders, and a tie where they disagree), `verdict_ab`, `verdict_ba` (each
    order's, in terms of the datasets; `ab` shows a first), `status_ab`, `status_ba` (`ok`; `missing`, `invalid`, `ambiguous`,
    `truncated`, `empty`, `refusal`: the judge answered, without a verdict, also when asked again; `failed`: no answer came,
    a rerun asks again; `not_run`: the budget was spent; `not_asked`: the second order without `swap`; and without a call
    `identical`, `forfeit_empty`, `no_answer`, `unmatched_a`, `unmatched_b`), `reply_ab`, `reply_ba`, `follow_up_ab`,
    `follow_up_ba` (the judge's words), `error`, `p_a`, `decided_mass` (with `logprobs`), `len_a`, `len_b` (characters),
    `edit_distance` (characters between the two), `changed` (fields, of pairs), `off_language_a`, `off_language_b` (the
    answer is not in the row's language; null where that is not sure), `token_in_answer` (an answer holds a verdict token), `reference` (one was shown), `prompt_tokens`,
    `completion_tokens`, `calls`, `remembered` (calls that a journal answered), `judged_by`, `judge_identity`,
    `judge_settings` (JSON).

    Args:
        generator: Who judges; in a `Journal`, so that a rerun asks only what is missing.
        prompts: What the judge is told; the first form is the published one.
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
        price: Money per million prompt and completion tokens, for `estimate` and `max_cost`.
        seed: Chooses the controls and the random labels.

    Source: MIDB's evaluation prompt; both orders and the conservative merge are FastChat's; the rest is ours.
    """

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
    price: tuple[float, float] | None = None
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
        priced = self.price is None or (
            isinstance(self.price, tuple | list)
            and len(self.price) == 2
            and all(0 <= each < math.inf for each in self.price)
        )
        if not isinstance(self.controls, int) or self.controls < 0 or not priced:
            raise ValueError(
                f"controls={self.controls!r}, price={self.price!r} cannot be; use a whole number of controls and price=(per million prompt "
                "tokens, per million completion tokens)"
            )

    def identity(self) -> str:
        """A hash over everything that can change a verdict, and nothing else."""
        forms = [list(getattr(self.prompts, name)) for name in sorted(self.prompts.__dataclass_fields__)]
        how: list[object] = [
            self.swap,
            self.labels,
            self.strict,
            self.follow_up,
            self.identical,
            self.empty,
            self.name_language,
            self.check_language,
        ]
        how += [self.logprobs, self.system_role, self.parity, self.seed if self.labels == "random" else 0]
        return fingerprint("judge", version("midb"), self.generator.identity(), str(self.sampling), forms, how)

    def adds(self) -> dict[str, Any]:
        """The columns that the batch function adds, with their `datasets` types."""
        return {name: kind for name, kind in _features().items() if name != "controls"}

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
        if max_cost is not None and self.price is None:
            raise ValueError(
                "max_cost needs a price; give Judge(price=(per million prompt, per million completion tokens))"
            )
        if max_cost is not None and not max_cost >= 0:
            raise ValueError(f"max_cost={max_cost} is no amount; give 0 or more, in the currency of price")
        comparisons = as_comparisons(dataset_a, dataset_b, on=on, mode=mode, missing=missing)
        if max_cost is not None:  # what it leaves out is a random part of the questions, in all their languages
            draws = [_draw(self.seed, id_) for id_ in comparisons["id"]]
            order = sorted(range(len(draws)), key=draws.__getitem__)
            comparisons = comparisons.select(order)
        asker = self._asker(max_cost)
        plan = plan_controls(comparisons, self.controls, self.seed)
        with RowBar(len(comparisons), "judge") as bar:
            outcomes = self._judge_controls(plan, asker)

            def judged(batch: Batch, rows: list[int]) -> Batch:
                columns = self._judged(batch, asker, bar.count)
                return columns | {"controls": [outcomes.get(row, []) for row in rows]}

            verdicts = mapped(
                comparisons, judged, _features(), _TEXTS, with_indices=True, batch_size=BATCH_ROWS,
                load_from_cache_file=False, new_fingerprint=uuid.uuid4().hex,
            )  # fmt: skip
        if max_cost is not None:
            verdicts = verdicts.select(sorted(range(len(order)), key=order.__getitem__)).flatten_indices()
        say(_summary(verdicts, asker))
        return verdicts

    def estimate(
        self,
        dataset_a: "Dataset",
        dataset_b: "Dataset | None" = None,
        *,
        on: str = "id",
        mode: Mode = "auto",
        missing: Missing = "keep",
    ) -> Estimate:
        """Say what `compare` with the same arguments would take, a journal aside; calls nothing."""
        comparisons = as_comparisons(dataset_a, dataset_b, on=on, mode=mode, missing=missing)
        statuses: dict[str, int] = {}
        prompts = [count_tokens(call.messages) for call in self._calls_of(comparisons, statuses)]
        prompt_tokens, completion_tokens = sum(prompts), 250 * len(prompts)
        cost = at_most = None
        if self.price:
            per_prompt, per_completion = self.price
            cost = (prompt_tokens * per_prompt + completion_tokens * per_completion) / 1e6
            at_most = (prompt_tokens * per_prompt + self.sampling.max_tokens * len(prompts) * per_completion) / 1e6
        return Estimate(len(comparisons), len(prompts), statuses, prompt_tokens, completion_tokens, cost, at_most)

    def preview(
        self,
        dataset_a: "Dataset",
        dataset_b: "Dataset | None" = None,
        n: int | None = 3,
        *,
        on: str = "id",
        mode: Mode = "auto",
        missing: Missing = "keep",
    ) -> Iterator[list[Message]]:
        """The exact messages of the first `n` calls (None: of all), controls first; calls nothing."""
        comparisons = as_comparisons(dataset_a, dataset_b, on=on, mode=mode, missing=missing)
        for number, call in enumerate(self._calls_of(comparisons, {})):
            if number == n:
                return
            yield call.messages

    def __call__(self, batch: Batch) -> Batch:
        """Judge one batch of comparisons.

        Raises:
            ColumnError: The batch is not of comparison rows.
        """
        if missing := [name for name in COLUMNS if name not in batch]:
            raise ColumnError(
                f"the batch lacks {missing}; join two datasets first: midb.judging.as_comparisons(ds_a, ds_b)"
            )
        return self._judged(batch, self._asker(None), lambda tokens, failed: None)

    def _asker(self, max_cost: float | None) -> Asker:
        return Asker(
            self.generator, self.sampling, 2 if self.swap else 1, self.strict, self.follow_up and not self.parity, self.logprobs,
            self.price, max_cost, self.parity,
        )  # fmt: skip

    def _calls_of(self, comparisons: "Dataset", statuses: dict[str, int]) -> Iterator[Call]:
        for control in plan_controls(comparisons, self.controls, self.seed):
            yield from self._calls(control.comparison)
        for comparison in comparisons:
            if status := self._status_without_call(comparison):
                statuses[status] = statuses.get(status, 0) + 1
            else:
                yield from self._calls(comparison)

    def _judge_controls(self, plan: Sequence[Control], asker: Asker) -> dict[int, list[dict[str, Any]]]:
        """Row → what the judge said of its controls."""
        replies = asker.ask([call for control in plan for call in self._calls(control.comparison)])
        outcomes: dict[int, list[dict[str, Any]]] = {}
        for control, (ab, ba) in zip(plan, self._by_row(replies), strict=True):
            outcome = {"kind": control.kind, "verdict_ab": ab.verdict, "verdict_ba": ba.verdict}
            outcome |= {"status_ab": ab.status, "status_ba": ba.status, "reply_ab": ab.text, "reply_ba": ba.text}
            outcomes.setdefault(control.row, []).append(outcome)
        return outcomes

    def _judged(self, batch: Batch, asker: Asker, finished: Callable[[int | None, bool], None]) -> Batch:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        statuses = [self._status_without_call(row) for row in rows]
        calls = [call for row, status in zip(rows, statuses, strict=True) if not status for call in self._calls(row)]
        replies = self._by_row(asker.ask(calls, finished))
        verdicts, names = [], list(_features())
        by = {"judged_by": self.generator.name, "judge_identity": self.identity(), "judge_settings": self._settings()}
        for row, status in zip(rows, statuses, strict=True):
            if status:
                finished(0, False)
                verdicts.append(self._verdict(row, *_without_call(row, status)) | by)
            else:
                verdicts.append(self._verdict(row, *next(replies)) | by)
        return {name: [verdict[name] for verdict in verdicts] for name in names if name != "controls"}

    def _by_row(self, replies: Iterable[Reply]) -> Iterator[tuple[Reply, Reply]]:
        each = iter(replies)
        for reply in each:
            yield reply, next(each) if self.swap else Reply(status="not_asked")

    def _status_without_call(self, row: dict[str, Any]) -> str:
        """Why this comparison needs no judge; empty where it does."""
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

    def _calls(self, row: dict[str, Any]) -> Iterator[Call]:
        """The chats that ask for this comparison: dataset a's answer first, then second."""
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
            labels = None
            if self.labels == "random":
                labels = random_labels(self.seed, *values.values())
            messages = render(template, values, labels=labels, language=language, system_role=self.system_role)
            yield Call(messages, labels, swapped)

    def _form(self, row: dict[str, Any]) -> tuple[Template, dict[str, str]]:
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

    def _verdict(self, row: dict[str, Any], ab: Reply, ba: Reply) -> dict[str, Any]:
        """What one row becomes."""
        from rapidfuzz.distance import Levenshtein

        pairs = row["mode"] == "pairs"
        texts_a, texts_b = ([each or "" for each in row[side] or []] for side in ("answer_a", "answer_b"))
        judged_a, judged_b = ("\n".join(texts) if pairs else "".join(texts[-1:]) for texts in (texts_a, texts_b))
        both = bool(texts_a and texts_b)
        asked = [reply for reply in (ab, ba) if reply.calls]
        tokens = [[getattr(reply, name) for reply in asked] for name in ("prompt_tokens", "completion_tokens")]
        likely = [reply for reply in asked if reply.p_a is not None and reply.mass is not None]
        complete = len(likely) == (2 if self.swap else 1)
        fields = ("instruction", "input", "response")
        changed = [name for name, a, b in zip(fields, texts_a, texts_b, strict=False) if a != b] if pairs else []
        return {
            "verdict": merge(ab.verdict, ba.verdict) if self.swap or not asked else ab.verdict,
            "verdict_ab": ab.verdict, "verdict_ba": ba.verdict, "status_ab": ab.status, "status_ba": ba.status,
            "reply_ab": ab.text, "reply_ba": ba.text, "follow_up_ab": ab.follow_up, "follow_up_ba": ba.follow_up,
            "error": ab.error or ba.error,
            "p_a": sum(reply.p_a or 0 for reply in likely) / len(likely) if complete else None,
            "decided_mass": min(reply.mass or 0 for reply in likely) if complete else None,
            "len_a": sum(map(len, texts_a)) if pairs else len(judged_a),
            "len_b": sum(map(len, texts_b)) if pairs else len(judged_b),
            "edit_distance": Levenshtein.distance(judged_a, judged_b) if both else None,
            "changed": "+".join(changed),
            "off_language_a": self._off_language(texts_a, row["language"]), "off_language_b": self._off_language(texts_b, row["language"]),
            "token_in_answer": holds_token(judged_a) or holds_token(judged_b),
            "reference": bool(row["reference"]) and not self.parity and not pairs,
            "prompt_tokens": sum(each or 0 for each in tokens[0]) if any(each is not None for each in tokens[0]) else None,
            "completion_tokens": sum(each or 0 for each in tokens[1]) if any(each is not None for each in tokens[1]) else None,
            "calls": ab.calls + ba.calls, "remembered": ab.remembered + ba.remembered,
        }  # fmt: skip

    def _settings(self) -> str:
        """What a report tells of the judge: everything but the prompts' text, which a hash stands for."""
        told = (
            "swap",
            "labels",
            "strict",
            "follow_up",
            "identical",
            "empty",
            "name_language",
            "logprobs",
            "parity",
            "seed",
        )
        forms = {name: fingerprint(*getattr(self.prompts, name)) for name in sorted(self.prompts.__dataclass_fields__)}
        settings = {name: getattr(self, name) for name in told} | {"sampling": asdict(self.sampling), "prompts": forms}
        return json.dumps(settings, sort_keys=True)

    def _off_language(self, texts: list[str], language: str) -> bool | None:
        return off_language(texts[-1], language) if self.check_language and texts and language else None


_TEXTS = ("question", "answer_a", "answer_b", "reference")


def _features() -> dict[str, Any]:
    from datasets import List, Value

    text, number, share, flag = Value("string"), Value("int64"), Value("float64"), Value("bool")
    texts = ("verdict", "verdict_ab", "verdict_ba", "status_ab", "status_ba", "reply_ab", "reply_ba", "follow_up_ab")
    control = ("kind", "verdict_ab", "verdict_ba", "status_ab", "status_ba", "reply_ab", "reply_ba")
    return {
        **dict.fromkeys((*texts, "follow_up_ba", "error"), text),
        **dict.fromkeys(("p_a", "decided_mass"), share),
        **dict.fromkeys(("len_a", "len_b", "edit_distance"), number),
        "changed": text,
        **dict.fromkeys(("off_language_a", "off_language_b", "token_in_answer", "reference"), flag),
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "calls", "remembered"), number),
        **dict.fromkeys(("judged_by", "judge_identity", "judge_settings"), text),
        "controls": List(dict.fromkeys(control, text)),
    }


def _draw(seed: int, id_: object) -> bytes:
    return hashlib.sha256(repr((seed, id_)).encode()).digest()


def _without_call(row: dict[str, Any], status: str) -> tuple[Reply, Reply]:
    verdict: Verdict | None = None
    if status == "identical":
        verdict = "tie"
    elif status == "forfeit_empty":
        has_a, has_b = (bool(row[side][-1].strip()) for side in ("answer_a", "answer_b"))
        verdict = "tie" if has_a == has_b else "a" if has_a else "b"
    return Reply(verdict, status), Reply(verdict, status)


def _normal(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text).strip()


def _summary(verdicts: "Dataset", asker: Asker) -> str:
    import pyarrow.compute as pc

    table = verdicts.with_format("arrow")
    counts = {row["values"]: row["counts"] for row in pc.value_counts(table["verdict"][:]).to_pylist()}
    statuses: dict[str, int] = {}
    for name in ("status_ab", "status_ba"):
        for row in pc.value_counts(table[name][:]).to_pylist():
            if row["values"] != "ok" and row["values"] != "not_asked":
                statuses[row["values"]] = statuses.get(row["values"], 0) + row["counts"]
    calls, remembered = (pc.sum(table[name][:]).as_py() or 0 for name in ("calls", "remembered"))
    spent = "" if asker.price is None else f", {asker.spent:,.2f} spent"
    other = ", ".join(f"{status} {count:,}" for status, count in sorted(statuses.items()))
    return (
        f"{len(verdicts):,} comparisons: a better {counts.get('a', 0):,}, tie {counts.get('tie', 0):,}, b better "
        f"{counts.get('b', 0):,}, no verdict {counts.get(None, 0):,}; {calls:,} calls, {remembered:,} of them remembered{spent}"
        + (f"; of both orders {other}" if other else "")
    )
