"""Where the published files are, and what every one of them must be: a JSON list of objects that hold text."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from midb.errors import ColumnError, MidbError
from midb.languages import BY_CODE, LANGUAGES, Language, language_code

UPSTREAM = "upstream"  # each loader's own published repository, pinned to a commit
# Not reached where this was written. The paths and the first commit were checked against an archive of the repository;
# of the second commit only the short id is known, which GitHub resolves.
REPOSITORIES = {
    "MIDB": "https://raw.githubusercontent.com/zhaocorey/MIDB/974170071c1ac6d96de668b97d7753ac5883f710",
    "CoachLM": "https://raw.githubusercontent.com/lunyiliu/CoachLM/3761729",
}
LICENSE = "apache-2.0"  # of both repositories; what they translate has terms of its own


def address(source: str | Path, repository: str) -> str:
    """The folder or base URL of what a loader's `source` says."""
    return REPOSITORIES[repository] if source == UPSTREAM else str(source)


def wanted(
    base: str, folders: tuple[str, ...], languages: str | Iterable[str] | None, unaudited: tuple[str, ...] = ()
) -> list[Language]:
    """The languages to read: those that are named, or every file in a folder, or of a URL those that were audited.

    Raises:
        ValueError: A language that MIDB does not have.
        MidbError: The folder has no file of any language.
    """
    if languages is not None:
        return _named(languages)
    if "://" in base:
        if unaudited:
            names = ", ".join(BY_CODE[code].name for code in unaudited)
            warnings.warn(
                f"{names} were not audited and are left out; name them in languages= to read them", stacklevel=3
            )
        return [language for language in LANGUAGES if language.code not in unaudited]
    found = [each for each in LANGUAGES if any(Path(base, part, f"{each.name}.json").is_file() for part in folders)]
    if not found:
        raise MidbError(
            f"no {folders[1]} file in {base!r}; give the folder of {folders[1]}/*.json, or leave out source"
        )
    return found


def _named(languages: str | Iterable[str]) -> list[Language]:
    codes = dict.fromkeys(map(language_code, [languages] if isinstance(languages, str) else languages))
    if not codes:
        raise ValueError("languages is empty; name some, or leave it out for all")
    for code in codes:
        if BY_CODE.get(code) not in LANGUAGES:
            hint = "; English edits are load_coachlm()" if code == "en" else ""
            raise ValueError(f"MIDB has no {code!r} (it has {', '.join(each.code for each in LANGUAGES)}{hint})")
    return [BY_CODE[code] for code in codes]


def fetch(base: str, folders: tuple[str, ...], name: str) -> Path:
    """The file on this machine, looked for in each folder under `base`.

    Raises:
        MidbError: It is in none of them.
    """
    from datasets import DownloadConfig, DownloadManager

    if "://" not in base:
        for folder in folders:
            if (path := Path(base, folder, name)).is_file():
                return path
        raise MidbError(f"there is no {name} in {base!r}; leave it out, or give a folder that holds it")
    # A commit never changes, so its files need no second look; any other address may.
    pinned = base in REPOSITORIES.values()
    manager = DownloadManager(download_config=DownloadConfig(use_etag=False, force_download=not pinned))
    reasons = []
    for folder in folders:
        url = "/".join(filter(None, (base.rstrip("/"), folder, quote(name))))
        try:
            return Path(manager.download(url))
        except FileNotFoundError as error:  # also when no connection could be made: the cause says which
            reasons.append(error)
    raise MidbError(
        f"{name} could not be read below {base} ({reasons[0].__cause__ or reasons[0]}); "
        "check the address, leave the file out, or give a local copy of the repository"
    ) from reasons[0]


def read_rows(path: Path, name: str) -> list[dict[str, Any]]:
    """A JSON list of objects, without the quiet losses of `json.load`.

    Raises:
        ColumnError: It is something else, or a key stands twice in a row.
    """
    done = 0

    def row(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal done
        if len(found := dict(pairs)) < len(pairs):
            raise ColumnError(f"{name}, row {done}: a key stands twice among {[key for key, _ in pairs]}; keep one")
        done += 1
        return found

    try:
        # Bytes that are not UTF-8 come through as lone surrogates, so that the row they are in can be named.
        content = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"), object_pairs_hook=row)
    except json.JSONDecodeError as error:
        raise ColumnError(f"{name}, row {done}: not JSON ({error}); get the published file anew") from error
    if not isinstance(content, list):
        raise ColumnError(
            f"{name} holds one JSON {type(content).__name__}, not a list of rows; get the published file anew"
        )
    for place, each in enumerate(content):
        if not isinstance(each, dict):
            raise ColumnError(f"{name}, row {place}: {each!r:.80} is not an object; get the published file anew")
    return content


def is_text(value: Any) -> bool:
    """Whether a value is text that any file can hold."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # a lone surrogate, from bytes that are not UTF-8 or from half a \\u pair
        return False
