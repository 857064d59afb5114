"""A thing → its card: pure and offline. What the thing does not say is an argument, and what nobody says is left out.

Knows edits, evaluation sets, adapters and metrics, and the templates in `hub_cards`; nothing of how a card is sent.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from inspect import isroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import MidbError
from midb.generators import Journal, OpenAIGenerator, TransformersGenerator, VLLMGenerator
from midb.generators.adapter import ADAPTER_FILE, AdapterRecord, read_record
from midb.generators.weights import ADAPTER_CONFIG, adapter_hash, weights_name
from midb.hub.facts import EditFacts, check_license, license_of, named_splits, read_edits
from midb.hub.questions import PUBLISHED, read_questions
from midb.hub.readme import METRIC, as_section, read_owned, told_of
from midb.hub.text import render
from midb.languages import language_code
from midb.schema import PAIR

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import DatasetCard, EvalResult, ModelCard, RepoCard, SpaceCard
    from markupsafe import Markup

    from midb.booster import Booster
    from midb.judging.report import Report

REPO = "owner/name"  # in a card that does not know where it will be
PICTURE = "distances.png"
_MEANINGS = {
    "id": "what the row is called; in the files of MIDB as its English original, the same in every language",
    "language": "of the row",
    "instruction": "what is asked",
    "input": "what it is asked of; empty where there is none",
    "response": "the answer",
    "raw_instruction": "the pair that it was made from",
    "raw_input": "likewise",
    "raw_response": "likewise",
    "boost_status": "boosted, unchanged, rejected or failed; all but the first keep the raw pair",
    "boost_reason": "why it was rejected or failed",
    "boost_reply": "the text of the model, where it was rejected",
    "boost_prompt_tokens": "what the question took",
    "boost_completion_tokens": "what the answer took",
    "boosted_by": "who was asked",
    "edit_distance": "characters between the raw and the new pair",
    "published_distance": "the published figure: the English one in every language",
}  # fmt: skip
_QUESTION_MEANINGS = {
    **_MEANINGS,
    "repair": "what midb mended in this row of the published files; empty where nothing was",
    "category": "what kind of question it is",
    "turns": "the questions of one conversation, in order",
    "defect": "lost: the second turn is not in the published file; split: one turn became several",
    "subset": "the part of AlpacaEval that it comes from",
}
_SIZES = [
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
]  # fmt: skip


def dataset_card(
    edits: "Dataset | DatasetDict",
    *,
    repo_id: str = REPO,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    booster: "Booster | None" = None,
    report: "Report | None" = None,
    language: str | None = None,
    template: str | Path | None = None,
) -> "DatasetCard":
    """Make the card of a set of edits: boosted rows, or revisions by people.

    Reads: the pair columns, their `raw_` twins, and `language`, `boost_status`, `boost_reason`, `boosted_by` where they are.

    Args:
        repo_id: Where it will be, for the lines that load it.
        license: An identifier of the Hub's list, such as `cc-by-nc-4.0`; by default what `edits.info` says. Never guessed.
        source_datasets: Hub ids of what the raw pairs were taken from.
        booster: What made the rows: model, adapter, prompt, sampling and guards are told from it.
        report: What a judge made of these rows.
        language: The language of rows that do not say one.
        template: Your own Jinja file in place of `hub_cards/dataset.md`; it may name what that one names.

    Raises:
        ColumnError: The rows are no edits, or hold a language that is none.
        TypeError: A stream, or no dataset.
        ValueError: The rows say that another booster made them, the report is of other rows, `repo_id` is no name of a
            repository, or the licence cannot be an identifier of the Hub's list.
        FileNotFoundError: There is no such template.
        MidbError: Your template is broken, or names what there is not.
    """
    splits = named_splits(edits)
    facts = read_edits(splits, language)
    license = check_license(license, "license=") or license_of(splits)
    return card_of_facts(
        facts, repo_id=repo_id, license=license, source_datasets=source_datasets, booster=booster, report=report,
        template=template,
    )  # fmt: skip


def card_of_facts(
    facts: EditFacts,
    *,
    repo_id: str = REPO,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    booster: "Booster | None" = None,
    report: "Report | None" = None,
    template: str | Path | None = None,
) -> "DatasetCard":
    """`dataset_card` of rows that are counted already, as a push does for its picture."""
    from huggingface_hub import DatasetCard, DatasetCardData

    if booster is not None and set(facts.boosted_by) != {booster.generator.name}:
        raise ValueError(
            f"the rows say that they were boosted by {', '.join(facts.boosted_by) or 'nobody'}, and booster= asks "
            f"{booster.generator.name}; give the booster that made them all, or none"
        )
    if report is not None:
        _check_judged(report, facts)
    codes = [each.language for each in facts.languages if each.language]
    names = [each.name for each in facts.languages if each.language]
    text = render(
        template,
        "dataset.md",
        {
            "facts": facts, "total": facts.total, "codes": codes, "language_names": _and_others(names), "unstated": len(codes) < len(facts.languages),
            "repo_id": _as_code(repo_id), "example": codes[0] if codes else "all", "meanings": _MEANINGS, "picture": PICTURE,
            "source_datasets": list(source_datasets or ()), "license": license, "report": _judged(report),
            "how": _how_boosted(booster) if booster else {}, "prompt": booster.prompt if booster else "",
            "guarded": booster is None or bool(booster.guards),
        },
    )  # fmt: skip
    data = DatasetCardData(
        language=codes or None,
        license=license,
        size_categories=[_size(facts.rows)],
        source_datasets=list(source_datasets) if source_datasets else None,
        task_categories=["text-generation"],
        tags=["midb", "instruction-tuning", *(["synthetic"] if facts.has_status else [])],
    )
    what = "Boosted instructions" if facts.has_status else "Revised instructions"
    return DatasetCard(
        _content(
            data.to_yaml(),
            f"{what}{' in ' * bool(names)}{_and_others(names) if names else ''}",
            text,
            told_of(facts.rows, [each.language for each in facts.languages]),
            repo_id,
        )
    )


def eval_set_card(
    questions: "Dataset | DatasetDict",
    *,
    repo_id: str = REPO,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    template: str | Path | None = None,
) -> "DatasetCard":
    """Make the card of an evaluation set: what `release.load_mt_bench` or `load_alpaca_eval` gives, or one of that shape.

    Reads: `id`, `language`, `turns`, and `category`, `defect`, `repair` where they are.

    Args:
        repo_id: Where it will be, for the lines that load it.
        license: By default what `questions.info` says.
        source_datasets: Hub ids of what was translated.
        template: Your own Jinja file in place of `hub_cards/eval_set.md`.

    Raises:
        ColumnError: It has not the shape, or holds a language that is none.
        TypeError: A stream, or no dataset.
        ValueError: `repo_id` is no name of a repository, or the licence cannot be an identifier of the Hub's list.
        MidbError: Your template is broken, or names what there is not.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    splits = named_splits(questions, "test")
    facts = read_questions(splits)
    license = check_license(license, "license=") or license_of(splits)
    codes = [each.language for each in facts.languages if each.language]
    names = [each.name for each in facts.languages if each.language]
    title, description = PUBLISHED[facts.published]
    text = render(
        template,
        "eval_set.md",
        {
            "facts": facts, "codes": codes, "language_names": _and_others(names), "unstated": len(codes) < len(facts.languages),
            "repo_id": _as_code(repo_id), "license": license,
            "example": codes[0] if codes else "all", "meanings": _QUESTION_MEANINGS, "published": facts.published,
            "description": description,
        },
    )  # fmt: skip
    data = DatasetCardData(
        language=codes or None,
        license=license,
        size_categories=[_size(facts.rows)],
        source_datasets=list(source_datasets) if source_datasets else None,
        multilinguality=["translation"] if facts.published else None,
        task_categories=["text-generation"],
        tags=["midb", "evaluation", *([facts.published] if facts.published else [])],
    )
    return DatasetCard(
        _content(
            data.to_yaml(),
            f"{title}{' in ' * bool(names)}{_and_others(names) if names else ''}",
            text,
            told_of(facts.rows, [each.language for each in facts.languages]),
            repo_id,
        )
    )


