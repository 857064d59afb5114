import warnings

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import controls, scored

from midb.judging import plot, summarize
from midb.languages import LANGUAGES

CODES = [language.code for language in LANGUAGES]


def sixteen(languages=CODES, n=60):
    """A booster that gains more where it changed more, in each language by another amount."""
    rng = np.random.default_rng(0)
    parts = []
    for at, language in enumerate(languages):
        distance = rng.integers(0, 400, n)
        margins = np.where(distance == 0, 0, np.sign(np.round(rng.normal(distance / 400 + at / 30 - 0.4, 0.8), 0)))
        parts.append(scored(margins, language=[language] * n, edit_distance=distance.tolist()))
    return concatenate_datasets(parts)


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def ink(picture):
    """Where something is drawn."""
    return (picture[..., :3].min(axis=2) < 0.9).nonzero()


@pytest.mark.parametrize("languages", [CODES[:1], CODES])
def test_a_picture_holds_one_language_or_sixteen_and_cuts_nothing_off(tmp_path, languages):
    path = summarize(sixteen(languages), names=("boosted", "raw"), n_resamples=200).plot(tmp_path / "report.png")
    picture = pixels(path)
    rows, columns = ink(picture)
    assert picture.shape[1] > 1200
    assert rows.min() > 2
    assert columns.min() > 2
    assert rows.max() < picture.shape[0] - 3
    assert columns.max() < picture.shape[1] - 3


def test_more_languages_make_a_higher_picture_and_no_dose_a_narrower_one(tmp_path):
    many = pixels(summarize(sixteen(), n_resamples=50).plot(tmp_path / "many.png"))
    few = pixels(summarize(sixteen(CODES[:2]), n_resamples=50).plot(tmp_path / "few.png"))
    alone = pixels(
        summarize(sixteen(CODES[:2]).remove_columns("edit_distance"), n_resamples=50).plot(tmp_path / "one.png")
    )
    assert many.shape[0] > 1.5 * few.shape[0]
    assert alone.shape[1] < few.shape[1]


def test_the_rows_are_sorted_and_the_mean_stands_below(tmp_path):
    report = summarize(sixteen(), n_resamples=100)
    labels, figures, _, means = zip(*plot._rows(report), strict=True)
    scores = [figure.value for figure in figures]
    assert scores[:-1] == sorted(scores[:-1], reverse=True)
    assert labels[-1] == "mean of 16 languages"
    assert means == (False,) * 16 + (True,)
    assert {"Korean", "Thai", "Arabic"} < set(labels)


def test_a_withheld_headline_is_told_with_its_reasons_and_no_figure_is_drawn(tmp_path):
    rows = sixteen(CODES[:3])
    failed = rows.add_column("controls", [controls("constant", [("b", "b")])] * len(rows))
    report = summarize(failed, names=("boosted", "raw"), n_resamples=50)
    assert "withheld" in plot._summary(report)
    picture = pixels(report.plot(tmp_path / "withheld.png"))[..., :3]
    assert (np.abs(picture - color(plot.WORSE)).max(axis=2) < 0.02).any()
    assert not (np.abs(picture - color(plot.BETTER)).max(axis=2) < 0.02).any()
    margins = [{"a": "b", "b": "a", "tie": "tie"}[each] for each in failed["verdict"]]
    turned = failed.remove_columns(["verdict", "verdict_ab", "verdict_ba"])
    for name in ("verdict", "verdict_ab", "verdict_ba"):
        turned = turned.add_column(name, margins)
    other = summarize(turned, names=("boosted", "raw"), n_resamples=50).plot(tmp_path / "turned.png")
    assert (pixels(other)[..., :3] == picture).all()  # nothing there depends on who won


@pytest.mark.parametrize("name", ["report.pdf", "report", "report.png.svg"])
def test_a_picture_of_another_kind_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(ValueError, match=r"does not end in \.png.*; name it report\.png"):
        summarize(sixteen(CODES[:1]), n_resamples=20).plot(tmp_path / name)
    assert not list(tmp_path.iterdir())


def color(name):
    return [int(name[at : at + 2], 16) / 255 for at in (1, 3, 5)]


@pytest.mark.parametrize(
    "label", ["$", "$x$", "$\\frac{1}{0}$", "\\", "_{^", "日本語", "ภาษาไทย", "العربية", "a\nb", "\x1b[31m", "\u202eabc", "😀", "x" * 300, " "]
)  # fmt: skip
def test_any_label_and_name_is_drawn_as_text_without_a_warning(tmp_path, label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = summarize(sixteen([label, "fr"], 40), names=(label, "raw"), n_resamples=20)
        picture = pixels(report.plot(tmp_path / "report.png"))
    columns = ink(picture)[1]
    assert columns.max() < picture.shape[1] - 3


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_what_is_drawn_is_one_short_line(label):
    drawn = plot._drawable(label)
    assert len(drawn) <= plot.LONGEST
    assert drawn.isprintable()


@pytest.mark.parametrize("verdicts", [[None], ["tie"], ["a"]])
def test_hardly_any_verdict_is_drawn_too(tmp_path, verdicts):
    rows = Dataset.from_dict({"id": [1], "verdict": verdicts})
    assert summarize(rows, n_resamples=20).plot(tmp_path / "report.png").stat().st_size > 1_000


def test_the_style_of_the_user_neither_matters_nor_is_changed(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.size": 40}):
        report = summarize(sixteen(CODES[:2]), n_resamples=20)
        one = pixels(report.plot(tmp_path / "one.png"))
        assert matplotlib.rcParams["font.size"] == 40
    assert (one == pixels(report.plot(tmp_path / "two.png"))).all()


def test_without_a_path_the_picture_lands_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert summarize(sixteen(CODES[:1]), n_resamples=20).plot().resolve() == tmp_path / "report.png"
