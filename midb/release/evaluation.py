"""The two published evaluation sets in sixteen languages: MT-Bench and AlpacaEval, both machine translations.

Both come in one shape, `turns` in `language` under the `id` of the English question, so that the languages can be set
side by side. Neither has answers, which are the models' part, and neither is what the paper tested on (localised sets).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import ColumnError
from midb.languages import Language
from midb.release.files import LICENSE, UPSTREAM, address, fetch, is_text, read_rows, wanted

if TYPE_CHECKING:
    from datasets import Dataset

_MT_FOLDERS = ("data/mt_bench", "mt_bench", "")  # where below a source the files may be
_ALPACA_FOLDERS = ("data/alpaca_eval", "alpaca_eval", "")

# Cards quote it: see `eval_set_card`.
_NOT_LOCALISED = (
    "What was lost in translation is not restored. The paper tested on versions that professionals had localised; these files "
    "are not those, and a score on these is no score of the paper's."
)
_MT_IDS = range(81, 161)
_MT_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")  # ten each
# What the audit found, by question: where it is not in the file, where only its first turn is, and one whose first turn,
# which holds a list, became five.
_MT_LOST = {98: "cs de id ru es th", 110: "cs", 124: "el ja", 131: "fr de el it es th tr vi", 139: "ru tr", 90: "th"}
_MT_LOST_TURN = {98: "pt", 133: "ar cs de id it ja ko ms pt ru th tr vi", 135: "th vi", 138: "es tr"}
_MT_SPLIT = {132: {"th": 6}}

# The first row of each part of the 805, in the order of the English file.
_ALPACA_SUBSETS = {"helpful_base": 0, "koala": 129, "oasst": 285, "selfinstruct": 473, "vicuna": 725}
_ALPACA_ROWS = 805
# English rows that are not in a file; found by aligning numbers, Latin words and lengths with the English set.
_ALPACA_LOST = {"ar": (553, 571, 696), "el": (68, 394, 681), "fr": (654,), "ko": (698,), "es": (698,)}
# The key was translated here and there; any other key may hold anything.
_ALPACA_KEYS = ("instruction", "Instruction")
_ALPACA_TRANSLATED_KEYS = {"ar": ("تعليمات", "التعليمات"), "ru": ("инструкция", "Инструкция")}


def load_mt_bench(source: str | Path = UPSTREAM, languages: str | Iterable[str] | None = None) -> "Dataset":
    """Load the published MT-Bench questions, all languages in one dataset.

    Adds: `id` (the published one, that of the English question), `language` (ISO code), `category` (by id), `turns` (list
    of text), `defect` (`lost`: the second turn is not in the file; `split`: one turn became several; else empty),
    `repair` (what was mended in this row; empty, as nothing can be).
    Rows: 80 per language, up to three fewer in twelve of them; 1,260 in all, of which 1,241 have two turns.

    Args:
        source: A folder or base URL with `data/mt_bench`, `mt_bench`, or the files themselves. What comes from UPSTREAM
            is kept in the cache of `datasets`; any other URL is read anew each time.
        languages: Names or codes, in the order wanted. By default every file in a folder, or all sixteen of a URL.

    Raises:
        MidbError: A file that was asked for is not there.
        ColumnError: A file is not as audited; the message names file and row.
        ValueError: A language that MIDB does not have.
    """
    base = address(source, "MIDB")
    rows: list[dict[str, Any]] = []
    for language in wanted(base, _MT_FOLDERS, languages):
        name = f"{language.name}.json"
        rows += _read_mt_bench(read_rows(fetch(base, _MT_FOLDERS, name), name), name, language)
    return _dataset(
        rows,
        "MIDB's published MT-Bench files as midb reads them: machine translations of the 80 English questions, most of two "
        f"turns. {_NOT_LOCALISED}",
    )


def load_alpaca_eval(source: str | Path = UPSTREAM, languages: str | Iterable[str] | None = None) -> "Dataset":
    """Load the published AlpacaEval instructions, all languages in one dataset.

    Adds: the columns of `load_mt_bench`, with `id` (the row of the English set, 0 to 804), `turns` (the one instruction),
    `category` (the part of the set it comes from) and `defect` (empty), and under AlpacaEval's own names `subset` (the
    category) and `instruction`. `repair` says where the text stood under another key and where the id is not the row.
    Rows: 805 per language, three fewer in Arabic and Greek, one in French, Korean and Spanish; 12,871 in all.

    Args:
        source: A folder or base URL with `data/alpaca_eval`, `alpaca_eval`, or the files themselves; as `load_mt_bench`.
        languages: Names or codes, in the order wanted. By default every file in a folder, or all sixteen of a URL.

    Raises:
        MidbError: A file that was asked for is not there.
        ColumnError: A file is not as audited; the message names file and row.
        ValueError: A language that MIDB does not have.
    """
    base = address(source, "MIDB")
    rows: list[dict[str, Any]] = []
    for language in wanted(base, _ALPACA_FOLDERS, languages):
        name = f"{language.name}.json"
        rows += _read_alpaca_eval(read_rows(fetch(base, _ALPACA_FOLDERS, name), name), name, language)
    return _dataset(
        rows,
        "MIDB's published AlpacaEval files as midb reads them: machine translations of the 805 English instructions. "
        f"{_NOT_LOCALISED}",
        subset="string",
        instruction="string",
    )


def _read_mt_bench(file: list[dict[str, Any]], name: str, language: Language) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(file):
        where = f"{name}, row {place}"
        if row.keys() != {"question_id", "turns"}:
            raise ColumnError(
                f"{where}: the keys are {list(row)}, not question_id and turns; give the folder of mt_bench, or get the "
                "published file anew"
            )
        id_, turns = row["question_id"], row["turns"]
        if type(id_) is not int or id_ not in _MT_IDS:
            raise ColumnError(f"{where}: question_id is {id_!r:.80}, not one of 81 to 160; get the published file anew")
        if rows and id_ <= rows[-1]["id"]:
            raise ColumnError(f"{where}: question {id_} follows {rows[-1]['id']}; get the published file anew")
        if not isinstance(turns, list) or not turns or not all(is_text(turn) and turn.strip() for turn in turns):
            raise ColumnError(f"{where}: turns is {turns!r:.80}, not a list of text; get the published file anew")
        if len(turns) == 2:
            defect = ""
        elif len(turns) == 1 and language.code in _MT_LOST_TURN.get(id_, "").split():
            defect = "lost"
        elif len(turns) == _MT_SPLIT.get(id_, {}).get(language.code):
            defect = "split"
        else:
            raise ColumnError(
                f"{where}: question {id_} has {len(turns)} turns where the audit found two; get the published file anew, "
                "or leave this language out"
            )
        rows.append(
            {
                "id": id_,
                "language": language.code,
                "category": _MT_CATEGORIES[(id_ - _MT_IDS.start) // 10],
                "turns": turns,
                "defect": defect,
                "repair": "",
            }
        )
    expected = {id_ for id_ in _MT_IDS if language.code not in _MT_LOST.get(id_, "").split()}
    if lost := sorted(expected - {row["id"] for row in rows}):
        raise ColumnError(
            f"{name} lacks the questions {lost}, which the audit found; get the published file anew, or leave this "
            "language out"
        )
    return rows


def _read_alpaca_eval(file: list[dict[str, Any]], name: str, language: Language) -> list[dict[str, Any]]:
    lost = () if len(file) == _ALPACA_ROWS else _ALPACA_LOST.get(language.code, ())
    if len(file) != _ALPACA_ROWS - len(lost):
        raise ColumnError(
            f"{name} has {len(file)} rows where the English set has {_ALPACA_ROWS}, and no audit says which are missing, so "
            "its rows cannot be given their ids; get the published file anew, or leave this language out"
        )
    ids = [id_ for id_ in range(_ALPACA_ROWS) if id_ not in lost]
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for place, (row, id_) in enumerate(zip(file, ids, strict=True)):
        where, repair = f"{name}, row {place}", []
        if len(row) != 1 or (key := next(iter(row))) not in (
            *_ALPACA_KEYS,
            *_ALPACA_TRANSLATED_KEYS.get(language.code, ()),
        ):
            raise ColumnError(
                f"{where}: the keys are {list(row)}, not instruction; give the folder of alpaca_eval, or get the published "
                "file anew"
            )
        if not is_text(row[key]) or not row[key].strip():
            raise ColumnError(f"{where}: {key} is {row[key]!r:.80}, not text; get the published file anew")
        if (first := seen.setdefault(row[key], place)) != place:
            raise ColumnError(f"{where} is row {first} again; get the published file anew")
        if key != "instruction":
            repair.append(f"the text stood under the key {key!r}")
        if before := [str(each) for each in lost if each < id_]:
            which = "row {} is" if len(before) == 1 else "rows {} are"
            repair.append(f"id moved up by {id_ - place}: English {which.format(', '.join(before))} not in the file")
        subset = [each for each, start in _ALPACA_SUBSETS.items() if start <= id_][-1]
        rows.append(
            {
                "id": id_,
                "language": language.code,
                "category": subset,
                "turns": [row[key]],
                "defect": "",
                "repair": "; ".join(repair),
                "subset": subset,
                "instruction": row[key],
            }
        )
    return rows


def _dataset(rows: list[dict[str, Any]], description: str, **more: str) -> "Dataset":
    from datasets import Dataset, DatasetInfo, Features, List, Value

    features = Features({"id": Value("int64"), "language": Value("string"), "category": Value("string")})
    features |= {"turns": List(Value("string")), "defect": Value("string"), "repair": Value("string")}
    features |= {name: Value(kind) for name, kind in more.items()}
    return Dataset.from_list(rows, info=DatasetInfo(description, features=features, license=LICENSE))
