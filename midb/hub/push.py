"""thing + card → Hub: one call for each thing, one commit for each call.

Knows how each thing lies in its repository; what a card says is made in `cards`, and how a commit is sent in `shipment`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from midb.errors import ColumnError, MidbError, require_extra
from midb.generators.adapter import ADAPTER_FILE
from midb.generators.weights import ADAPTER_CONFIG
from midb.hub.cards import (
    PICTURE,
    adapter_card,
    base_model_of,
    dataset_card,
    eval_set_card,
    metric_card,
    metric_folder,
)
from midb.hub.facts import BATCH_ROWS, license_of, named_splits, read_edits, read_languages
from midb.hub.picture import draw_distances
from midb.hub.readme import ALL, earlier_folders
from midb.hub.shipment import Pushed, Shipment

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import RepoCard
    from numpy.typing import NDArray

    from midb.judging.report import Report

NOWHERE = "no_language"  # the folder of rows that do not say theirs, which are in `all` alone
_PARQUET = re.compile(r"(?P<folder>[\w.-]+)/[\w.]+-\d{5}-of-\d{5}\.parquet")
# What makes up an adapter in a folder where checkpoints, optimizer states and logs of a machine lie beside it.
ADAPTER_FILES = (
    ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin", ADAPTER_FILE, "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "trainer_log.jsonl", "loss.png",
)  # fmt: skip


def push_dataset(
    edits: "Dataset | DatasetDict",
    repo_id: str,
    *,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    report: "Report | None" = None,
    language: str | None = None,
    template: str | Path | None = None,
    max_shard_size: int | str = "500MB",
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publish edits: one configuration per language and `all`, with card and picture, in one commit.

    The card is made of the rows; `dry_run=True` shows it. `load_dataset(repo_id, "fr")` gives the rows of one language in their
    order, `load_dataset(repo_id)` all of them, language after language; both read the same files. Rows without a language are
    in `all` alone. Splits and types are kept.

    Pushing again replaces the set that an earlier push wrote, languages that are gone from it included, and keeps what people
    wrote into the README.

    Reads: as `dataset_card`.

    Args:
        repo_id: `owner/name`, or a name in your own namespace; made where it is missing.
        license, source_datasets, report, language, template: As `dataset_card`.
        max_shard_size: Of one Parquet file, in bytes of memory.
        revision: A branch, made where it is missing.
        private: Of a new repository.
        create_pr: Propose it all as one pull request instead.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and only read what is there; `print` what comes back.

    Raises:
        ColumnError: The rows are no edits, or hold a language that is none, or files of this machine.
        TypeError: A stream, or no dataset.
        MissingExtraError: matplotlib is not installed.
        MidbError: Nobody is logged in or may write there, the name is taken, its README cannot be read, it was changed
            meanwhile, the Hub refuses the card's metadata, or your template is broken.
        ValueError: The report is of other rows, the licence or the repository's name cannot be, or it is public and was to be
            private.
    """
    require_extra("matplotlib", "hub")
    splits = named_splits(edits)
    _check_sendable(splits, language)
    license = license_of(splits, license)
    shipment = Shipment(repo_id, "dataset", revision, private, create_pr, token, dry_run)
    facts = read_edits(splits, language)
    card = dataset_card(
        facts,
        repo_id=shipment.repo_id,
        license=license,
        source_datasets=source_datasets,
        report=report,
        template=template,
    )
    more = {PICTURE: draw_distances(facts)}
    return _push_splits(shipment, splits, card, more, language, max_shard_size)


