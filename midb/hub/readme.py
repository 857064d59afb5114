"""One README, two authors: what a push writes stands between two lines, and everything else is people's.

Knows cards and their metadata; neither what they are about nor the Hub.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from midb.errors import MidbError

if TYPE_CHECKING:
    from huggingface_hub import RepoCard

BEGIN, END = "<!-- midb:begin -->", "<!-- midb:end -->"
_NOTE = "<!-- Written anew by each push. What you write above the line before this one, or below the last, stays. -->"
_BEGIN = re.compile(r"^<!-- midb:begin(?P<owned>(?: [+=@]?[\w.,:/-]+)*) -->[ \t]*\r?$", re.MULTILINE)
_END = re.compile(r"^<!-- midb:end -->[ \t]*\r?$", re.MULTILINE)
METRIC = "midb_"  # what our entries of a model index begin with
# What is so of what was pushed and may not be so of the next: it goes when the next push does not say it.
_FLEETING = ("language", "datasets", "source_datasets", "multilinguality")
_JOINED = ("tags", "task_categories")
# What is no fact of what was pushed: what people made of it after the first push stays.
_LOOKS = ("title", "emoji", "colorFrom", "colorTo", "pinned", "pipeline_tag")


@dataclass(frozen=True)
class Owned:
    """What an earlier push wrote, by the README's own word.

    Attributes:
        is_ours: Whether the two lines are there.
        kind: `dataset`, `eval_set`, `adapter` or `metric`; empty where a person put the lines.
        configs: The dataset configurations that are midb's.
        keys: The metadata that midb wrote and that the next push takes away if it does not state them.
        rows: What the text tells of: how many rows there are; empty where it does not say.
        languages: Likewise, in which; None where it does not say.
        place: The repository in the lines that load it; empty while that is not known.
    """

    is_ours: bool
    kind: str = ""
    configs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    rows: str = ""
    languages: tuple[str, ...] | None = None
    place: str = ""

    def by_consent(self, configs: tuple[str, ...]) -> "Owned":
        """Where a person put the bare lines, midb may write what it has to."""
        return replace(self, configs=configs) if self.is_ours and not self.kind else self


def told_of(rows: int | None, languages: Sequence[str]) -> str:
    """What a text is about, for the first of its two lines: a push knows by it a card of other rows."""
    return f"={rows or ''}:{','.join(sorted(languages))}"


def as_section(
    body: str, kind: str = "", configs: tuple[str, ...] = (), keys: tuple[str, ...] = (), notes: Sequence[str] = ()
) -> str:
    """A text between the two lines. It may hold anything but such lines, which templates cannot get from data.

    Args:
        body: The text.
        kind, configs, keys: As in `Owned`.
        notes: `told_of(...)`, and `@` before the repository in the lines that load it.
    """
    owned = "".join(f" {name}" for name in (kind, *configs, *(f"+{key}" for key in keys), *notes) if name)
    return f"<!-- midb:begin{owned} -->\n{_NOTE}\n\n{body.strip()}\n\n{END}"


def read_owned(readme: str | None) -> Owned:
    """What of a README midb wrote.

    Raises:
        MidbError: One of the two lines is missing, or they stand more than once.
    """
    found = _find(readme or "")
    if found is None:
        return Owned(False)
    names = [name for name in found[2] if name[0] not in "+=@"]
    keys = tuple(name[1:] for name in found[2] if name[0] == "+")
    place = next((name[1:] for name in found[2] if name[0] == "@"), "")
    rows, colon, languages = next((name[1:] for name in found[2] if name[0] == "="), "").partition(":")
    of = tuple(languages.split(",")) if colon else None
    return Owned(True, names[0] if names else "", tuple(names[1:]), keys, rows, of, place)


def notes_of(text: str) -> list[str]:
    """The notes in the first of the two lines."""
    found = _find(text)
    return [name for name in found[2] if name[0] in "=@"] if found else []


def body_of(text: str) -> str:
    """What stands between the two lines, or the whole text where they are not."""
    found = _find(text)
    if found is None:
        return text.strip()
    inner = text[found[0] : found[1]].split("\n", 1)[1].rsplit("\n", 1)[0]
    return inner.replace(_NOTE, "", 1).strip()


def merge(theirs: str | None, ours: "RepoCard", kind: str, configs: tuple[str, ...] = ()) -> "RepoCard":
    """Our card, with what people wrote into the README that is there.

    Their text around our two lines stays as it is; in a README without them our text goes to the end. Metadata that we do
    not write stays, and so does a licence, a name or any other value that this push does not state; but what is so only of
    what was there before goes: the figures of a judge, and the languages and datasets that an earlier push wrote. Tags,
    tasks and languages are joined, and after the first push the looks of a page are people's, as is the configuration that
    nobody has to name.

    Args:
        theirs: The README as it is; None where there is none.
        ours: The card.
        kind: Goes into the first of the two lines.
        configs: Likewise: the next push will know that these are midb's.

    Raises:
        MidbError: The README cannot be read, or has a configuration of the same name that midb did not write.
    """
    from huggingface_hub import RepoCard

    keys = tuple(key for key in _FLEETING if ours.data.get(key))
    section = as_section(body_of(ours.text), kind, configs, keys, notes_of(ours.text))
    if theirs is None or not theirs.strip():
        found = _find(ours.text)
        text = f"\n{section}\n"
        if found is not None:
            text = ours.text[: found[0]] + section + ours.text[found[1] :]
        return _card(type(ours), ours.data.to_dict(), text)
    owned = read_owned(theirs).by_consent(configs)
    theirs = theirs.removeprefix("\ufeff")
    try:
        card = RepoCard(theirs if theirs.lstrip().startswith("---") else f"---\n{{}}\n---\n{theirs}")
    except Exception as error:  # whatever yaml and huggingface_hub make of it
        raise MidbError(
            f"the metadata of its README.md cannot be read ({error}); mend them on the Hub first"
        ) from error
    found = _find(card.text)
    if "\r\n" in card.text:
        section = section.replace("\n", "\r\n")
    if found is None:
        end = "\r\n" if "\r\n" in card.text else "\n"
        card.text = card.text.rstrip() + 2 * end + section + end
    else:
        card.text = card.text[: found[0]] + section + card.text[found[1] :]
    return _card(type(ours), _merged(card.data.to_dict(), ours.data.to_dict(), owned), card.text)


def _card(kind: "type[RepoCard]", metadata: dict[str, Any], text: str) -> "RepoCard":
    from huggingface_hub.utils import yaml_dump

    end = "\r\n" if "\r\n" in text else "\n"
    head = yaml_dump(metadata, sort_keys=False, line_break=end).strip()
    return kind(f"---{end}{head}{end}---{end}{text}")


def _find(text: str) -> tuple[int, int, list[str]] | None:
    """Where our two lines are, and the names in the first."""
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise MidbError(
            f"README.md has {len(begins)} lines {BEGIN} and {len(ends)} lines {END}, where a push writes between one of each; "
            "mend it on the Hub first, or remove them all"
        )
    stop = ends[0].end() - (text[ends[0].end() - 1] == "\r")
    return begins[0].start(), stop, begins[0]["owned"].split()


def _merged(theirs: dict[str, Any], ours: dict[str, Any], owned: Owned) -> dict[str, Any]:
    gone = {*owned.keys} - {*ours}
    merged = {key: value for key, value in {**theirs, **ours}.items() if key not in gone}
    for key in _JOINED:
        if key in theirs:
            merged[key] = list(dict.fromkeys([*_listed(theirs[key]), *_listed(ours.get(key))]))
    if owned.is_ours:
        merged |= {key: theirs[key] for key in _LOOKS if key in theirs}
    said = _listed(theirs.get("language"))
    wrote = owned.languages if owned.languages is not None else said if "language" in owned.keys else ()
    if ("language" in ours or "language" in gone) and (added := [each for each in said if each not in wrote]):
        merged["language"] = list(dict.fromkeys([*_listed(ours.get("language")), *added]))
    for key in ("configs", "dataset_info"):
        kept = [each for each in _listed(theirs.get(key)) if _name(each) not in owned.configs]
        new = _listed(ours.get(key))
        if taken := sorted({*map(_name, kept)} & {*map(_name, new)}):
            raise MidbError(
                f"README.md has the configurations {', '.join(taken)}, which midb did not write; rename them there, or give "
                "another repository"
            )
        if kept or new:
            merged[key] = [*new, *kept] if len(kept) + len(new) > 1 or key == "configs" else (kept or new)[0]
    chosen = [_name(each) for each in _listed(theirs.get("configs")) if isinstance(each, dict) and each.get("default")]
    if {*chosen} & {_name(each) for each in merged.get("configs", ())}:
        merged["configs"] = [_with_default(each, _name(each) in chosen) for each in merged["configs"]]
    if index := _index(_listed(theirs.get("model-index")), _listed(ours.get("model-index"))):
        merged["model-index"] = index
    else:
        merged.pop("model-index", None)
    return merged


def _with_default(config: dict[str, Any], is_default: bool) -> dict[str, Any]:
    others = {key: value for key, value in config.items() if key != "default"}
    return others | {"default": True} if is_default else others


def _index(theirs: list[Any], ours: list[Any]) -> list[Any]:
    """Their results without what an earlier push of ours wrote, and ours."""
    others = []
    for model in theirs:
        results = [result for result in model.get("results") or [] if not _is_ours(result)]
        if results:
            others.append({**model, "results": results})
    if others and others[0].get("name"):
        return [
            {**others[0], "results": [*others[0]["results"], *(r for m in ours for r in m["results"])]},
            *others[1:],
        ]
    return ours


def _is_ours(result: dict[str, Any]) -> bool:
    metrics = result.get("metrics") or []
    return bool(metrics) and all(str(metric.get("type", "")).startswith(METRIC) for metric in metrics)


def _name(config: Any) -> str:
    return str(config.get("config_name", "default")) if isinstance(config, dict) else ""


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
