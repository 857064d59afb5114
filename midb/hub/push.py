"""thing + card → Hub: one call for each thing, one commit for each call.

Knows how each thing lies in its repository; what a card says is made in `cards`, and how a commit is sent in `shipment`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from midb.errors import ColumnError, MidbError, require_extra
from midb.generators.adapter import ADAPTER_FILE
from midb.generators.weights import ADAPTER_CONFIG
from midb.hub.cards import (
    PICTURE,
    adapter_card,
    base_model_of,
    card_of_facts,
    check_told,
    eval_set_card,
    metric_card,
    metric_folder,
)
from midb.hub.facts import BATCH_ROWS, license_of, named_splits, read_edits, read_languages
from midb.hub.picture import draw_distances
from midb.hub.readme import Owned
from midb.hub.shipment import Pushed, Shipment, Target

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import DatasetCard, ModelCard, RepoCard

ALL = "all"  # the configuration of all languages together
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
    card: "DatasetCard | None" = None,
    language: str | None = None,
    max_shard_size: int | str = "500MB",
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publish edits: one configuration per language and `all`, with card and picture, in one commit.

    `load_dataset(repo_id, "fr")` gives the rows of one language in their order, `load_dataset(repo_id)` all of them, language
    after language; both read the same files. Rows without a language are in `all` alone. Splits and types are kept.

    Pushing again replaces the set that an earlier push wrote, languages that are gone from it included, and keeps what people
    wrote into the README.

    Reads: as `dataset_card`.

    Args:
        repo_id: `owner/name`, or a name in your own namespace; made where it is missing.
        card: `dataset_card(edits, license=..., booster=...)`; by default one that knows the rows alone. Text of your own
            outside its two lines goes into a new README; one that is there keeps its own.
        language: The language of rows that do not say one.
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
        MidbError: Nobody is logged in or may write there, the name is taken, its README cannot be read, or the Hub refuses the
            card's metadata.
        ValueError: The card tells of other rows, the repository's name cannot be, or it is public and was to be private.
    """
    require_extra("matplotlib", "hub")
    splits = named_splits(edits)
    codes = _check_sendable(splits, language)
    if card is not None:
        check_told(card, sum(map(len, splits.values())), codes)
    shipment = Shipment(Target(repo_id, "dataset", revision, private, create_pr, token, dry_run))
    facts = read_edits(splits, language)
    card = card_of_facts(facts, license=license_of(splits)) if card is None else card
    picture = draw_distances(facts)
    shipment.begin(card)
    shipment.add(PICTURE, picture)
    return _push_splits(shipment, splits, card, language, max_shard_size)


