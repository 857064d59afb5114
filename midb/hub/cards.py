"""A thing → its card: pure and offline. What the thing does not say is an argument, and what nobody says is left out.

Knows edits, evaluation sets, adapters and metrics, and the templates in `hub_cards`; nothing of how a card is sent.
"""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import MidbError
from midb.generators.adapter import AdapterRecord, read_record
from midb.generators.weights import ADAPTER_CONFIG
from midb.hub.facts import EditFacts, check_license, license_of, named_splits, read_edits
from midb.hub.questions import QuestionFacts, read_questions
from midb.hub.readme import METRIC, as_section
from midb.hub.text import render
from midb.languages import language_code

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import CardData, DatasetCard, EvalResult, ModelCard, SpaceCard
    from markupsafe import Markup

    from midb.judging.report import Report

REPO = "owner/name"  # in a card that does not know where it will be
PICTURE = "distances.png"
_MEANINGS = {
    "id": "name of the row; in MIDB's files that of its English original, the same in every language",
    "language": "of the row",
    "instruction": "what is asked",
    "input": "what it is asked of; empty where there is none",
    "response": "the answer",
    "raw_instruction": "the pair that it was made from",
    "raw_input": "likewise",
    "raw_response": "likewise",
    "boost_status": "boosted, unchanged, rejected, failed or not_run; all but the first keep the raw pair",
    "boost_reason": "why it was rejected or failed, or was not run",
    "boost_reply": "the text of the model, where it was rejected",
    "boost_prompt_tokens": "tokens of the prompt",
    "boost_completion_tokens": "tokens of the reply",
    "boosted_by": "the model that was asked",
    "boost_identity": "hash of everything that decides the row: rows with the same hash were made in the same way",
    "boost_settings": "how the row was made, as JSON: model, sampling, prompt, fields, tags, guards, midb's version",
    "edit_distance": "characters between the raw and the new pair",
    "published_distance": "the published figure: the English one in every language",
    "turns": "the questions of one conversation, in order",
}  # fmt: skip
_QUESTION_MEANINGS = {
    "category": "kind of question",
    "defect": "what is wrong with the row; empty where nothing is",
    "repair": "what was repaired in the row; empty where nothing was",
}
_SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip


def dataset_card(
    edits: "Dataset | DatasetDict | EditFacts",
    *,
    repo_id: str = REPO,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    report: "Report | None" = None,
    language: str | None = None,
    template: str | Path | None = None,
) -> "DatasetCard":
    """Make the card of a set of edits: boosted rows, or revisions by people.

    Reads: the pair columns, their `raw_` twins, and `language`, `boost_status`, `boost_reason`, `boosted_by`, `boost_identity`,
    `boost_settings` where they are. How the rows were made is read from them and nowhere else.

    Args:
        edits: Rows, or what `read_edits` counted of them.
        repo_id: Where it will be, for the lines that load it.
        license: An identifier of the Hub's list, such as `cc-by-nc-4.0`; by default what `edits.info` says. Never guessed.
        source_datasets: Hub ids of what the raw pairs were taken from.
        report: What a judge made of these rows.
        language: The language of rows that do not say one.
        template: Your own Jinja file in place of `hub_cards/dataset.md`; it may name what that one names.

    Raises:
        ColumnError: The rows are no edits, or hold a language that is none.
        TypeError: A stream, or no dataset.
        ValueError: The report is of other rows, `repo_id` is no name of a repository, or the licence cannot be an
            identifier of the Hub's list.
        FileNotFoundError: There is no such template.
        MidbError: Your template is broken, or names what there is not.
    """
    from huggingface_hub import DatasetCard

    if isinstance(edits, EditFacts):
        facts = edits
    else:
        splits = named_splits(edits)
        license = license_of(splits, license)
        facts = read_edits(splits, language)
    if report is not None:
        _check_judged(report, facts)
    values = {
        "facts": facts, "total": facts.total, "picture": PICTURE, "source_datasets": list(source_datasets or ()),
        "license": license, "report": _judged(report), "guarded": any(run.guarded for run in facts.runs) or not facts.runs,
        **_shared(facts, repo_id),
    }  # fmt: skip
    tags = ["midb", "instruction-tuning", *(["synthetic"] if facts.has_status else [])]
    what = "Boosted instructions" if facts.has_status else "Revised instructions"
    title = what + _in_languages(facts)
    data = _dataset_data(facts, license, source_datasets, tags)
    return DatasetCard(_page(data, f"# {title}\n\n{render(template, 'dataset.md', values)}", "dataset"))


