"""One progress bar over rows as they finish inside a large batch, in place of the bar over batches that `map` draws.

Knows the bars of `datasets` and their switch; not what the rows are.
"""


class RowBar:
    """A bar that counts rows and tokens; the bars of `datasets` are hidden while it stands.

    Args:
        rows: How many there will be.
        what: The word before the bar.
    """

    def __init__(self, rows: int, what: str) -> None:
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

        self._shown = not are_progress_bars_disabled()
        self._hide, self._show = disable_progress_bars, enable_progress_bars
        self._bar = tqdm(total=rows, unit=" rows", desc=what)
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

    def count(self, tokens: int, failed: bool, spent: str = "") -> None:
        """Count one finished row, its completion tokens, and show the money spent so far."""
        self._tokens += tokens
        self._failed += failed
        if self._bar.update():  # a new text only where the bar is drawn
            elapsed = self._bar.format_dict["elapsed"] or 1
            rate = f"{self._tokens / elapsed:,.0f} tokens/s, {self._failed} failed"
            self._bar.set_postfix_str(f"{rate}, {spent} spent" if spent else rate, refresh=False)


def say(text: object) -> None:
    """Print a summary where people look, unless they have switched the bars off."""
    import sys

    from datasets.utils import are_progress_bars_disabled

    if not are_progress_bars_disabled():
        print(text, file=sys.stderr)