def push_eval_set(
    questions: "Dataset | DatasetDict",
    repo_id: str,
    *,
    card: "DatasetCard | None" = None,
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
        card: `eval_set_card(questions, license=...)`; by default one that knows the rows alone.
        revision: A branch, made where it is missing.
        private: Of a new repository.
        create_pr: Propose it all as one pull request instead.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and only read what is there; `print` what comes back.

    Raises:
        ColumnError, TypeError, MidbError, ValueError: As `push_dataset`.
    """
    splits = named_splits(questions, "test")
    codes = _check_sendable(splits, None)
    if card is not None:
        check_told(card, sum(map(len, splits.values())), codes)
    card = eval_set_card(questions) if card is None else card
    shipment = Shipment(Target(repo_id, "eval_set", revision, private, create_pr, token, dry_run))
    shipment.begin(card)
    return _push_splits(shipment, splits, card, None, "500MB")


def push_adapter(
    folder: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    card: "ModelCard | None" = None,
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
        base_model: Hub id of the base model; needed where the adapter was trained on a local folder.
        card: `adapter_card(folder, base_model=..., license=..., report=...)`; by default one that knows the folder alone.
        revision: A branch, made where it is missing.
        private: Of a new repository.
        create_pr: Propose it all as one pull request instead.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and only read what is there; `print` what comes back.

    Raises:
        FileNotFoundError: The folder holds no adapter or no weights.
        MidbError: The base model is no Hub id or not on the Hub, nobody is logged in, the name is taken, its README cannot be
            read, or there is no such branch to propose to.
        ValueError: The card names another base model, the repository's name cannot be, it is public and was to be private, or
            the record is broken.
    """
    base = base_model_of(folder, base_model)
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file() and _is_adapter_file(path.name))
    if not any(path.name.startswith("adapter_model.") for path in paths):
        raise FileNotFoundError(f"{folder} holds no adapter_model.safetensors; give the folder that a training wrote")
    card = adapter_card(folder, base_model=base) if card is None else card
    if (said := card.data.get("base_model")) != base:
        raise ValueError(
            f"the card says that the base model is {said}, and the adapter's is {base}; give both the same base_model="
        )
    shipment = Shipment(Target(repo_id, "adapter", revision, private, create_pr, token, dry_run))
    if not dry_run:
        _check_base(shipment, base)
    shipment.begin(card)
    for path in paths:
        shipment.add(path.name, _with_base(path, base) if path.name == ADAPTER_CONFIG else path)
    return shipment.finish(
        card,
        f"midb: {'a booster' if (Path(folder) / ADAPTER_FILE).is_file() else 'an adapter'} on {base}",
        is_stale=lambda path, owned: owned.kind == "adapter" and _is_adapter_file(path),
    )


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
        revision: A branch, made where it is missing.
        private: Of a new Space.
        create_pr: Propose it all as one pull request instead.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and only read what is there; `print` what comes back.

    Raises:
        ValueError: midb has no metric of that name, or the Space is public and was to be private.
        MidbError: Nobody is logged in, or the name is taken.
    """
    name = repo_id.split("/")[-1]
    folder, card = metric_folder(name), metric_card(name)
    shipment = Shipment(Target(repo_id, "metric", revision, private, create_pr, token, dry_run))
    shipment.begin(card)
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name != "README.md"):
        shipment.add(path.name, path.read_bytes())
    return shipment.finish(card, f"midb: the metric {name}")


def _push_splits(
    shipment: Shipment,
    splits: Mapping[str, "Dataset"],
    card: "RepoCard",
    language: str | None,
    max_shard_size: int | str,
) -> Pushed:
    """Write one folder per language, whose files are those of its configuration and, together, of `all`."""
    from datasets import SplitInfo
    from datasets import config as datasets_config
    from datasets.utils.py_utils import convert_file_size_to_int

    configs: dict[str, _Config] = {}
    cache = Path(datasets_config.HF_DATASETS_CACHE)  # where there is room for data; a /tmp may be memory
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="midb-push-", dir=cache) as drafts:
        for folder, split, part in _parts(splits, language, Path(drafts)):
            memory = disk = 0
            shards = _shards(part, convert_file_size_to_int(max_shard_size))
            for nth in range(shards):
                draft = Path(drafts, f"{folder}-{split}-{nth}.parquet")
                memory += part.shard(shards, nth, contiguous=True).to_parquet(draft)
                disk += draft.stat().st_size
                shipment.add(f"{folder}/{split}-{nth:05d}-of-{shards:05d}.parquet", draft, is_draft=True)
            for name in [ALL] if folder == NOWHERE else [folder, ALL]:
                config = configs.setdefault(name, _Config())
                config.disk += disk
                config.globs.setdefault(split, []).append(f"{folder}/{split}-*")
                info = config.splits.setdefault(split, SplitInfo(split, 0, 0))
                info.num_examples += len(part)
                info.num_bytes += memory
        card = type(card)(str(card))  # the caller's own stays as it was
        for key in ("configs", "dataset_info"):  # of an earlier push, where the card was loaded from the Hub
            card.data.pop(key, None)
        _describe(card, configs, next(iter(splits.values())).features)
        rows, languages = configs[ALL].rows, len(configs) - 1
        told = f"midb: {rows:,} rows" + (f" in {languages} language{'s' * (languages > 1)}" if languages else "")
        return shipment.finish(card, told, configs=tuple(configs), is_stale=_is_stale)


@dataclass
class _Config:
    """A configuration as it grows: split → where its files are, split → how much is in them, and what they weigh."""

    globs: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    disk: int = 0

    @property
    def rows(self) -> int:
        return sum(info.num_examples for info in self.splits.values())


def _describe(card: "RepoCard", configs: Mapping[str, _Config], features: Any) -> None:
    """Write the configurations into a card's metadata, in the words of `datasets`."""
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict
    from datasets.utils.metadata import MetadataConfigs

    files: dict[str, dict[str, Any]] = {}
    infos = {}
    for name, config in configs.items():
        files[name] = {"data_files": [{"split": split, "path": found} for split, found in config.globs.items()]}
        infos[name] = DatasetInfo(
            features=features,
            splits=SplitDict(config.splits),
            download_size=config.disk,
            dataset_size=sum(info.num_bytes for info in config.splits.values()),
        )
    files[ALL]["default"] = True
    MetadataConfigs(files).to_dataset_card_data(card.data)
    DatasetInfosDict(infos).to_dataset_card_data(card.data)


