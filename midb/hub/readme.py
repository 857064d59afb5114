"""One README, two authors: what a push writes stands between two lines, and everything else is people's.

Knows cards and their metadata; neither what they are about nor the Hub.
"""

import re
from typing import TYPE_CHECKING, Any

from midb.errors import MidbError

if TYPE_CHECKING:
    from huggingface_hub import RepoCard

BEGIN, END = "<!-- midb:begin -->", "<!-- midb:end -->"
ALL = "all"  # the configuration of all languages together; its files name the folders that midb wrote
METRIC = "midb_"  # what our entries of a model index begin with
_NOTE = "<!-- Each push replaces the text between these two lines, and keeps what stands above and below them. -->"
_BEGIN = re.compile(r"^<!-- midb:begin(?: (?P<kind>\w+))? -->[ \t]*\r?$", re.MULTILINE)
_END = re.compile(r"^<!-- midb:end -->[ \t]*\r?$", re.MULTILINE)
# Only true of what was pushed: removed if the next push does not state it.
_FLEETING = ("datasets", "source_datasets")
_JOINED = ("tags", "task_categories")
# How a page looks: people's own after the first push.
_LOOKS = ("title", "emoji", "colorFrom", "colorTo", "pinned", "pipeline_tag")


def as_section(body: str, kind: str = "") -> str:
    """A text between the two lines. It may hold anything but such lines, which templates cannot get from data.

    Args:
        body: The text.
        kind: `dataset`, `eval_set`, `adapter` or `metric`.
    """
    return f"<!-- midb:begin{kind and f' {kind}'} -->\n{_NOTE}\n\n{body.strip()}\n\n{END}"


def read_kind(readme: str | None) -> str | None:
    """The kind of thing that an earlier push wrote; empty where a person put the bare lines, None where there are none.

    Raises:
        MidbError: One of the two lines is missing, or they stand more than once.
    """
    found = _find(readme or "")
    return found and found[2]


def earlier_folders(readme: str | None, ours: "RepoCard") -> set[str]:
    """The folders that an earlier push wrote, and that this one may replace.

    They are those whose files the configuration `all` gathers. Where a person put the bare lines, they are those of this push.

    Raises:
        MidbError: As `read_kind`, or the metadata cannot be read.
    """
    kind = read_kind(readme)
    if kind is None:
        return set()
    configs = (_read(readme or "") if kind else ours).data.get("configs")
    files = [each.get("data_files") for each in _listed(configs) if isinstance(each, dict) and _name(each) == ALL]
    paths = [
        path for each in files for file in _listed(each) if isinstance(file, dict) for path in _listed(file.get("path"))
    ]
    return {str(path).split("/")[0] for path in paths}


def merge(theirs: str | None, ours: "RepoCard") -> "RepoCard":
    """Our card, with what people wrote into the README that is there.

    Their text around our two lines stays as it is; in a README without them our text goes to the end. Metadata that we do
    not write stays, and so does a licence, a name or any other value that this push does not state. What is only true of
    what was there before is removed: a judge's figures, the languages of configurations that are gone, and the datasets that
    an earlier push stated. Tags, tasks and languages are joined. After the first push the looks of a page are people's, and so
    is the choice of the default configuration.

    Args:
        theirs: The README as it is; None where there is none.
        ours: The card.

    Raises:
        MidbError: The README cannot be read, or has a configuration of the same name that midb did not write.
    """
    from huggingface_hub.utils import yaml_dump

    found = _find(ours.text)
    if found is None or theirs is None or not theirs.strip():
        return ours
    card = _read(theirs)
    end = "\r\n" if "\r\n" in card.text else "\n"
    section = ours.text[found[0] : found[1]].replace("\n", end)
    there = _find(card.text)
    if there is None:
        text = card.text.rstrip() + 2 * end + section + end
    else:
        text = card.text[: there[0]] + section + card.text[there[1] :]
    kind, folders = there and there[2], earlier_folders(theirs, ours)
    metadata = _merged(card.data.to_dict(), ours.data.to_dict(), kind, folders)
    head = yaml_dump(metadata, sort_keys=False, line_break=end).strip()
    return type(ours)(f"---{end}{head}{end}---{end}{text}")


def _read(readme: str) -> "RepoCard":
    from huggingface_hub import RepoCard

    readme = readme.removeprefix("\ufeff")
    try:
        return RepoCard(readme if readme.lstrip().startswith("---") else f"---\n{{}}\n---\n{readme}")
    except Exception as error:  # whatever yaml and huggingface_hub make of it
        raise MidbError(
            f"the metadata of its README.md cannot be read ({error}); correct it on the Hub first"
        ) from error


def _find(text: str) -> tuple[int, int, str] | None:
    """Where our two lines are, and the kind in the first."""
    begins, ends = list(_BEGIN.finditer(text)), list(_END.finditer(text))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise MidbError(
            f"README.md has {len(begins)} lines {BEGIN} and {len(ends)} lines {END}, where a push writes between one of each; "
            "correct it on the Hub first, or remove them all"
        )
    stop = ends[0].end() - (text[ends[0].end() - 1] == "\r")
    return begins[0].start(), stop, begins[0]["kind"] or ""


def _merged(theirs: dict[str, Any], ours: dict[str, Any], kind: str | None, folders: set[str]) -> dict[str, Any]:
    """Their metadata and ours; `folders` are also the names of the configurations that are ours."""
    merged = theirs | ours
    for key in _FLEETING:
        if kind and key not in ours:
            merged.pop(key, None)
    for key in _JOINED:
        if key in theirs:
            merged[key] = list(dict.fromkeys([*_listed(theirs[key]), *_listed(ours.get(key))]))
    if kind is not None:
        merged |= {key: theirs[key] for key in _LOOKS if key in theirs}
    own, said = _listed(ours.get("language")), _listed(theirs.get("language"))
    if (kind != "adapter" or not own) and (
        languages := [*own, *(each for each in said if each not in folders)]
    ) != said:
        merged["language"] = list(dict.fromkeys(languages))
        if not languages:
            del merged["language"]
    for key in ("configs", "dataset_info"):
        kept = [each for each in _listed(theirs.get(key)) if _name(each) not in folders | ({ALL} if folders else set())]
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
        for each in merged["configs"]:
            each.pop("default", None)
            if _name(each) in chosen:
                each["default"] = True
    others = _without_ours(_listed(theirs.get("model-index")))
    if others and (figures := _listed(ours.get("model-index"))):
        others[0]["results"] += [result for model in figures for result in model["results"]]
    if others or not ours.get("model-index"):
        merged["model-index"] = others
    if not merged["model-index"]:
        del merged["model-index"]
    return merged


def _without_ours(models: list[Any]) -> list[Any]:
    """The entries of a model index without the results that an earlier push of ours wrote."""

    def is_ours(result: dict[str, Any]) -> bool:
        metrics = result.get("metrics") or []
        return bool(metrics) and all(str(metric.get("type", "")).startswith(METRIC) for metric in metrics)

    kept = [
        {**model, "results": [each for each in model.get("results") or [] if not is_ours(each)]} for model in models
    ]
    return [model for model in kept if model["results"]]


def _name(config: Any) -> str:
    return str(config.get("config_name", "default")) if isinstance(config, dict) else ""


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
