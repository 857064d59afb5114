"""How often the default guards refuse good edits, and how many planted corruptions they catch.

    python benchmarks/guards_accuracy.py [--shared DIR] [--rows 400]

Good edits: all published raw → revised rows of eight languages and of English CoachLM, also those that MIDB left in
English. For the other eight languages there are no edits; there an AlpacaEval prompt stands for the response and is
replaced by another one, or gets a second one appended ("mild"). `unnamed` is what is refused where no language is declared.

The figures are in-sample: the guards were tuned while looking at these rows, and the eight languages are translations of
the same rows. The planting is by the guards' own author, too; only the dice and the words it falls on were never seen.

Corruptions are planted (seeded) in the revised side of up to `--rows` good edits per language and kind, or in mild edits.
Rows with a revised field of 20 letters or more that is a field of the English file take no part in this.
`language` a row of another language, no near-twin, for response or instruction, both texts 20 letters or more; `script`
another script's row, or letters swapped for Cyrillic or Greek look-alikes; `loop` the tail becomes a phrase 20-200 times,
one character 300 times, one sentence 8 times, or lines that only count up; `cut` half the text and finish_reason length;
`code` a code block of the raw response loses its fences, or goes; `url`, `placeholder` one of the raw response or
instruction goes; `empty`; `leak` the response before, behind or in the instruction; `leftover` template text before or
behind a field; `absurd` the response becomes 40 others.

A row of its own, promised to nobody, is `cut, said to be whole`: the expert's response of 20 letters or more stops at 40
to 90 % of its length, inside a sentence or a line, and finish_reason is stop. Many a cut list item is a fine list item.
"""

import argparse
import json
import os
import random
from collections import Counter
from pathlib import Path

from midb.guards import DEFAULT_GUARDS, check
from midb.languages import LANGUAGES
from midb.schema import Completion, Pair

TWINS = {frozenset(("id", "ms"))}
STOP, LENGTH = Completion(""), Completion("", "length")
CODE = "```python\ndef area(w, h):\n    size = w * h\n    return size\n```"
MARKS = ["<|instruction|>", "<|response|>", "<|input|>", "<|eot_id|>", "<|im_start|>assistant\n", "### Response:\n", "[/INST]",
         "Here is the improved response:\n", "Response: ", "Improve the following content to be more specific, detailed\n"]  # fmt: skip
PLACEHOLDERS = ["{name}", "{{user_name}}", "%s", "<placeholder>", "${city}", "%(count)d"]
LOOKALIKE = (dict(zip("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопqрстуввхыз", strict=True)),
             dict(zip("abcdefghijklmnopqrstuvwxyz", "αβκδεφγηιζκλμνοπθρστυβωχψζ", strict=True)))  # fmt: skip
KINDS = ("language", "script", "loop", "cut", "code", "url", "placeholder", "empty", "leak", "leftover", "absurd")
CUT_WHOLE = "cut, said to be whole"
SHARED = Path(os.environ.get("MIDB_SHARED", Path(__file__).parents[2] / "shared"))
Rows = dict[str, list[tuple[Pair, Pair]]]


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def load(shared: Path) -> tuple[Rows, Rows]:
    """Good and mild edits of every language."""
    data = shared / "data"
    files = {language.code: data / f"midb/MIDB_train/{language.name}.json" for language in LANGUAGES}
    files = {"en": data / "coachlm/Expert Revision Dataset.json"} | {k: f for k, f in files.items() if f.exists()}
    texts = {
        code: [[str(v) for v in row.values()][:6] for row in json.loads(f.read_text("utf-8"))]
        for code, f in files.items()
    }
    good = {code: [(Pair(*r[:3]), Pair(*r[3:])) for r in rows] for code, rows in texts.items()}
    mild: Rows = {}
    for language in LANGUAGES:
        rows = json.loads((data / f"midb/alpaca_eval/{language.name}.json").read_text("utf-8"))
        prompts = [str(next(iter(row.values()))) for row in rows]
        for i, (ask, one, two) in enumerate(zip(prompts, prompts[1:], prompts[2:], strict=False)):
            new = two if i % 2 else f"{one} {two}"
            mild.setdefault(language.code, []).append((Pair(ask, "", one), Pair(ask, "", new)))
    return good, mild


def translated(good: Rows) -> Rows:
    """Without the rows whose revised side was left in English."""
    english = {field for edit in good["en"] for pair in edit for field in pair if letters(field) >= 20}
    return {code: [e for e in edits if code == "en" or not english & set(e[1])] for code, edits in good.items()}