def _parts(splits: Mapping[str, "Dataset"], language: str | None, drafts: Path) -> Iterator[tuple[str, str, "Dataset"]]:
    """The rows by split and language, each with the folder where they go."""
    codes, places = read_languages(splits, language)
    for split, rows in splits.items():
        place = places[split]
        starts = np.flatnonzero(np.diff(place, prepend=-1))  # where another language begins
        if len(starts) == len(set(place[starts])):
            runs = zip(starts, [*starts[1:], len(place)], strict=True)
            found = {int(place[start]): rows.select(range(start, end)) for start, end in runs}
        else:
            found = _sorted_out(rows, place, drafts / split)
        for at in sorted(found):
            yield codes[at] or NOWHERE, split, found[at]


def _sorted_out(rows: "Dataset", place: "np.ndarray", folder: Path) -> dict[int, "Dataset"]:
    """Rows that stand mixed, one file for each place: they are read once, where picking them would read row by row."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir()
    writers: dict[int, Any] = {}
    start = 0
    for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
        here = place[start : start + table.num_rows]
        start += table.num_rows
        for at in np.unique(here).tolist():
            if at not in writers:
                writers[at] = ArrowWriter(features=rows.features, path=str(folder / f"{at}.arrow"))
            writers[at].write_table(table.filter(pa.array(here == at)))
    for writer in writers.values():
        writer.finalize()
    return {at: Dataset.from_file(str(folder / f"{at}.arrow")) for at in writers}


def _shards(part: "Dataset", size: int) -> int:
    """How many files hold a part."""
    return max(1, math.ceil(part.data.nbytes * len(part) / max(1, part.data.num_rows) / size))


def _check_sendable(splits: Mapping[str, "Dataset"], language: str | None) -> list[str]:
    """Refuse what would arrive as something else; the languages of the rest."""
    from datasets.features.features import require_decoding

    for name, feature in next(iter(splits.values())).features.items():
        if require_decoding(feature, ignore_decode_attribute=True):
            raise ColumnError(
                f"column {name!r} holds {feature}, whose files are on this machine; remove or cast it first"
            )
    codes, _ = read_languages(splits, language)
    if ALL in codes:
        raise ColumnError(f"a language is called {ALL!r}, which is what all of them together are called; rename it")
    return codes


def _is_stale(path: str, owned: Owned) -> bool:
    found = _PARQUET.fullmatch(path)
    return bool(owned.configs) and found is not None and found["folder"] in (*owned.configs, NOWHERE)


def _is_adapter_file(name: str) -> bool:
    return any(fnmatch(name, each) for each in ADAPTER_FILES)


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
