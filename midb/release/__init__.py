"""The published MIDB and CoachLM files, read as clean datasets.

Knows where two repositories keep their files and each defect that an audit of them found: those are mended or marked
and said row by row, and a file that departs from what was audited in any other way is an error, not a guess. Knows
nothing of what the rows are worth: all published files are machine translations, the training files of CoachLM's English
edits, the evaluation sets of the English MT-Bench and AlpacaEval.
"""

from midb.release.evaluation import load_alpaca_eval, load_mt_bench
from midb.release.files import UPSTREAM
from midb.release.training import load_coachlm, load_training

__all__ = ["UPSTREAM", "load_alpaca_eval", "load_coachlm", "load_mt_bench", "load_training"]