def adapter_card(
    folder: str | Path,
    *,
    repo_id: str = REPO,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    report: "Report | None" = None,
    judged_on: str | None = None,
    template: str | Path | None = None,
) -> "ModelCard":
    """Make the card of a trained booster.

    Args:
        folder: What the trainer wrote: `adapter_config.json`, and `booster.json` where midb trained it.
        repo_id: Where it will be, for the lines that load it.
        base_model: Hub id of the base model; needed where the adapter names a local folder.
        license: An identifier of the Hub's list. Never guessed, nor taken from the base model.
        datasets: Hub ids of what it was trained on.
        report: What a judge made of its work; figures of a judge that can be believed go into `model-index`.
        judged_on: Hub id of the dataset that was judged.
        template: Your own Jinja file in place of `hub_cards/adapter.md`.

    Raises:
        FileNotFoundError: The folder holds no adapter, or there is no such template.
        MidbError: The base model is a place of this machine, and `base_model` does not say its Hub id; or your template is
            broken.
        ValueError: The record in the folder is broken, `repo_id` is no name of a repository, or the licence cannot be an
            identifier of the Hub's list.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = base_model_of(folder, base_model)
    license = check_license(license, "license=")
    record = read_record(folder)
    picture = "loss.png" if Path(folder, "loss.png").is_file() else None
    text = render(
        template,
        "adapter.md",
        {
            "base_model": base, "record": record, "repo_id": _as_code(repo_id), "datasets": list(datasets or ()), "license": license,
            "report": _judged(report), "picture": picture,
        },
    )  # fmt: skip
    results = _eval_results(report, judged_on) if report else []
    data = ModelCardData(
        language=_languages_of(record) or None,
        license=license,
        base_model=base,
        datasets=list(datasets) if datasets else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["midb", "booster", "lora", f"base_model:adapter:{base}"],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    title = f"{'A booster' if record else 'An adapter'} on {base.split('/')[-1]}"
    return ModelCard(_content(data.to_yaml(), title, text, told_of(None, _languages_of(record)), repo_id))


def metric_card(name: str) -> "SpaceCard":
    """The card of one of midb's metrics, as it is installed.

    Raises:
        ValueError: There is no such metric.
    """
    from huggingface_hub import SpaceCard

    text = metric_folder(name).joinpath("README.md").read_text(encoding="utf-8")
    card = SpaceCard(text)
    here = f'## From this Space\n\n```python\nimport evaluate\n\n{name} = evaluate.load("{REPO}")\n```'
    section = as_section(f"{card.text.strip()}\n\n{here}")
    return SpaceCard(f"---\n{card.data.to_yaml()}\n---\n\n{section}\n")


def metric_folder(name: str) -> Path:
    """Where a metric is installed, found as a file: what evaluates is above this room.

    Raises:
        ValueError: There is no such metric.
    """
    folder = Path(str(files("midb"))) / "metric"
    names = sorted(path.parent.name for path in folder.glob("*/README.md"))
    if name not in names:
        raise ValueError(
            f"there is no metric {name!r}, and evaluate finds one by its repository's name; midb has {' and '.join(names)}"
        )
    return folder / name


def with_repo_id(card: "RepoCard", repo_id: str) -> "RepoCard":
    """The card with the place where it goes: in the lines that load the thing, where data cannot hold quotation marks, and
    in a model index.
    """
    made_for = read_owned(str(card)).place or REPO
    text = str(card).replace(f'"{made_for}"', f'"{repo_id}"')
    text = re.sub(r"(?m)^(<!-- midb:begin.*?)(?: @\S+)?(?= -->)", rf"\g<1> @{repo_id}", text)
    placed = type(card)(text)
    if placed.data.get("model_name") == made_for.split("/")[-1]:
        placed.data["model_name"] = repo_id.split("/")[-1]
    return placed


def check_told(card: "RepoCard", rows: int, languages: Sequence[str]) -> None:
    """Refuse a card that tells of other rows than those beside which it would stand.

    Raises:
        ValueError: It does, by the word of its own first line.
    """
    owned = read_owned(str(card))
    if owned.languages is None or told_of(int(owned.rows or 0), owned.languages) == told_of(rows, languages):
        return

    def said(rows: int, languages: Sequence[str]) -> str:
        return f"{rows:,} rows in {', '.join(code or 'no stated language' for code in sorted(languages))}"

    raise ValueError(
        f"card= tells of {said(int(owned.rows or 0), owned.languages)}, and {said(rows, languages)} are pushed; make the card of "
        "the rows that are pushed, with the same language="
    )


def base_model_of(folder: str | Path, base_model: str | None = None) -> str:
    """The Hub id of an adapter's base model.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        MidbError: It is no Hub id.
    """
    config = Path(folder, ADAPTER_CONFIG)
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_CONFIG}; give the folder that a training wrote")
    said = base_model or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    argument = "base_model=" if base_model else "the adapter's base model"
    if not said:
        raise MidbError(f"{config.name} names no base model; say which it is: base_model='owner/name'")
    # What the caller says is an id; what a training wrote is the folder that it was given, where there is one.
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", said) or (not base_model and Path(said).is_dir()):
        raise MidbError(
            f"{argument} is the local path {said!r}, where nobody else has a model; give its Hub id: base_model='owner/name'"
        )
    return said


def _content(metadata: str, title: str, body: str, about: str, repo_id: str) -> str:
    place = f"@{repo_id}" if "/" in repo_id and repo_id != REPO else ""
    # The title is in it: one of an earlier push would not be so any more.
    section = as_section(f"# {title}\n\n{body}", notes=(about, place))
    return f"---\n{metadata}\n---\n\n{section}\n"


def _as_code(repo_id: str) -> "Markup":
    """A repository's name for a line of code, where a reference to a character would be read as it stands."""
    from huggingface_hub.utils import validate_repo_id
    from markupsafe import Markup

    validate_repo_id(repo_id)  # letters, digits, - _ . and one /
    return Markup(repo_id if "/" in repo_id else REPO)  # whose it is, if nobody says so, the push will know


