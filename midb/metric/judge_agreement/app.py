"""The Space of the comparison: its card, and a form for the verdicts of two raters."""

from pathlib import Path

import evaluate
import gradio

HERE = Path(__file__).parent
CARD = (HERE / "README.md").read_text(encoding="utf-8").split("---", 2)[-1]
EXAMPLE = "a a\na b\nb b\ntie tie\nnone a"


def report(lines: str) -> dict:
    """The result of a line of two verdicts per comparison."""
    rows = [line.replace(",", " ").split() for line in lines.splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise gradio.Error("write two verdicts a line: a, b, tie or none")
    raters = [
        [{"0": "tie", "1": "a", "2": "b", "none": None}.get(each, each) for each in rater]
        for rater in zip(*rows, strict=True)
    ]
    try:
        metric = evaluate.load(str(HERE / "judge_agreement.py"))
        return metric.compute(**dict(zip(("predictions1", "predictions2"), raters, strict=True)))
    except ValueError as error:
        raise gradio.Error(str(error)) from error


with gradio.Blocks(title="Judge agreement") as demo:
    rows = gradio.Textbox(EXAMPLE, label="Two verdicts a line: a, b, tie or none", lines=8)
    gradio.Button("Compute").click(report, rows, gradio.JSON(label="Result"))
    gradio.Markdown(CARD)

if __name__ == "__main__":
    demo.launch()