def eval_set_card(
    questions: "Dataset | DatasetDict",
    *,
    repo_id: str = REPO,
    license: str | None = None,
    source_datasets: Sequence[str] | None = None,
    template: str | Path | None = None,
) -> "DatasetCard":
    """Make the card of an evaluation set: what `release.load_mt_bench` or `load_alpaca_eval` gives, or one of that shape.

    Reads: `id`, `language`, `turns`, and `category`, `defect`, `repair` where they are. What the questions are is quoted from
    `questions.info.description`.

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
    from huggingface_hub import DatasetCard

    splits = named_splits(questions, "test")
    license = license_of(splits, license)
    facts = read_questions(splits)
    values = {
        "facts": facts, "license": license, "source_datasets": list(source_datasets or ()), **_shared(facts, repo_id)
    }  # fmt: skip
    data = _dataset_data(facts, license, source_datasets, ["midb", "evaluation"])
    page = render(template, "eval_set.md", values | {"meanings": _MEANINGS | _QUESTION_MEANINGS})
    return DatasetCard(_page(data, f"# Questions{_in_languages(facts)}\n\n{page}", "eval_set"))


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
    return ModelCard(_page(data, f"# {title}\n\n{text}", "adapter"))


def metric_card(name: str, *, repo_id: str = REPO) -> "SpaceCard":
    """Make the card of one of midb's metrics, as it is installed.

    Args:
        repo_id: Where it will be, for the line that loads it.

    Raises:
        ValueError: There is no such metric, or `repo_id` is no name of a repository.
    """
    from huggingface_hub import SpaceCard

    card = SpaceCard(metric_folder(name).joinpath("README.md").read_text(encoding="utf-8"))
    here = f'## From this Space\n\n```python\nimport evaluate\n\n{name} = evaluate.load("{_as_code(repo_id)}")\n```'
    return SpaceCard(_page(card.data, f"{card.text.strip()}\n\n{here}", "metric"))


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


def _page(data: "CardData", text: str, kind: str) -> str:
    # The title stands between our lines too: that of an earlier push need not be true any more.
    return f"---\n{data.to_yaml()}\n---\n\n{as_section(text, kind)}\n"


def _shared(facts: EditFacts | QuestionFacts, repo_id: str) -> dict[str, Any]:
    """What the templates of both kinds of dataset may name."""
    codes = [each.language for each in facts.languages if each.language]
    return {
        "repo_id": _as_code(repo_id), "codes": codes, "language_names": _languages(facts) or "languages that the rows do not state",
        "unstated": len(codes) < len(facts.languages), "example": codes[0] if codes else "all", "meanings": _MEANINGS,
    }  # fmt: skip


def _dataset_data(
    facts: EditFacts | QuestionFacts, license: str | None, source_datasets: Sequence[str] | None, tags: list[str]
) -> "CardData":
    from huggingface_hub import DatasetCardData

    return DatasetCardData(
        language=[each.language for each in facts.languages if each.language] or None,
        license=license,
        size_categories=[_SIZES[min(max(0, len(str(facts.rows)) - 3), len(_SIZES) - 1)]],
        source_datasets=list(source_datasets) if source_datasets else None,
        task_categories=["text-generation"],
        tags=tags,
    )


def _as_code(repo_id: str) -> "Markup":
    """A repository's name for a line of code, where a reference to a character would be read as it stands."""
    from huggingface_hub.utils import validate_repo_id
    from markupsafe import Markup

    validate_repo_id(repo_id)  # letters, digits, - _ . and one /
    return Markup(repo_id if "/" in repo_id else REPO)


def _languages(facts: EditFacts | QuestionFacts, most: int = 4) -> str:
    names = [each.name for each in facts.languages if each.language]
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} other languages"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _in_languages(facts: EditFacts | QuestionFacts) -> str:
    names = _languages(facts)
    return names and f" in {names}"


def _languages_of(record: AdapterRecord | None) -> list[str]:
    """The codes of what was trained on, as far as the record's names are languages."""
    codes = []
    for name in record.data.get("languages", {}) if record else ():
        try:
            codes.append(language_code(str(name)))
        except ValueError:
            continue
    return list(dict.fromkeys(codes))


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
