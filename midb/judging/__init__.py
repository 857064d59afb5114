"""Two datasets → verdicts → report: which one is better, and how sure that is."""
