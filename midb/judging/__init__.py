"""Two datasets → verdicts → report: which one is better, and how sure that is."""

from midb.judging.comparisons import as_comparisons
from midb.judging.judge import Estimate, Judge
from midb.judging.prompts import JudgePrompts, Template

__all__ = ["Estimate", "Judge", "JudgePrompts", "Template", "as_comparisons"]