def _and_others(names: Sequence[str], most: int = 4) -> str:
    if not names:
        return "languages that the rows do not state"
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} other languages"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


def _languages_of(record: AdapterRecord | None) -> list[str]:
    """The codes of what was trained on, as far as the record's names are languages."""
    codes = []
    for name in record.data.get("languages", {}) if record else ():
        try:
            codes.append(language_code(str(name)))
        except ValueError:
            continue
    return list(dict.fromkeys(codes))


def _how_boosted(booster: "Booster") -> dict[str, str]:
    """What the booster says of itself; nothing that is a place of this machine or a server's address."""
    generator = booster.generator
    while isinstance(generator, Journal):
        generator = generator.generator
    how = {"asked": generator.name}
    if isinstance(generator, TransformersGenerator | VLLMGenerator):
        gguf_file = generator.gguf_file if isinstance(generator, TransformersGenerator) else None
        how["model"] = weights_name(generator.model, None, gguf_file)
        how["its commit"] = _commit(generator.model, "config.json", generator.revision)
        if generator.adapter is not None:
            how["adapter"] = weights_name(generator.adapter)
            how["adapter's commit"] = _commit(generator.adapter, ADAPTER_CONFIG, None)
            if Path(generator.adapter).is_dir():
                how["adapter's content"] = f"hash {adapter_hash(generator.adapter)}"
        how["chat rendering"] = _rendering(generator)
    if isinstance(generator, TransformersGenerator | VLLMGenerator | OpenAIGenerator):
        sampling = asdict(generator.sampling).items()
        how["sampling"] = ", ".join(f"{name} {value}" for name, value in sampling if value is not None)
    if isinstance(generator, OpenAIGenerator):
        how["further fields of the requests"] = ", ".join(generator.extra_body)  # the values may be private
    how["fields that it may change"] = ", ".join(PAIR) if booster.fields == "all" else "response"
    how["tags"] = " ".join(booster.tags)
    how["text of the rows"] = "as it was" if booster.parity else "escaped, so that it ends no turn and moves no field"
    guards = (guard.func if isinstance(guard, partial) else guard for guard in booster.guards)
    how["guards"] = ", ".join(each.__name__ if isroutine(each) else type(each).__name__ for each in guards) or "none"
    how["midb that wrote this card"] = version("midb")
    return {name: value for name, value in how.items() if value}


