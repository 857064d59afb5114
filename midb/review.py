"""What a boost did, told from its columns alone: also from a dataset that was stored and loaded again.

Knows the columns that a booster writes, not the booster.
"""

from dataclasses import dataclass, field
from typing import Any

from midb.errors import ColumnError


@dataclass(frozen=True)
class Summary:
    """What a boost did, in rows and tokens. Reasons are counted by their code, the word before the colon."""

    rows: int
    boosted: int
    unchanged: int
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        def by_reason(counts: dict[str, int]) -> str:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
            return f"{sum(counts.values()):,}" + (f" ({reasons})" if reasons else "")

        return (
            f"{self.rows:,} rows: {self.boosted:,} boosted, {self.unchanged:,} unchanged, {by_reason(self.rejected)} rejected, "
            f"{by_reason(self.failed)} failed; {self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens, remembered answers included"
        )


def summarize(edits: Any) -> Summary:
    """Count what became of each row, from the columns alone.

    Reads: `boost_status`, `boost_reason`, `boost_prompt_tokens`, `boost_completion_tokens`.  The tokens are of every
    answered row, also where a journal answered.

    Raises:
        ColumnError: The dataset has not been boosted, or is streamed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset, concatenate_datasets

    read = ["boost_status", "boost_reason", "boost_prompt_tokens", "boost_completion_tokens"]
    splits = list(edits.values()) if isinstance(edits, dict) else [edits]
    for split in splits:
        if not isinstance(split, Dataset):
            raise ColumnError(
                "a stream has no end to count to; summarize what was read: Dataset.from_list(list(stream))"
            )
        if missing := [name for name in read if name not in split.column_names]:
            raise ColumnError(f"the dataset lacks {missing}; boost it first: booster.map(ds)")
    edits = concatenate_datasets([split.select_columns(read) for split in splits])
    counts: dict[tuple[str, str], int] = {}
    tokens = [0, 0]
    for table in edits.with_format("arrow").iter(batch_size=100_000):
        code = pc.replace_substring_regex(table["boost_reason"], "(?s):.*", "")
        grouped = (
            pa.table({"status": table["boost_status"], "code": code})
            .group_by(["status", "code"])
            .aggregate([([], "count_all")])
        )
        for row in grouped.to_pylist():
            key = (row["status"], row["code"])
            counts[key] = counts.get(key, 0) + row["count_all"]
        tokens = [total + (pc.sum(table[name]).as_py() or 0) for total, name in zip(tokens, read[2:], strict=True)]
    by = {
        status: {code: n for (had, code), n in sorted(counts.items(), key=lambda item: -item[1]) if had == status}
        for status, _ in counts
    }
    return Summary(
        sum(counts.values()), sum(by.get("boosted", {}).values()), sum(by.get("unchanged", {}).values()),
        by.get("rejected", {}), by.get("failed", {}), *tokens,
    )  # fmt: skip
