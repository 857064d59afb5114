from dataclasses import dataclass, field

import pytest
from datasets import Dataset, DatasetDict, Value, enable_progress_bars

from midb import Booster, ColumnError, GenerationError, MidbError
from midb.cost import Price
from midb.generators import Completion, FunctionGenerator, Journal, Sampling
from midb.judging import Answering
from midb.run import Ask, Task


@dataclass(frozen=True)
class Guess(Task):
    """A task of a user's own: guess a number, with one more try after a wrong guess."""

    counted = ("status", "why")
    generator: FunctionGenerator
    price: Price | None = None
    later: tuple[int, int] = (0, 0)
    extra: dict = field(default_factory=dict)

    def asks(self, row):
        messages = [{"role": "user", "content": f"guess {row['id']}"}]
        return [Ask(messages, key="first", later=self.later)] if row["id"] >= 0 else []

    def again(self, row, replies):
        last = replies[-1]
        if len(replies) > 1 or last.completion.text == "right" or last.completion.error:
            return ()
        return [Ask([*last.ask.messages, {"role": "user", "content": "again"}], Sampling(max_tokens=9), "second")]

    def becomes(self, row, replies):
        if not replies:
            return {"status": "decided", "why": "", "said": []}
        last = replies[-1].completion
        status = last.finish_reason if last.finish_reason == "not_run" else "failed" if last.error else last.text
        return {
            "status": status,
            "why": last.error or "",
            "said": [reply.completion.text for reply in replies],
            **self.extra,
        }

    def decided(self, row):
        return "decided" if row["id"] < 0 else ""

    def made(self):
        return {"by": self.generator.name}

    def adds(self):
        from datasets import List

        return {"status": Value("string"), "why": Value("string"), "said": List(Value("string")), "by": Value("string")}


def guesser(asked, wrong=()):
    def answer(messages):
        asked.append(messages)
        number = int(messages[0]["content"].split()[1])
        return Completion("wrong" if number in wrong and len(messages) == 1 else "right", "stop", 10, 2)

    return FunctionGenerator(answer, name="guesser", sampling=Sampling(max_tokens=100))


def numbers(*ids):
    return Dataset.from_dict({"id": list(ids), "other": [str(each) for each in ids]})


def test_a_task_of_ones_own_gets_datasets_splits_streams_and_batches():
    asked = []
    task = Guess(guesser(asked, wrong={2}))
    done = task.map(numbers(3, 2, -1, 5))
    assert done.to_list() == [
        {"id": 3, "other": "3", "status": "right", "why": "", "said": ["right"], "by": "guesser"},
        {"id": 2, "other": "2", "status": "right", "why": "", "said": ["wrong", "right"], "by": "guesser"},
        {"id": -1, "other": "-1", "status": "decided", "why": "", "said": [], "by": "guesser"},
        {"id": 5, "other": "5", "status": "right", "why": "", "said": ["right"], "by": "guesser"},
    ]
    assert len(asked) == 4
    splits = task.map(DatasetDict(train=numbers(3, 2), test=numbers(-1, 5)))
    assert [*splits["train"], *splits["test"]] == done.to_list()
    assert list(task.map(numbers(3, 2, -1, 5).to_iterable_dataset())) == done.to_list()
    assert task(numbers(3, 2, -1, 5)[:]) == done[:]
    assert task.preview(numbers(3, -1, 5), 1) == [[{"role": "user", "content": "guess 3"}]]


def test_the_batch_function_takes_the_arrays_of_ray_data():
    import numpy as np

    task = Guess(guesser([]))
    batch = {"id": np.array([3, 4]), "other": np.array(["a", "b"], dtype=object)}
    assert task(batch) == {
        "id": [3, 4], "other": ["a", "b"], "status": ["right"] * 2, "why": ["", ""], "said": [["right"]] * 2, "by": ["guesser"] * 2,
    }  # fmt: skip


def test_columns_that_a_task_does_not_declare_are_an_error():
    with pytest.raises(MidbError, match=r"Guess makes the columns .*'more'.*adds\(\)"):
        Guess(guesser([]), extra={"more": 1}).map(numbers(1))