def push_eval_set(
    questions: "Dataset | DatasetDict",
    repo_id: str,
    *,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    template: str | Path | None = None,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publish an evaluation set: one configuration per language and `all`, in the split `test` unless it has others.

    Reads: as `eval_set_card`.

    Args:
        repo_id: `owner/name`, or a name in your own namespace; made where it is missing.
        license, source_datasets, template: As `eval_set_card`.
        revision, private, create_pr, token, dry_run: As `push_dataset`.

    Raises:
        ColumnError, TypeError, MidbError, ValueError: As `push_dataset`.
    """
    splits = named_splits(questions, "test")
    _check_sendable(splits, None)
    shipment = Shipment(repo_id, "eval_set", revision, private, create_pr, token, dry_run)
    card = eval_set_card(
        questions, repo_id=shipment.repo_id, license=license, source_datasets=source_datasets, template=template
    )
    return _push_splits(shipment, splits, card, {}, None, "500MB")


def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    report: "Report | None" = None,
    judged_on: str | None = None,
    template: str | Path | None = None,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publish a trained booster: `Booster.from_pretrained(repo_id)` boosts with it, and PEFT loads it.

    Sent are the adapter, its record, the tokenizer, and the log and picture of the training; no checkpoint, and not the
    folder's own README.md. The folder is not changed: the base model's id is written into what is sent.

    Args:
        folder: What the trainer wrote.
        repo_id: `owner/name`, or a name in your own namespace; made where it is missing.
        base_model, license, datasets, report, judged_on, template: As `adapter_card`.
        revision, private, create_pr, token, dry_run: As `push_dataset`.

    Raises:
        FileNotFoundError: The folder holds no adapter or no weights.
        MidbError: The base model is no Hub id or not on the Hub, or as `push_dataset`.
        ValueError: The record is broken, or as `push_dataset`.
    """
    base = base_model_of(folder, base_model)
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file() and _is_adapter_file(path.name))
    if not any(path.name.startswith("adapter_model.") for path in paths):
        raise FileNotFoundError(f"{folder} holds no adapter_model.safetensors; give the folder that a training wrote")
    shipment = Shipment(repo_id, "adapter", revision, private, create_pr, token, dry_run)
    card = adapter_card(
        folder, repo_id=shipment.repo_id, base_model=base, license=license, datasets=datasets, report=report,
        judged_on=judged_on, template=template,
    )  # fmt: skip
    if not dry_run:
        _check_base(shipment, base)
    shipment.begin(card)
    files = {path.name: _with_base(path, base) if path.name == ADAPTER_CONFIG else path for path in paths}
    ours = [path for path in shipment.there if shipment.earlier == "adapter" and _is_adapter_file(path)]
    what = "a booster" if (Path(folder) / ADAPTER_FILE).is_file() else "an adapter"
    return shipment.send(card, files, f"{what} on {base}", earlier_files=ours)


