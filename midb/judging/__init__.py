"""Two datasets → verdicts → report: which one is better, and how sure that is."""

from midb.judging.answers import Answering, answer
from midb.judging.comparisons import as_comparisons
from midb.judging.judge import Judge
from midb.judging.prompts import JudgePrompts, Template
from midb.judging.ranking import Ranking, rank
from midb.judging.report import Report, summarize
from midb.judging.verdict import parse_verdict

__all__ = [
    "Answering",
    "Judge",
    "JudgePrompts",
    "Ranking",
    "Report",
    "Template",
    "answer",
    "as_comparisons",
    "parse_verdict",
    "rank",
    "summarize",
]
