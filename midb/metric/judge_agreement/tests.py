"""What the comparison must return, as `evaluate` modules state it."""

test_cases = [
    {
        "predictions1": ["a", "a", "b", "tie", None],
        "predictions2": ["a", "b", "b", "tie", "a"],
        "result": {"agreement": 0.75, "agreement_without_ties": 2 / 3, "kappa": 7 / 11, "n": 4, "no_verdict": 1},
    },
    {
        "predictions1": [1, 1, 1],
        "predictions2": ["a", "b", "tie"],
        "result": {"agreement": 1 / 3, "agreement_without_ties": 1 / 2, "kappa": None, "n": 3},
    },
]