def plant(
    kind: str, raw: Pair, new: Pair, code: str, rows: Rows, dice: random.Random
) -> tuple[Pair, Pair, Completion] | None:
    """One corrupted edit, or None where the kind cannot be planted in this row."""
    text, field = new.response, dice.choice(["response", "instruction"])
    if kind in ("language", "script"):
        other = dice.choice([c for c in rows if c != code and frozenset((c, code)) not in TWINS])
        theirs, mine = getattr(dice.choice(rows[other])[1], field), getattr(raw, field)
        if kind == "script" and code not in ("ar", "ja", "ko", "ru", "el", "th"):
            look = dice.choice(LOOKALIKE)
            theirs = "".join(look.get(char, char) for char in getattr(new, field).lower())
        elif kind == "script":
            theirs = dice.choice(rows["es"])[1].response
        return (raw, new._replace(**{field: theirs}), STOP) if letters(theirs) >= 20 and letters(mine) >= 20 else None
    if kind == "loop":
        words, head = text.split() or ["a"], text[: len(text) // 2]
        phrase = " ".join(words[: dice.randint(1, 6)])[:80]
        tails = [f"{phrase} " * dice.randint(20, 200), dice.choice("a!。い.") * 300, f"{text[:120]}. " * 8,
                 "".join(f"{n}. {phrase}\n" for n in range(1, 40))]  # fmt: skip
        return raw, new._replace(response=head + dice.choice(tails)), STOP
    if kind == "cut":
        return raw, new._replace(response=text[: len(text) // 2]), LENGTH
    if kind == CUT_WHOLE:
        for _ in range(20 if letters(text) >= 20 else 0):
            at = dice.randint(4 * len(text) // 10, 9 * len(text) // 10)
            head = text[:at].rstrip("\"'”’»)*_ ")
            if head and head[-1] not in "\n.!?؟।…。！？:" and not text[at:].lstrip(" ").startswith("\n"):
                return raw, new._replace(response=text[:at]), STOP
        return None
    if kind == "code":
        bare = dice.choice([CODE.replace("```python\n", "").replace("```", ""), ""])
        return raw._replace(response=f"{raw.response}\n{CODE}"), new._replace(response=f"{text}\n{bare}"), STOP
    if kind in ("url", "placeholder"):
        piece = (
            dice.choice(PLACEHOLDERS) if kind == "placeholder" else f"https://example.org/{dice.randint(1, 999)}?q=1"
        )
        if field == "response" or raw.instruction == new.instruction:
            new = new._replace(instruction=new.instruction + " :")
        return raw._replace(**{field: f"{getattr(raw, field)} {piece}."}), new, STOP
    if kind == "empty":
        return (raw, new._replace(**{field: dice.choice(["", " \n"])}), STOP) if getattr(raw, field) else None
    if kind == "leak":
        ask = dice.choice(
            [f"{new.instruction}\n{text}", f"{text}\n{new.instruction}", f"{new.instruction} {text} {new.instruction}"]
        )
        return (raw, new._replace(instruction=ask), STOP) if len(text) >= 20 and text not in "\n".join(raw) else None
    if kind == "leftover":
        mark = dice.choice(MARKS)
        fits = mark.startswith(("<", "[")) and dice.random() < 0.5
        return raw, new._replace(**{field: getattr(new, field) + mark if fits else mark + getattr(new, field)}), STOP
    return raw, new._replace(response="\n".join(dice.choice(rows[code])[1].response for _ in range(40))), STOP


def caught(kind: str, code: str, rows: Rows, most: int, show: bool = False) -> list[bool]:
    """Whether the guards refuse, for up to `most` rows of a language in which the kind can be planted."""
    dice, hits = random.Random(f"{kind} {code}"), []
    for raw, new in dice.sample(rows[code], min(most, len(rows[code]))):
        planted = plant(kind, raw, new, code, rows, dice)
        if planted:
            hits.append(check(DEFAULT_GUARDS, *planted[:2], code, planted[2]) is not None)
            if not hits[-1] and show:
                print(code, *((a, b) for a, b in zip(*planted[:2], strict=True) if a != b), sep="\n   ")
    return hits


def table(title: str, rows: dict[str, dict[str, float]], columns: list[str]) -> None:
    print(f"\n{title}\n{'':22}" + "".join(f"{column:>8.7}" for column in columns))
    for name, row in rows.items():
        print(f"{name:22}" + "".join(f"{row[c]:8.2f}" if c in row else f"{'':8}" for c in columns))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that holds data/")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--show", help="print the refused good edits (a guard's name) or missed corruptions (a kind)")
    arguments = parser.parse_args()
    good, mild = load(arguments.shared)
    sets = good | {f"{code}-mild": rows for code, rows in mild.items()}
    refused: dict[str, dict[str, float]] = {}
    for name, rows in sets.items():
        counts: Counter[str] = Counter()
        for raw, new in rows:
            reason = check(DEFAULT_GUARDS, raw, new, name[:2], STOP)
            counts[reason.split(":")[0] if reason else "none"] += 1
            if reason and arguments.show in (reason.split(":")[0], name):
                print(name, reason, *((a, b) for a, b in zip(raw, new, strict=True) if a != b), sep="\n   ")
        refused[name] = {g: 100 * n / len(rows) for g, n in counts.items() if g != "none"}
        unnamed = sum(check(DEFAULT_GUARDS, *edit, None, STOP) is not None for edit in rows)
        refused[name] |= {"rows": float(len(rows)), "all": 100 - 100 * counts["none"] / len(rows)}
        refused[name] |= {"unnamed": 100 * unnamed / len(rows)}
    found: dict[str, dict[str, float]] = {}
    whole = translated(good)
    codes = [*good, *(code for code in mild if code not in good)]
    for kind in (*KINDS, CUT_WHOLE):
        for code in good if kind == CUT_WHOLE else codes:
            hits = caught(kind, code, whole if code in whole else mild, arguments.rows, arguments.show == kind)
            found.setdefault(kind, {})[code] = 100 * sum(hits) / len(hits)
        found[kind]["lowest"] = min(found[kind].values())
    table("good edits refused, %", refused, ["rows", "all", "unnamed", *(guard.__name__ for guard in DEFAULT_GUARDS)])
    table("planted corruptions caught, %", found, ["lowest", *codes])
    result = Path(__file__).parent / "results/guards_accuracy.json"
    result.write_text(json.dumps({"refused": refused, "caught": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
