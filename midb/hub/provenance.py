"""`boost_settings` → words for a card. It comes from a file of anyone's, so it is text of unknown shape until it is read here."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from midb.schema import PAIR

LONGEST = 20_000  # characters of settings that are read
SHOWN = 300  # characters of one setting that are shown
_NAMES = {
    "midb": "midb's version",
    "parity": "text of the rows",
    "fields": "fields that may change",
    "extra_body": "further request fields",
}


class Run(NamedTuple):
    """Rows that were made in one way, by their own word.

    Attributes:
        boosted_by: Model or adapter that was asked; empty where the rows do not say.
        identity: `boost_identity`.
        settings: Name → value; None where the rows state none, or none that can be read.
        note: Why there are no settings.
        prompt: What the model was told before each pair.
        guarded: Whether a guard looked at the rows; true where that is not known.
        rows: How many.
    """

    boosted_by: str
    identity: str
    settings: dict[str, str] | None
    note: str
    prompt: str
    guarded: bool
    rows: int


def read_run(rows: int, boosted_by: str, identity: str, settings: str) -> Run:
    """Read what a run says of itself. Never raises, whatever the text is."""
    if not settings:
        return Run(boosted_by, identity, None, "these rows do not state their settings", "", True, rows)
    if len(settings) > LONGEST:
        note = f"boost_settings is left out: it is longer than {LONGEST:,} characters"
        return Run(boosted_by, identity, None, note, "", True, rows)
    try:
        said = json.loads(settings)
        if not isinstance(said, dict):
            raise TypeError
        words = _words(said)
    except (ValueError, TypeError, RecursionError):
        return Run(boosted_by, identity, None, "boost_settings is left out: it is not a JSON object", "", True, rows)
    prompt = said.get("prompt")
    return Run(
        boosted_by, identity, words, "", prompt if isinstance(prompt, str) else "", said.get("guards") != [], rows
    )


def _words(said: Mapping[str, Any]) -> dict[str, str]:
    generator = said.get("generator")
    flat = {**(generator if isinstance(generator, dict) else {"generator": generator}), **said}
    flat["fields"] = ", ".join(PAIR) if said.get("fields") == "all" else said.get("fields")
    if isinstance(said.get("parity"), bool):
        flat["parity"] = "as it was" if said["parity"] else "escaped, so that it ends no turn and moves no field"
    if isinstance(said.get("guards"), list):
        flat["guards"] = [
            each.rpartition(".")[2] if isinstance(each, str) else each for each in said["guards"]
        ] or "none"
    if isinstance(said.get("prompt"), str):
        del flat["prompt"]  # shown apart, with its lines
    if isinstance(generator, dict):
        del flat["generator"]
    words = {_NAMES.get(name, name.replace("_", " ")): _text(value) for name, value in flat.items()}
    return {_cut(name): _cut(value) for name, value in words.items() if value}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"