def test_a_row_that_cannot_be_read_is_named():
    with pytest.raises(ColumnError, match="row 1 of the batch"):
        Booster(generator=guesser([]))({"instruction": ["a", None], "response": ["b", "c"]})


def test_a_generator_that_answers_a_prompt_twice_or_not_at_all_is_an_error():
    class Twice:
        name = "twice"

        def identity(self):
            return "twice"

        def generate(self, prompts, sampling=None):
            raise NotImplementedError

        def stream(self, prompts, sampling=None):
            yield from [(0, Completion("right")), (0, Completion("right"))]

    with pytest.raises(GenerationError, match="prompt 0 twice"):
        Guess(Twice()).map(numbers(1, 2))
    Twice.stream = lambda self, prompts, sampling=None: iter([(1, Completion("right"))])
    with pytest.raises(GenerationError, match="answered 1 of 2"):
        Guess(Twice()).map(numbers(1, 2))


def test_one_refusal_of_all_first_requests_is_one_error_with_the_servers_words():
    def refused(messages):
        asked.append(messages)
        return Completion("", "error", error="http_400: max_tokens is not supported")

    asked = []
    with pytest.raises(GenerationError, match=r"all refused.*max_tokens is not supported.*run again"):
        Guess(FunctionGenerator(refused)).map(numbers(*range(2000)))
    assert len(asked) < 40
    few = Guess(FunctionGenerator(refused)).map(numbers(*range(5)))
    assert set(few["status"]) == {"failed"}


def test_refusals_in_different_words_or_after_an_answer_are_rows():
    def row_by_row(messages):
        number = messages[0]["content"].split()[1]
        return Completion("", "error", error=f"http_400: {number} tokens are too many")

    assert set(Guess(FunctionGenerator(row_by_row)).map(numbers(*range(50)))["status"]) == {"failed"}

    def later(messages):
        return "right" if messages[0]["content"] == "guess 0" else Completion("", "error", error="http_400: no")

    assert Guess(FunctionGenerator(later)).map(numbers(*range(50)))["status"][:3] == ["right", "failed", "failed"]


PRICE = Price(1.0, 100.0, "USD")  # a call: 10 + 2 tokens, 0.00021


def budgeted(asked, **how):
    return Guess(guesser(asked, wrong=range(1000)), price=PRICE, later=(1000, 9), **how)


def test_a_budget_holds_for_certain_and_finishes_what_it_begins(capsys):
    enable_progress_bars()
    asked = []
    done = budgeted(asked).map(numbers(*range(400)), max_cost=0.1)
    spent = len(asked) * PRICE.cost(10, 2)
    assert 0.08 < spent <= 0.1
    statuses = done["status"][:]
    assert set(statuses) == {"right", "not_run"}
    assert all(len(said) == 2 for said, status in zip(done["said"], statuses, strict=True) if status == "right")
    assert len(asked) == 2 * statuses.count("right")
    assert done["id"][:] == list(range(400))
    said = capsys.readouterr().err
    left = statuses.count("not_run")
    assert (
        f"{PRICE.money(spent)} spent; the budget of 0.100 USD ended the run: {left} of 400 rows were not asked" in said
    )


def test_a_budget_leaves_out_a_random_part_of_every_split_and_language():
    rows = {"id": list(range(200)), "other": ["first"] * 100 + ["last"] * 100}
    splits = DatasetDict(one=Dataset.from_dict(rows), two=Dataset.from_dict(rows))
    done = budgeted([]).map(splits, max_cost=0.1)
    for split in done.values():
        finished = [other for other, status in zip(split["other"], split["status"], strict=True) if status == "right"]
        assert 20 < finished.count("first") < 95
        assert 20 < finished.count("last") < 95


def test_a_budget_of_nothing_asks_nothing_and_gives_what_is_remembered(tmp_path):
    asked = []
    journal = Journal(guesser(asked, wrong=range(1000)), tmp_path / "journal")
    Guess(journal).map(numbers(*range(10)))
    before = len(asked)
    done = Guess(journal).map(numbers(*range(20)), max_cost=0)
    assert len(asked) == before
    assert done["status"][:] == ["right"] * 10 + ["not_run"] * 10


