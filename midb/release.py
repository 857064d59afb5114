"""The published MIDB and CoachLM files, read as clean datasets.

Knows where two repositories keep their files and each defect that an audit of them found: those are mended and said in
`repair`, row by row, and a file that departs from what was audited in any other way is an error, not a guess. Knows
nothing of what the edits are worth: the published training files are machine translations of CoachLM's English edits,
row for row, and their published distance is the English one in every language (`midb.distance` measures the true one).
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from midb.errors import ColumnError, MidbError
from midb.languages import BY_CODE, ENGLISH, LANGUAGES, Language, language_code
from midb.schema import PAIR, RAW

if TYPE_CHECKING:
    from datasets import Dataset

UPSTREAM = "upstream"  # each loader's own published repository, pinned to a commit
# Not reached where this was written. The paths and the first commit were checked against an archive of the repository;
# of the second commit only the short id is known, which GitHub resolves.
_MIDB = "https://raw.githubusercontent.com/zhaocorey/MIDB/974170071c1ac6d96de668b97d7753ac5883f710"
_COACHLM = "https://raw.githubusercontent.com/lunyiliu/CoachLM/3761729"

_TRAINING = ("data/MIDB_train", "MIDB_train", "")  # where below a source the training files may be

_KEYS = {
    "Raw Instruction": "raw_instruction",
    "Raw Input": "raw_input",
    "Raw Response": "raw_response",
    "Revised Instruction": "instruction",
    "Revised Input": "input",
    "Revised Response": "response",
    "Distance": "published_distance",
}
# What the audit found: one Italian row (282) has translated keys, one Turkish (1881) and one Czech (962) lack the
# distance, and four files lack one row each, so that what follows it stands one place too early.
_ITALIAN_KEYS = {
    "Istruzione Grezza": "Raw Instruction",
    "Input Grezzo": "Raw Input",
    "Risposta Grezza": "Raw Response",
    "Istruzione Rivisitata": "Revised Instruction",
    "Input Rivisitato": "Revised Input",
    "Risposta Rivisitata": "Revised Response",
    "Distanza": "Distance",
}
_ENGLISH_ROWS = 2301
_LOST_ROW = {"cs": 1478, "de": 191, "pt": 1738, "vi": 1838}
_NOT_AUDITED = ("el", "ru", "th")


def load_training(source: str | Path = UPSTREAM, languages: str | Iterable[str] | None = None) -> "Dataset":
    """Load MIDB's published training edits, all languages in one dataset.

    Adds: `id` (the row of the English original, the same in every language), `language` (ISO code), the pair columns
    (the revised side) and their `raw_` twins, `published_distance` (null where the file has none), `repair` (what was
    mended in this row; empty where nothing was).
    Rows: 2301 per language, one fewer in Czech, German, Portuguese and Vietnamese.

    Args:
        source: A folder or base URL with `data/MIDB_train`, `MIDB_train`, or the files themselves. What comes from
            UPSTREAM is kept in the cache of `datasets`; any other URL is read anew each time.
        languages: Names or codes, in the order wanted. By default every file in a folder; of a URL, which cannot be
            listed, the thirteen languages that were audited (Greek, Russian and Thai are read when asked for).

    Raises:
        MidbError: A file that was asked for is not there.
        ColumnError: A file is not as audited; the message names file and row.
        ValueError: A language that MIDB does not have.
    """
    base = _MIDB if source == UPSTREAM else str(source)
    columns: dict[str, list[Any]] = {}
    for language in _published(languages) if languages is not None else _found(base):
        _read_edits(_fetch(base, _TRAINING, f"{language.name}.json"), f"{language.name}.json", language, columns)
    return _dataset(columns)


def load_coachlm(source: str | Path = UPSTREAM) -> "Dataset":
    """Load CoachLM's English expert edits, of which MIDB's training files are translations.

    Adds: the columns of `load_training`; `language` is `en`.  Rows: 2301.

    Args:
        source: A folder or base URL that holds `Expert Revision Dataset.json`.

    Raises:
        MidbError: The file is not there.
        ColumnError: The file is not as audited; the message names file and row.
    """
    base = _COACHLM if source == UPSTREAM else str(source)
    name = "Expert Revision Dataset.json"
    columns: dict[str, list[Any]] = {}
    _read_edits(_fetch(base, ("",), name), name, ENGLISH, columns)
    return _dataset(columns)


def _published(languages: str | Iterable[str]) -> list[Language]:
    codes = dict.fromkeys(map(language_code, [languages] if isinstance(languages, str) else languages))
    if not codes:
        raise ValueError("languages is empty; name some, or leave it out for all")
    for code in codes:
        if BY_CODE.get(code) not in LANGUAGES:
            hint = "; English is load_coachlm()" if code == "en" else ""
            raise ValueError(f"MIDB has no {code!r} (it has {', '.join(each.code for each in LANGUAGES)}{hint})")
    return [BY_CODE[code] for code in codes]


def _found(base: str) -> list[Language]:
    if "://" in base:
        names = ", ".join(BY_CODE[code].name for code in _NOT_AUDITED)
        warnings.warn(f"{names} were not audited and are left out; name them in languages= to read them", stacklevel=3)
        return [language for language in LANGUAGES if language.code not in _NOT_AUDITED]
    found = [each for each in LANGUAGES if any(Path(base, part, f"{each.name}.json").is_file() for part in _TRAINING)]
    if not found:
        raise MidbError(f"no training file in {base!r}; give the folder of MIDB_train/*.json, or leave out source")
    return found


def _fetch(base: str, folders: tuple[str, ...], name: str) -> Path:
    """The file on this machine, looked for in each folder under `base`."""
    from datasets import DownloadConfig, DownloadManager

    if "://" not in base:
        for folder in folders:
            if (path := Path(base, folder, name)).is_file():
                return path
        raise MidbError(f"there is no {name} in {base!r}; leave it out, or give a folder that holds it")
    # A commit never changes, so its files need no second look; any other address may.
    pinned = base in (_MIDB, _COACHLM)
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


def _read_edits(path: Path, name: str, language: Language, columns: dict[str, list[Any]]) -> None:
    """Append the rows of one file to `columns`."""
    rows = _read_rows(path, name)
    lost = _LOST_ROW.get(language.code) if len(rows) == _ENGLISH_ROWS - 1 else None
    if len(rows) != _ENGLISH_ROWS and lost is None:
        raise ColumnError(
            f"{name} has {len(rows)} rows where the English original has {_ENGLISH_ROWS}, and no audit says which are "
            "missing, so its rows cannot be given their ids; get the published file anew, or leave this language out"
        )
    seen: dict[tuple[str, ...], int] = {}
    for place, row in enumerate(rows):
        where, repair = f"{name}, row {place}", []
        if language.code == "it" and row.keys() == _ITALIAN_KEYS.keys():
            row = {_ITALIAN_KEYS[key]: value for key, value in row.items()}
            repair.append("Italian keys read as English")
        if "Distance" not in row:
            row = {**row, "Distance": None}
            repair.append("no published distance")
        elif type(row["Distance"]) is not int or row["Distance"] < 0:
            raise ColumnError(f"{where}: Distance is {row['Distance']!r}, not a count; get the published file anew")
        if row.keys() != _KEYS.keys():
            raise ColumnError(f"{where}: the keys are {list(row)}, not {list(_KEYS)}; get the published file anew")
        edit = {_KEYS[key]: value for key, value in row.items()}
        for column in (*RAW, *PAIR):
            if not _is_text(edit[column]):
                raise ColumnError(f"{where}: {column} is {edit[column]!r:.80}, not text; get the published file anew")
        if (first := seen.setdefault(tuple(edit[column] for column in (*RAW, *PAIR)), place)) != place:
            raise ColumnError(f"{where} is row {first} again; get the published file anew")
        if lost is not None and place >= lost:
            repair.append(f"id moved up by one: English row {lost} is not in the file")
        edit |= {
            "id": place + (lost is not None and place >= lost),
            "language": language.code,
            "repair": "; ".join(repair),
        }
        for column, value in edit.items():
            columns.setdefault(column, []).append(value)


def _read_rows(path: Path, name: str) -> list[dict[str, Any]]:
    """A JSON list of objects, without the quiet losses of `json.load`."""
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


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # a lone surrogate, from bytes that are not UTF-8 or from half a \\u pair
        return False


def _dataset(columns: dict[str, list[Any]]) -> "Dataset":
    from datasets import Dataset, Features, Value

    kinds = {"id": "int64", "language": "string", **dict.fromkeys((*PAIR, *RAW), "string")}
    features = Features({name: Value(kind) for name, kind in kinds.items()})
    features |= {"published_distance": Value("int64"), "repair": Value("string")}
    return Dataset.from_dict({name: columns[name] for name in features}, features=features)
