import pytest
from datasets import Dataset, DatasetDict

from midb import ColumnError
from midb.review import summarize

EDITS = Dataset.from_dict(
    {
        "boost_status": ["boosted", "boosted", "unchanged", "rejected", "rejected", "failed"],
        "boost_reason": ["", "", "", "loop: response repeats\n: x", "loop: y", "http_500: boom: twice"],
        "boost_prompt_tokens": [1, 2, 3, 4, 5, None],
        "boost_completion_tokens": [10, 20, 30, 40, 50, None],
    }
)


def test_rows_are_counted_by_status_and_by_the_code_of_their_reason():
    summary = summarize(EDITS)
    assert (summary.rows, summary.boosted, summary.unchanged) == (6, 2, 1)
    assert (summary.rejected, summary.failed) == ({"loop": 2}, {"http_500": 1})
    assert (summary.prompt_tokens, summary.completion_tokens) == (15, 150)
    assert str(summary).startswith(
        "6 rows: 2 boosted, 1 unchanged, 2 (loop 2) rejected, 1 (http_500 1) failed; 15 prompt"
    )


def test_the_splits_of_a_dict_are_counted_together_and_any_format_will_do():
    summary = summarize(DatasetDict(train=EDITS.with_format("numpy"), test=EDITS.select(range(2))))
    assert (summary.rows, summary.boosted) == (8, 4)


def test_what_was_not_boosted_or_has_no_end_cannot_be_counted():
    with pytest.raises(ColumnError, match=r"booster\.map"):
        summarize(Dataset.from_dict({"a": [1]}))
    with pytest.raises(ColumnError, match="stream"):
        summarize(EDITS.to_iterable_dataset())
