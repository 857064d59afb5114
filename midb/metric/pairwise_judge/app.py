"""The Space of the metric: its card, and a form for stored verdicts. A form cannot carry a judge."""

import json
from pathlib import Path

import evaluate
import gradio

HERE = Path(__file__).parent
CARD = (HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[-1]
EXAMPLE = "\n".join(
    json.dumps(row)
    for row in (
        {"question": "2 + 2?", "prediction": "Four.", "reference": "4", "language": "en", "verdict": ["a", "tie"]},
        {"question": "¿2 + 2?", "prediction": "Cuatro.", "reference": "No sé.", "language": "es", "verdict": "a"},
    )
)


def report(lines: str) -> dict:
    """The result of rows in JSON lines."""
    try:
        rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
        metric = evaluate.load(str(HERE / "pairwise_judge.py"))
        languages = [row.get("language") or "" for row in rows]
        return metric.compute(
            predictions=[row["prediction"] for row in rows],
            references=[row["reference"] for row in rows],
            questions=[row["question"] for row in rows],
            verdicts=[row["verdict"] for row in rows],
            languages=languages if any(languages) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise gradio.Error(f"{type(error).__name__}: {error}") from error


with gradio.Blocks(title="Pairwise judge") as demo:
    rows = gradio.Textbox(EXAMPLE, label="Rows, one JSON object a line, with stored verdicts", lines=8)
    gradio.Button("Compute").click(report, rows, gradio.JSON(label="Result"))
    gradio.Markdown(CARD)

if __name__ == "__main__":
    demo.launch()
