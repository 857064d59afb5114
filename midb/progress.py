"""One progress bar over rows as they finish inside a large batch, in place of the one over batches that `map` draws.

Knows the bars of `datasets` and their switch; not what the rows are.
"""


class RowBar:
    """A bar that counts rows and tokens; the bars of `datasets` are hidden while it stands.

    Args:
        rows: How many there will be.
        what: The word before the bar.
        unit: What is counted.
    """

    def __init__(self, rows: int, what: str, unit: str = "rows") -> None:
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

        self._shown = not are_progress_bars_disabled()
        self._hide, self._show = disable_progress_bars, enable_progress_bars
        self._bar = tqdm(total=rows, unit=f" {unit}", desc=what)
        self._tokens = 0
        self._failed = 0

    def __enter__(self) -> "RowBar":
        if self._shown:
            self._hide()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._shown:
            self._show()

    def count(self, tokens: int | None, failed: int, rows: int = 1) -> None:
        """One row is done, or many at once: those are drawn, as it may take long until the next."""
        self._tokens += tokens or 0
        self._failed += failed
        if self._bar.update(rows) or rows > 1:  # only where it is drawn a new text is worth its time
            elapsed = self._bar.format_dict["elapsed"] or 1
            self._bar.set_postfix_str(
                f"{self._tokens / elapsed:,.0f} tokens/s, {self._failed} failed", refresh=rows > 1
            )


def say(text: object) -> None:
    """Print a summary where people look, unless they have switched the bars off."""
    import sys

    from datasets.utils import are_progress_bars_disabled

    if not are_progress_bars_disabled():
        print(text, file=sys.stderr)
