"""What the metric must return, as `evaluate` modules state it."""

_ANSWERS = {
    "predictions": ["Paris, on the Seine.", "Four.", "I do not know.", "Blue."],
    "references": ["Paris.", "4", "The Nile.", "It is blue."],
    "questions": ["What is the capital of France?", "2 + 2?", "Which river flows through Cairo?", "Which colour?"],
}

test_cases = [
    {
        **_ANSWERS,
        "verdicts": ["a", "tie", "b", "a"],
        "result": {"win_score": 0.625, "win": 2, "tie": 1, "loss": 1, "n": 4},
    },
    {**_ANSWERS, "verdicts": [1, 0, 2, 1], "result": {"net_margin": 0.25, "qs": 0.75, "coverage": 1.0}},
    {
        **_ANSWERS,
        "verdicts": [("a", "a"), ("a", "b"), ("b", None), ("a", "tie")],
        "result": {"win": 1, "tie": 2, "loss": 0, "no_verdict": 1, "coverage": 0.75, "consistency": 1 / 3},
    },
]