def test_a_rerun_with_a_budget_pays_for_new_rows_alone(tmp_path):
    asked = []
    task = Guess(Journal(guesser(asked, wrong=range(1000)), tmp_path / "journal"), price=PRICE, later=(1000, 9))
    first = task.map(numbers(*range(400)), max_cost=0.05)
    before = len(asked)
    again = task.map(numbers(*range(400)), max_cost=0.05)
    assert 0.03 < (len(asked) - before) * PRICE.cost(10, 2) <= 0.05
    assert again["status"][:].count("right") == len(asked) // 2 > first["status"][:].count("right")


def test_a_follow_up_that_was_not_announced_never_exceeds_the_budget():
    asked = []
    surprised = Guess(guesser(asked, wrong=range(1000)), price=PRICE)
    done = surprised.map(numbers(*range(400)), max_cost=0.1)
    assert 0.05 < len(asked) * PRICE.cost(10, 2) <= 0.1
    assert {len(said) for said, status in zip(done["said"], done["status"], strict=True) if status == "right"} == {2}


def test_a_stream_stops_at_its_budget(capsys):
    enable_progress_bars()
    asked = []
    done = list(budgeted(asked).map(numbers(*range(400)).to_iterable_dataset(), max_cost=0.1))
    assert len(asked) * PRICE.cost(10, 2) <= 0.1
    statuses = [row["status"] for row in done]
    assert statuses == ["right"] * statuses.count("right") + ["not_run"] * statuses.count("not_run")
    assert "budget is spent" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf")])
def test_a_budget_that_is_no_amount_is_refused(budget):
    with pytest.raises(ValueError, match="is no amount"):
        budgeted([]).map(numbers(1), max_cost=budget)


def test_a_budget_needs_a_price_and_one_process():
    with pytest.raises(ValueError, match="needs a price"):
        Guess(guesser([])).map(numbers(1), max_cost=1)
    with pytest.raises(ValueError, match="num_proc"):
        budgeted([]).map(numbers(1), max_cost=1, num_proc=2)


@pytest.mark.parametrize("price", [(1,), (1, -1), (float("nan"), 1), "free", 3, (1, 2, 3)])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(ValueError, match="is no price"):
        Booster(generator=guesser([]), price=price)


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "0.00 USD"),
        (0.000123456, "0.000123 USD"),
        (0.0421, "0.0421 USD"),
        (1.5, "1.50 USD"),
        (1234.5, "1,234.50 USD"),
    ],
)
def test_money_has_enough_digits_and_a_currency_only_where_one_is_given(amount, said):
    assert PRICE.money(amount) == said
    assert Price(1, 1).money(amount) == said.removesuffix(" USD")


def test_the_estimate_counts_what_is_remembered_and_makes_no_call(tmp_path):
    asked = []
    task = Guess(Journal(guesser(asked), tmp_path / "journal"), price=PRICE)
    task.map(numbers(0, 1))
    estimate = task.estimate(DatasetDict(a=numbers(0, 1, 2), b=numbers(-1, 3)))
    assert len(asked) == 2
    assert (estimate.rows, estimate.calls, estimate.remembered, estimate.without_call) == (5, 4, 2, {"decided": 1})
    assert estimate.cost < estimate.cost_at_most == pytest.approx(2 * PRICE.cost(len("guess 2") + 64, 100))
    assert "5 rows, 4 calls (2 remembered, decided 1 without a call)" in str(estimate)
    assert "USD (at most" in str(estimate)
    with pytest.raises(TypeError, match="stream"):
        task.estimate(numbers(1).to_iterable_dataset())


def test_an_estimate_of_many_rows_is_a_sample():
    estimate = Guess(guesser([])).estimate(numbers(*range(50_000)))
    assert (estimate.rows, estimate.sampled) == (50_000, 20_000)
    assert estimate.calls == pytest.approx(50_000, abs=3)
    assert "estimated from 20,000 random rows" in str(estimate)


def test_the_estimate_of_a_conversation_counts_its_turns():
    questions = Dataset.from_dict({"turns": [["a", "b", "c"], ["d"]]})
    assert Answering(generator=guesser([])).estimate(questions).calls == 4
