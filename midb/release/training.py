"""The published training edits, and CoachLM's English ones that they were translated from, row for row.

Their published distance is the English one in every language; `midb.distance` measures the true one.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import ColumnError
from midb.languages import ENGLISH, Language
from midb.release.files import LICENSE, UPSTREAM, address, fetch, is_text, read_rows, wanted
from midb.schema import PAIR, RAW

if TYPE_CHECKING:
    from datasets import Dataset

_FOLDERS = ("data/MIDB_train", "MIDB_train", "")  # where below a source the training files may be

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
    base = address(source, "MIDB")
    columns: dict[str, list[Any]] = {}
    for language in wanted(base, _FOLDERS, languages, _NOT_AUDITED):
        _read_edits(fetch(base, _FOLDERS, f"{language.name}.json"), f"{language.name}.json", language, columns)
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
    name = "Expert Revision Dataset.json"
    columns: dict[str, list[Any]] = {}
    _read_edits(fetch(address(source, "CoachLM"), ("",), name), name, ENGLISH, columns)
    return _dataset(columns)


def _read_edits(path: Path, name: str, language: Language, columns: dict[str, list[Any]]) -> None:
    """Append the rows of one file to `columns`."""
    rows = read_rows(path, name)
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
            if not is_text(edit[column]):
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


def _dataset(columns: dict[str, list[Any]]) -> "Dataset":
    from datasets import Dataset, DatasetInfo, Features, Value

    kinds = {"id": "int64", "language": "string", **dict.fromkeys((*PAIR, *RAW), "string")}
    features = Features({name: Value(kind) for name, kind in kinds.items()})
    features |= {"published_distance": Value("int64"), "repair": Value("string")}
    return Dataset.from_dict(
        {name: columns[name] for name in features}, info=DatasetInfo(features=features, license=LICENSE)
    )