def _rendering(generator: TransformersGenerator | VLLMGenerator) -> str:
    """As it was asked for; where that is as in the adapter's training, what the record says. Asks no Hub."""
    from huggingface_hub import try_to_load_from_cache

    adapter = generator.adapter
    if generator.rendering != "auto" or adapter is None:
        return generator.rendering
    if Path(adapter).is_dir():
        record = read_record(adapter)
    else:
        cached = try_to_load_from_cache(adapter, ADAPTER_FILE)
        record = read_record(Path(cached).parent) if isinstance(cached, str) else None
    return record.rendering if record else generator.rendering


def _commit(source: str, file: str, revision: str | None) -> str:
    """A commit that was named, or the one that lies in the cache; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).is_dir():
        return ""
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    cached = try_to_load_from_cache(source, file, revision=revision)
    if not isinstance(cached, str):
        return revision or ""
    parts = Path(cached).parts
    return f"{parts[parts.index('snapshots') + 1]} (in the cache when this card was written)"


def _check_judged(report: "Report", facts: EditFacts) -> None:
    """Refuse a report that cannot be of these rows."""
    comparisons = report.figures.counts.comparisons
    if comparisons > facts.rows:
        raise ValueError(
            f"the report is of {comparisons:,} comparisons, and there are {facts.rows:,} rows: it is of others; give the report "
            "of these rows, or none"
        )
    judged = {group.group for group in report.tables.get("language", ())} - {""}
    here = {said for each in facts.languages for said in (each.language, each.name)}
    if other := sorted(judged - here):
        raise ValueError(
            f"the report has verdicts in {', '.join(other)}, and none of the rows is: it is of others; give the report of these "
            "rows, or none"
        )


def _judged(report: "Report | None") -> Any:
    """The report as Markdown, which vouches for its own safety."""
    from markupsafe import Markup

    return Markup(report.to_markdown()) if report else None


def _eval_results(report: "Report", judged_on: str | None) -> "list[EvalResult]":
    """The win scores, of a judge that can be believed, in the words of a model index."""
    from huggingface_hub import EvalResult

    if not report.health.fit:
        return []
    languages = [(group.group, group.win_score) for group in report.tables.get("language", ())]
    a, b = report.names
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=judged_on or f"verdicts-{report.provenance.fingerprint}",
            dataset_name=f"{a} against {b}",
            dataset_config=language or None,
            metric_type=f"{METRIC}win_score",
            metric_name="win score" if language or not report.macro else "win score, mean of the languages",
            metric_value=round(figure.value, 4),
            metric_args={
                "low": None if figure.low is None else round(figure.low, 4),
                "high": None if figure.high is None else round(figure.high, 4),
                "comparisons": figure.n,
                "judged_by": list(report.provenance.judged_by),
            },
        )
        for language, figure in [("", report.headline), *languages]
        if figure is not None and figure.value is not None
    ]