def push_metric(
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publish one of midb's metrics as a Space: `evaluate.load(repo_id)` loads it.

    Args:
        repo_id: Its last part is the metric's name, by which `evaluate` finds it: `owner/pairwise_judge`.
        revision, private, create_pr, token, dry_run: As `push_dataset`.

    Raises:
        ValueError: midb has no metric of that name, or the Space is public and was to be private.
        MidbError: Nobody is logged in, or the name is taken.
    """
    name = repo_id.split("/")[-1]
    folder = metric_folder(name)
    shipment = Shipment(repo_id, "metric", revision, private, create_pr, token, dry_run)
    card = metric_card(name, repo_id=shipment.repo_id)
    shipment.begin(card)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "README.md")
    return shipment.send(card, {path.name: path for path in paths}, f"the metric {name}")


class _Part(NamedTuple):
    """The rows of one language in one split: the folder of their files, and how much is in them."""

    folder: str
    split: str
    rows: int
    memory: int
    disk: int


def _push_splits(
    shipment: Shipment,
    splits: Mapping[str, "Dataset"],
    card: "RepoCard",
    more: Mapping[str, bytes],
    language: str | None,
    max_shard_size: int | str,
) -> Pushed:
    """Write one folder per language, whose files are those of its configuration and, together, of `all`."""
    from datasets import config

    shipment.begin(card)
    codes, places = read_languages(splits, language)
    cache = Path(config.HF_DATASETS_CACHE)  # where there is room for data; a /tmp may be memory
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="midb-push-", dir=cache) as drafts:
        parts = []
        for split, rows in splits.items():
            by_place = _sorted_out(rows, places[split], Path(drafts))
            parts += [
                _write(split, by_place[at], Path(drafts, codes[at] or NOWHERE), max_shard_size)
                for at in sorted(by_place)
            ]
        _describe(card, parts, next(iter(splits.values())).features)
        folders = earlier_folders(shipment.readme, card)
        ours = [path for path in shipment.there if (found := _PARQUET.fullmatch(path)) and found["folder"] in folders]
        files = {path.relative_to(drafts).as_posix(): path for path in sorted(Path(drafts).glob("*/*.parquet"))}
        rows, languages = sum(part.rows for part in parts), len({part.folder for part in parts} - {NOWHERE})
        what = f"{rows:,} rows" + (f" in {languages} language{'s' * (languages > 1)}" if languages else "")
        return shipment.send(card, {**more, **files}, what, earlier_files=ours)


def _sorted_out(rows: "Dataset", place: "NDArray[np.int16]", drafts: Path) -> dict[int, "Dataset"]:
    """The rows of each place. Mixed rows are copied in one pass: `select` would gather them one by one, 20 times as slow."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    starts = np.flatnonzero(np.diff(place, prepend=-1))  # where another language begins
    if len(starts) == len(set(place[starts])):
        ends = [*starts[1:], len(place)]
        return {int(place[start]): rows.select(range(start, end)) for start, end in zip(starts, ends, strict=True)}
    folder = Path(mkdtemp(dir=drafts))
    writers = {
        at: ArrowWriter(features=rows.features, path=str(folder / f"{at}.draft")) for at in np.unique(place).tolist()
    }
    start = 0
    for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
        here = place[start : start + table.num_rows]
        start += table.num_rows
        for at in np.unique(here).tolist():
            writers[at].write_table(table.filter(pa.array(here == at)))
    for writer in writers.values():
        writer.finalize()
    return {at: Dataset.from_file(str(folder / f"{at}.draft")) for at in writers}


def _write(split: str, rows: "Dataset", folder: Path, max_shard_size: int | str) -> _Part:
    """Write rows as Parquet files of a size."""
    from datasets.utils.py_utils import convert_file_size_to_int

    folder.mkdir(exist_ok=True)
    size = rows.data.nbytes * len(rows) / max(1, rows.data.num_rows)
    shards = max(1, math.ceil(size / convert_file_size_to_int(max_shard_size)))
    paths = [folder / f"{split}-{nth:05d}-of-{shards:05d}.parquet" for nth in range(shards)]
    memory = sum(rows.shard(shards, nth, contiguous=True).to_parquet(path) for nth, path in enumerate(paths))
    return _Part(folder.name, split, len(rows), memory, sum(path.stat().st_size for path in paths))


def _describe(card: "RepoCard", parts: Sequence[_Part], features: Any) -> None:
    """Write the configurations into a card's metadata, in the words of `datasets`."""
    from datasets import DatasetInfo, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict
    from datasets.utils.metadata import MetadataConfigs

    configs, infos = {}, {}
    for name in dict.fromkeys((ALL, *(part.folder for part in parts if part.folder != NOWHERE))):
        mine = [part for part in parts if name in (ALL, part.folder)]
        by_split = {part.split: [each for each in mine if each.split == part.split] for part in mine}
        files = [{"split": name, "path": [f"{each.folder}/{name}-*" for each in of]} for name, of in by_split.items()]
        configs[name] = {"data_files": files} | ({"default": True} if name == ALL else {})
        sizes = [SplitInfo(name, sum(p.memory for p in of), sum(p.rows for p in of)) for name, of in by_split.items()]
        infos[name] = DatasetInfo(
            features=features,
            splits=SplitDict({info.name: info for info in sizes}),
            download_size=sum(part.disk for part in mine),
            dataset_size=sum(part.memory for part in mine),
        )
    MetadataConfigs(configs).to_dataset_card_data(card.data)
    DatasetInfosDict(infos).to_dataset_card_data(card.data)


def _check_sendable(splits: Mapping[str, "Dataset"], language: str | None) -> None:
    """Refuse what would arrive as something else."""
    from datasets.features.features import require_decoding

    for name, feature in next(iter(splits.values())).features.items():
        if require_decoding(feature, ignore_decode_attribute=True):
            raise ColumnError(
                f"column {name!r} holds {feature}, whose files are on this machine; remove or cast it first"
            )
    if ALL in read_languages(splits, language)[0]:
        raise ColumnError(f"a language is called {ALL!r}, which is what all of them together are called; rename it")


def _is_adapter_file(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, each) for each in ADAPTER_FILES)


def _with_base(path: Path, base: str) -> bytes:
    """The adapter's configuration with the Hub id of its base model, and otherwise as it is."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("base_model_name_or_path") == base:
        return path.read_bytes()
    return json.dumps({**config, "base_model_name_or_path": base}, indent=2).encode()


def _check_base(shipment: Shipment, base: str) -> None:
    """Refuse an adapter that nobody could load."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        shipment.api.model_info(base)
    except GatedRepoError:  # it is there, for those who may
        return
    except RepositoryNotFoundError as error:
        raise MidbError(
            f"the base model {base} is not on the Hub, or not for this token; give its Hub id: base_model='owner/name'"
        ) from error
