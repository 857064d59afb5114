"""Cards: what they say, what they never say, and that no row can break one."""

import ast
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict, concatenate_datasets, enable_progress_bars
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midb.errors import ColumnError, MidbError
from midb.hub import adapter_card, dataset_card, eval_set_card, metric_card, push_dataset
from midb.hub.facts import Share, named_splits, read_edits
from midb.hub.picture import distance_figure, draw_distances, equal_bins
from midb.hub.readme import BEGIN, END, as_section, earlier_folders, merge, read_kind
from midb.judging.report import summarize
from midb.judging.statistics import wilson
from midb.schema import PAIR, RAW

START = BEGIN.removesuffix("-->")  # what a push notes comes behind it
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def edits(rows, **columns):
    """Edits of (language, before, after) rows; what is not said is the same on both sides."""
    made = {
        "language": [language for language, _, _ in rows],
        "instruction": ["Explain."] * len(rows),
        "input": [""] * len(rows),
        "response": [after for _, _, after in rows],
        "raw_instruction": ["Explain."] * len(rows),
        "raw_input": [""] * len(rows),
        "raw_response": [before for _, before, _ in rows],
    }
    return Dataset.from_dict(made | columns)


def boosted(n=30, languages=("fr", "ar")):
    """Rows as a booster leaves them: of ten, seven boosted, one unchanged, two rejected."""
    rows = [(languages[i % len(languages)], "kort", "kort" if i % 10 > 6 else "een lang antwoord") for i in range(n)]
    status = ["boosted"] * 7 + ["unchanged"] + ["rejected"] * 2
    return edits(
        rows,
        boost_status=[status[i % 10] for i in range(n)],
        boost_reason=["truncated: cut" if i % 10 == 8 else "loop: aaa" if i % 10 == 9 else "" for i in range(n)],
        boosted_by=["org/booster"] * n,
    )


def tables(page):
    """The cells of each row of each pipe table, as a reader's renderer sees them."""
    found, tokens = [], MARKDOWN.parse(str(page))
    for token in tokens:
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.map is None:
            found[-1][-1].append(token.content)
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append("")
    return found


class Tags(HTMLParser):
    """Which tags a page has, in order, and the text of each cell of its HTML tables."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.opened, self.cells, self.attributes = [], [], []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        if tag == "td":
            self.inside = True
            self.cells.append("")
            self.attributes.append(dict(attrs))
        elif tag == "br" and self.inside:
            self.cells[-1] += "\n"

    def handle_endtag(self, tag):
        if tag == "td":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def body_of(card):
    """What stands between our two lines, without the note."""
    return card.text.split(BEGIN[:15], 1)[1].split("\n\n", 1)[1].split(END)[0]


def headings(page):
    tokens = MARKDOWN.parse(page)
    return [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]


def metadata(card):
    return yaml.safe_load(str(card).split("---\n")[1])


# --- what a card says ------------------------------------------------------------------------------------------------


def test_the_metadata_is_from_the_data_and_from_the_caller_and_nothing_is_made_up():
    card = dataset_card(boosted(), license="cc-by-nc-4.0", source_datasets=["org/raw"])
    assert isinstance(card, DatasetCard)
    assert metadata(card) == {
        "language": ["ar", "fr"], "license": "cc-by-nc-4.0", "source_datasets": ["org/raw"], "size_categories": ["n<1K"],
        "task_categories": ["text-generation"], "tags": ["midb", "instruction-tuning", "synthetic"],
    }  # fmt: skip
    silent = dataset_card(boosted())
    assert not {"license", "source_datasets"} & metadata(silent).keys()
    assert "The licence, where one was stated, is in the metadata of this page" in silent.text
    assert "did not state the source" in silent.text


def test_a_licence_that_the_dataset_states_is_taken():
    rows = boosted()
    rows.info.license = "mit"
    assert metadata(dataset_card(rows))["license"] == "mit"
    assert metadata(dataset_card(rows, license="apache-2.0"))["license"] == "apache-2.0"


def test_what_cannot_be_a_licence_is_refused():
    with pytest.raises(
        ValueError, match=r"license= says 'Apache 2.0', which is no identifier of the Hub's list; give one"
    ):
        dataset_card(boosted(), license="Apache 2.0")
    rows = boosted()
    rows.info.license = "Creative Commons, see the page"
    with pytest.raises(ValueError, match=r"the rows' own information .* says 'Creative Commons, see"):
        dataset_card(rows)
    assert metadata(dataset_card(rows, license="other"))["license"] == "other"


def test_rows_that_state_no_language_are_told_of():
    text = dataset_card(edits([("fr", "a", "b"), ("ja", "a", "b"), ("", "a", "b")])).text
    assert "in French and Japanese; some rows state no language." in text
    assert "Rows that state no language are in `all` only." in text
    assert "no language" not in dataset_card(boosted()).text
    questions = {"id": [1, 1, 1], "language": ["fr", "ja", ""], "turns": [["a"]] * 3}
    text = eval_set_card(Dataset.from_dict(questions)).text
    assert "1 question is in all 2 languages and among the rows that state none." in text
    assert "Rows that state no language are in `all` only." in text


def test_one_row_is_one():
    text = dataset_card(edits([("fr", "a", "b")])).text
    assert "1 row of instruction data" in text
    assert "## 1 row, before and after" in text


def test_the_licences_of_midbs_files_are_said_to_matter_only_where_rows_come_from_there(tmp_path):
    condition = (
        "What follows matters only where rows here, or what trained the booster, come from MIDB, CoachLM or Alpaca"
    )
    assert condition in dataset_card(boosted()).text
    assert condition in adapter_card(adapter(tmp_path)).text
    assert condition not in dataset_card(edits([("fr", "a", "b")], published_distance=[7])).text


def test_the_table_counts_each_language():
    text = dataset_card(boosted(40, ("fr", "ar", "fr", "ar"))).text
    arabic = next(line for line in text.splitlines() if line.startswith("| Arabic"))
    cells = [cell.strip() for cell in arabic.split("|")[1:-1]]
    rows = [row for row in boosted(40, ("fr", "ar", "fr", "ar")) if row["language"] == "ar"]
    of = {status: sum(row["boost_status"] == status for row in rows) for status in ("boosted", "unchanged", "rejected")}
    assert cells[:2] == ["Arabic", "20"]
    assert cells[2].startswith(f"{of['boosted']} (")
    assert cells[3] == str(of["unchanged"])
    assert cells[4].startswith(f"{of['rejected']} (")
    assert set(re.findall(r"\w+ \d+", cells[-1])) == {"loop 4"}  # rows 9, 19, ... are odd


def test_the_distance_is_measured_and_a_column_that_tells_one_is_not_believed():
    rows = edits([("fr", "abc", "abcdef"), ("fr", "abc", "abcd")], edit_distance=[9999, 9999])
    [french] = read_edits(named_splits(rows)).languages
    assert (french.mean_distance, french.median_distance, len(french.distances)) == (2.0, 2.0, 2)


def test_the_median_of_an_even_number_is_between_the_middle_two():
    import statistics

    for distances in ([1, 3], [1, 2, 9], [4, 4], [0, 0, 5, 8], [1, 2], [7]):
        rows = edits([("fr", "", "x" * far) for far in distances])
        [french] = read_edits(named_splits(rows)).languages
        assert french.median_distance == statistics.median(distances)
    assert "| French | 2 | 1.5 | 1.5 |" in dataset_card(edits([("fr", "", "x"), ("fr", "", "xx")])).text


@pytest.mark.parametrize("count", [1, 4, 5, 7, 17])
def test_the_picture_has_one_chart_for_each_language_and_no_empty_one(count):
    rows = edits([(f"x{chr(97 + at)}", "", "y" * (at + far)) for at in range(count) for far in (1, 2)])
    figure = distance_figure(read_edits(named_splits(rows)))
    assert len(figure.axes) == count
    assert all(axes.patches and axes.get_title(loc="left") for axes in figure.axes)
    figure.draw_without_rendering()
    at_the_foot = {axes.get_subplotspec().colspan.start: axes for axes in figure.axes}  # the last of each column
    for axes in figure.axes:
        shown = any(label.get_visible() and label.get_text() for label in axes.get_xticklabels())
        assert shown == (axes in at_the_foot.values())


def test_only_boosted_rows_count_for_the_distance():
    facts = read_edits(named_splits(boosted(20, ("fr",))))
    assert len(facts.total.distances) == facts.total.boosted == 14


def test_the_interval_is_the_one_of_the_judge():
    for rows, of in [(0, 7), (7, 7), (3, 10), (811, 1000)]:
        assert Share(rows, of).interval == pytest.approx(wilson(rows, of), abs=1e-9)
    assert Share(0, 0).interval is None


def test_ten_rows_are_shown_spread_over_the_languages():
    languages = [f"{first}{second}" for first in "abc" for second in "abcdefgh"]
    facts = read_edits(named_splits(edits([(code, "a", "b") for code in languages for _ in range(5)])))
    assert len(facts.samples) == len({sample.language for sample in facts.samples}) == 10
    few = read_edits(named_splits(edits([("fr", "a", "b")] * 3 + [("ar", "a", "a")] * 50)))
    assert [sample.language for sample in few.samples] == ["fr"] * 3
    uneven = DatasetDict(
        train=edits([("fr", "a", "b")] * 2 + [("ar", "a", "b")] * 50), test=edits([("fr", "a", "b")] * 9)
    )
    samples = read_edits(named_splits(uneven)).samples
    assert Counter((sample.split, sample.language) for sample in samples) == {
        ("train", "fr"): 2, ("test", "fr"): 4, ("train", "ar"): 4
    }  # fmt: skip
    assert len({(sample.split, sample.row) for sample in samples}) == 10


def test_boosted_rows_of_the_published_files_are_not_called_the_published_files():
    published = "These are MIDB's published training files or a part of them"
    revised = edits([("fr", "a", "b")], published_distance=[7], repair=[""])
    assert published in dataset_card(revised).text
    text = dataset_card(boosted().add_column("published_distance", [7] * 30)).text
    assert published not in text
    assert "Only the raw pairs are from MIDB's published training files" in text
    assert "says nothing of the edits here" in text


def test_revisions_by_people_are_not_called_a_models():
    card = dataset_card(edits([("fr", "a", "b")]))
    assert "No column says that a model made these revisions" in card.text
    assert "synthetic" not in metadata(card)["tags"]
    assert headings(str(card).split("---\n", 2)[2])[0] == "Revised instructions in French"


def test_rows_without_a_language_may_be_told_theirs():
    rows = edits([("fr", "a", "b")]).remove_columns("language")
    assert "language" not in metadata(dataset_card(rows))
    assert metadata(dataset_card(rows, language="French"))["language"] == ["fr"]


def test_what_is_no_set_of_edits_is_refused_with_the_way_out():
    with pytest.raises(ColumnError, match="raw_instruction"):
        dataset_card(edits([("fr", "a", "b")]).remove_columns(list(RAW)))
    with pytest.raises(TypeError, match="IterableDataset cannot be pushed; give"):
        dataset_card(boosted().to_iterable_dataset())
    with pytest.raises(ColumnError, match="'Klingon'"):
        dataset_card(edits([("Klingon", "a", "b")]))
    with pytest.raises(
        ColumnError, match="there are no rows in 'train', and load_dataset reads no split without rows; leave it out"
    ):
        dataset_card(boosted().select([]))
    with pytest.raises(ColumnError, match="differ in columns"):
        dataset_card(DatasetDict(train=boosted(), test=boosted().remove_columns("boosted_by")))
    with pytest.raises(ColumnError, match="boost_status holds 'great'"):
        dataset_card(edits([("fr", "a", "b")], boost_status=["great"]))


def test_the_same_rows_make_the_same_card_and_picture():
    assert str(dataset_card(boosted())) == str(dataset_card(boosted()))
    facts = [read_edits(named_splits(boosted())) for _ in range(2)]
    assert draw_distances(facts[0]) == draw_distances(facts[1])
    assert draw_distances(facts[0]).startswith(b"\x89PNG")


@pytest.mark.parametrize("longest", [40, 60, 79, 80, 130, 400])
def test_rows_that_are_spread_evenly_are_drawn_flat(longest):
    rows = edits([("fr", "", "x" * far) for far in range(longest) for _ in range(3)])
    [french] = read_edits(named_splits(rows)).languages
    edges = equal_bins(french.distances)
    assert len(set(np.diff(edges))) == 1
    [axes] = distance_figure(read_edits(named_splits(rows))).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == 3 * longest
    assert set(heights[:-1]) == {3 * int(edges[1])}  # and the last holds what is left


def test_a_push_measures_the_rows_once_for_card_and_picture(capfd):
    enable_progress_bars()
    push_dataset(boosted(), "tester/once", dry_run=True)
    assert capfd.readouterr().err.count("Edit distance: 100%") == 1


def test_a_picture_of_rows_that_no_one_changed_is_empty_and_no_error():
    assert draw_distances(read_edits(named_splits(edits([("fr", "a", "a")])))).startswith(b"\x89PNG")


def test_a_template_of_ones_own_takes_the_place_and_is_as_safe(tmp_path):
    own = tmp_path / "own.md"
    own.write_text("We have {{ facts.rows }} rows.\n\n{{ facts.samples[0].after.response }}\n")
    text = dataset_card(edits([("fr", "a", "# Title\n\n<script>alert(1)</script> | x")]), template=own).text
    assert "We have 1 rows." in text
    assert headings(text) == ["Revised instructions in French"]
    assert "<script>" not in text
    for line in ("- a", "+ a", "1. a", "    code", "===", "---"):
        said = body_of(dataset_card(edits([("fr", "a", line)]), template=own)).split("\n\n", 1)[1]
        assert {token.type for token in MARKDOWN.parse(said)} == {"paragraph_open", "inline", "paragraph_close"}
    own.write_text("{{ facts.nothing }}")
    with pytest.raises(
        MidbError, match=r"own.md cannot be filled in \(.*nothing'\); mend it: it may name codes, .*facts"
    ):
        dataset_card(boosted(), template=own)
    own.write_text("one\n{% if %}")
    with pytest.raises(MidbError, match=r"own.md, line 2 cannot be filled in"):
        dataset_card(boosted(), template=own)
    with pytest.raises(FileNotFoundError):
        dataset_card(boosted(), template=tmp_path / "none.md")


def test_the_lines_that_load_it_are_python_whatever_it_is_called(tmp_path):
    place = "my_name/a_name_of_more_than_forty_characters_in_one_word"
    questions = DatasetDict(
        hard_ones=Dataset.from_dict({"id": [1, 2], "language": ["fr", "ja"], "turns": [["a"], ["b"]]})
    )
    cards = [
        dataset_card(boosted(), repo_id=place),
        eval_set_card(questions, repo_id=place),
        adapter_card(adapter(tmp_path), repo_id=place),
    ]
    for card in cards:
        [*blocks] = (token.content for token in MARKDOWN.parse(card.text) if token.type == "fence")
        calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        assert any(getattr(argument, "value", "") == place for call in calls for argument in call.args)
    assert 'split="hard_ones")' in cards[1].text
    assert 'load_dataset("owner/name"' in dataset_card(boosted(), repo_id="alone").text  # whose, the push will know
    with pytest.raises(ValueError, match="Repo id"):
        dataset_card(boosted(), repo_id='a/b")\n```')


# --- what a judge made of it -----------------------------------------------------------------------------------------


def judged(n=60, verdict="a", name="boosted"):
    """A report of two languages in which side a wins two of three."""
    verdicts = [verdict if i % 3 else "b" for i in range(n)]
    rows = {"id": [i // 2 for i in range(n)], "language": ["fr", "ar"] * (n // 2), "judged_by": ["org/judge"] * n}
    return summarize(Dataset.from_dict(rows | {"verdict_ab": verdicts, "verdict_ba": verdicts}), names=(name, "raw"))


def test_the_figures_of_a_judge_are_in_the_text_and_of_an_adapter_in_the_model_index(tmp_path):
    report = judged()
    assert report.health.fit
    assert report.to_markdown().strip() in dataset_card(boosted(60), report=report).text
    card = adapter_card(adapter(tmp_path), report=report, judged_on="org/rows")
    [index] = metadata(card)["model-index"]
    whole, *languages = index["results"]
    [metric] = whole["metrics"]
    assert metric["value"] == round(report.headline.value, 4)
    assert metric["args"]["low"] < metric["value"] < metric["args"]["high"]
    assert metric["args"]["judged_by"] == ["org/judge"]
    assert whole["dataset"] == {"name": "boosted against raw", "type": "org/rows"}
    assert [result["dataset"]["config"] for result in languages] == ["ar", "fr"]
    assert index["name"] == "name"  # a place that is not known yet
    placed = adapter_card(tmp_path / "adapter", report=report, repo_id="me/my_booster")
    assert metadata(placed)["model-index"][0]["name"] == "my_booster"
    unnamed = metadata(adapter_card(tmp_path / "adapter", report=report))["model-index"][0]["results"][0]["dataset"][
        "type"
    ]
    assert unnamed == f"verdicts-{report.provenance.fingerprint}"


def test_a_report_of_other_rows_is_refused():
    with pytest.raises(
        ValueError, match="the report is of 60 comparisons, and there are 30 rows: it is of others; give"
    ):
        dataset_card(boosted(), report=judged())
    with pytest.raises(ValueError, match="the report has verdicts in ar, and none of the rows is: it is of others"):
        dataset_card(boosted(60, ("fr",)), report=judged())


def test_a_judge_that_cannot_be_believed_gives_no_figure(tmp_path):
    rows = {"id": list(range(60)), "verdict_ab": ["a"] * 60, "verdict_ba": ["b"] * 60}  # whatever stands first
    report = summarize(Dataset.from_dict(rows))
    assert not report.health.fit
    card = adapter_card(adapter(tmp_path), report=report)
    assert "model-index" not in metadata(card)
    assert "Headline withheld" in card.text


def test_a_new_report_replaces_the_last_and_leaves_others_results(tmp_path):
    folder = adapter(tmp_path)
    first = str(merge(None, adapter_card(folder, report=judged())))
    other = {"task": {"type": "x"}, "dataset": {"type": "y", "name": "z"}, "metrics": [{"type": "bleu", "value": 1}]}
    head = yaml.safe_load(first.split("---\n")[1])
    head["model-index"][0]["results"].append(other)
    theirs = f"---\n{yaml.safe_dump(head)}---\n" + first.split("---\n", 2)[2]
    again = metadata(merge(theirs, adapter_card(folder, report=judged(90))))["model-index"]
    kinds = [metric["type"] for model in again for result in model["results"] for metric in result["metrics"]]
    assert sorted(kinds) == ["bleu", "midb_win_score", "midb_win_score", "midb_win_score"]
    kept = metadata(merge(theirs, adapter_card(folder)))["model-index"]  # the judge read other weights' work
    assert kept == [{"name": head["model-index"][0]["name"], "results": [other]}]
    assert "model-index" not in metadata(merge(first, adapter_card(folder)))


def test_what_an_earlier_push_said_of_its_training_goes_when_this_one_does_not_say_it(tmp_path):
    folder = adapter(tmp_path)
    first = merge(None, adapter_card(folder, datasets=["org/rows"], license="mit"))
    again = merge(str(first), adapter_card(folder))
    assert "datasets" not in metadata(again)
    assert metadata(again)["license"] == "mit"
    by_hand = str(again).replace("license: mit", "license: mit\npretty_name: Mine\nlanguage: fr")
    kept = metadata(merge(by_hand, adapter_card(folder)))
    assert (kept["pretty_name"], kept["language"]) == ("Mine", "fr")
    first_by_hand = "---\ndatasets:\n- mine/rows\n---\n# By hand\n"
    assert metadata(merge(first_by_hand, adapter_card(folder)))["datasets"] == ["mine/rows"]


def test_the_languages_of_an_earlier_push_go_with_its_configurations():
    spoken = pushed_card(CALM, "fr")
    assert earlier_folders(str(spoken), dataset_card(CALM)) == {"fr"}
    silent = dataset_card(CALM.remove_columns("language"))
    assert "language" not in metadata(merge(str(spoken), silent))


def pushed_card(rows, *languages, default="all"):
    """The card of rows with the configurations that a push writes."""
    card = dataset_card(rows)
    files = {"all": [f"{each}/train-*" for each in languages], **{each: [f"{each}/train-*"] for each in languages}}
    card.data["configs"] = [
        {"config_name": name, "data_files": [{"split": "train", "path": path}]}
        | ({"default": True} if name == default else {})
        for name, path in files.items()
    ]
    return card


def test_the_names_in_a_report_break_nothing():
    report = judged(name="</table>|`x`\n# no\n<!-- midb:end -->")
    page = str(dataset_card(boosted(60), report=report))
    assert page.count(f"\n{END}") == 1
    assert not any(each == "no" for each in headings(page))


# --- nobody breaks a card --------------------------------------------------------------------------------------------

HOSTILE = [
    "---\nlicense: mit\n---\n# I am the card now", END, f"a\n{END}\nb", f"{BEGIN}\n", "| a | b |\n|---|---|\n| c | d |",
    "</td></tr></table><script>alert(1)</script>", "```\ncode", "~~~", "<!-- ", "-->", "&lt;b&gt; &#60;", "$$x^2$$", "\\|", "`|`",
    "\u202egnihton\u202d", "سطر\n\n\nفارغ", "x" * 5000, "\x00\x01\x1b[31m", "a\u2028b\u2029c\x85d\x0be", "[x](javascript:alert(1))",
    "![](http://a/b.png)", "<img src=x onerror=alert(1)>", "&lt;!-- midb:end --&gt;", "{{ facts }} {% raw %}", "\ud7ff\ufffe\U0010ffff",
    '"owner/name"', " \t ", "<br>" * 100, "1. a\n2. b\n\n    code", "=====\n-----",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=80), st.lists(st.sampled_from(HOSTILE), max_size=3).map("\n".join)
)


def check_unbroken(rows):
    plain = rows.map(lambda row: dict.fromkeys((*PAIR, *RAW), "text") | {"response": "other"})
    page, calm = str(dataset_card(rows)), str(dataset_card(plain))
    assert page.count(START) == page.count(END) == 1
    assert page.split("\n---\n")[0] == calm.split("\n---\n")[0]  # the front matter, and nothing after it is one
    body = page.split("\n---\n", 1)[1]
    assert headings(body) == [
        h for h in headings(calm.split("\n---\n", 1)[1]) if not h.endswith("before and after")
    ] or (headings(body) == headings(calm.split("\n---\n", 1)[1]))
    for table in tables(page):
        assert len({len(row) for row in table}) == 1
    assert set(Tags(MARKDOWN.render(body)).opened) <= SAFE
    return body


def test_a_blank_line_stands_before_each_table_which_some_renderers_need(tmp_path):
    from test_adapter import RECORD

    folder = adapter(tmp_path)
    RECORD.write(folder)
    everything = {"license": "mit", "source_datasets": ["org/raw"], "report": judged()}
    pages = [
        dataset_card(boosted(60), **everything),
        dataset_card(DatasetDict(a=CALM, b=CALM)),
        adapter_card(folder, datasets=["a"]),
    ]
    questions = Dataset.from_dict(
        {"id": [1, 2], "language": ["fr", "ja"], "turns": [["a"], ["b"]], "category": ["x", "y"]}
    )
    for page in (*pages, eval_set_card(questions)):
        lines = page.text.splitlines()
        for at, line in enumerate(lines):
            if line.startswith("|-"):
                assert lines[at - 2] == ""


SAFE = {
    "h1", "h2", "p", "em", "strong", "code", "pre", "a", "img", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "sub", "br", "i", "wbr",
    "blockquote",
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[TEXT] * 6), min_size=1, max_size=3))
def test_no_text_of_a_row_breaks_the_front_matter_our_lines_or_a_table(texts):
    columns = {name: [row[at] for row in texts] for at, name in enumerate((*PAIR, *RAW))}
    check_unbroken(Dataset.from_dict({"language": ["ar"] * len(texts)} | columns))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_shown_as_it_is(text):
    row = {"language": ["fr"], "instruction": ["Explain."], "input": [""], "response": [text + "."]}
    body = check_unbroken(
        Dataset.from_dict(
            row | {f"raw_{name}": row[name] for name in ("instruction", "input")} | {"raw_response": ["b"]}
        )
    )
    shown = Tags(MARKDOWN.render(body)).cells[-1]
    visible = re.sub(r"\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]", "\n", text[:700])
    visible = re.sub(r"[\x00-\x08\x0e-\x1f]", lambda found: chr(0x2400 + ord(found[0])), visible)
    assert shown.startswith(visible[:600].replace("\x85", "\n"))
    assert ("5,001 characters" in shown) == (len(text) > 700)


def test_names_break_nothing_either():
    rows = boosted(10, ("fr",))
    nasty = "a|b`c\n# d</code>"
    rows = rows.remove_columns("boosted_by").add_column("boosted_by", [nasty] * 10).add_column("x|y`\n# z", [1] * 10)
    rows = rows.remove_columns("boost_reason").add_column("boost_reason", ["<b>|\n---\n: x"] * 10)
    body = check_unbroken(rows)
    assert "x|y`" in MARKDOWN.render(body).replace("&#124;", "|").replace("&#96;", "`")


def test_arabic_texts_find_their_own_direction():
    text = dataset_card(edits([("ar", "لماذا السماء زرقاء؟", "السماء زرقاء لأن الضوء يتشتت.")])).text
    cells = Tags(MARKDOWN.render(text))
    shown = [attributes for cell, attributes in zip(cells.cells, cells.attributes, strict=True) if "السماء" in cell]
    assert len(shown) == 2
    assert all(attributes["dir"] == "auto" for attributes in shown)


# --- one README, two authors -----------------------------------------------------------------------------------------


def test_what_people_write_around_our_lines_stays_byte_for_byte():
    first = str(merge(None, dataset_card(boosted())))
    edited = first.replace("<!-- midb:begin", "# Mine  \n\nHello |\t`x`\n\n<!-- midb:begin").replace(
        f"{END}\n", f"{END}\n\n## Thanks\n\n  to all  \n"
    )
    edited = edited.replace("tags:\n", "pretty_name: Mine\nextra:\n  deep: [1, 2]\ntags:\n- own\n")
    edited = edited.replace("task_categories:\n", "task_categories:\n- summarization\n")
    second = str(merge(edited, dataset_card(boosted(50))))
    assert "# Mine  \n\nHello |\t`x`\n\n<!-- midb:begin dataset -->" in second
    assert second.endswith(f"{END}\n\n## Thanks\n\n  to all  \n")
    assert "50 rows of instruction data" in second
    assert "30 rows of instruction data" not in second
    head = yaml.safe_load(second.split("---\n")[1])
    assert (head["pretty_name"], head["extra"]) == ("Mine", {"deep": [1, 2]})
    assert head["tags"] == ["own", "midb", "instruction-tuning", "synthetic"]
    assert head["task_categories"] == ["summarization", "text-generation"]
    assert str(merge(second, dataset_card(boosted(50)))) == second


def test_the_title_is_ours_too_and_says_what_is_there_now():
    first = str(merge(None, dataset_card(boosted())))
    second = str(merge(first, dataset_card(edits([("ja", "a", "b")]))))
    assert headings(second.split("---\n", 2)[2])[0] == "Revised instructions in Japanese"
    assert "in Arabic and French" not in second


def test_a_readme_without_our_lines_keeps_all_of_it_and_gets_ours_at_its_end():
    for theirs in (
        "# By hand\n\ntext",
        "---\nlicense: mit\n---\n# By hand\n\ntext\n",
        "\ufeff---\nlicense: mit\n---\r\n# By hand\r\n\r\ntext",
    ):
        merged = str(merge(theirs, dataset_card(boosted())))
        assert merged.index("# By hand") < merged.index("<!-- midb:begin dataset -->")
        assert ("license: mit" in merged) == ("license" in theirs)
        assert read_kind(merged) == "dataset"


def test_windows_line_ends_stay_windows():
    theirs = str(merge(None, dataset_card(boosted()))).replace("\n", "\r\n")
    merged = str(merge(theirs, dataset_card(boosted(50))))
    assert "\n" not in merged.replace("\r\n", "")
    assert read_kind(merged) == "dataset"


def test_a_value_that_this_push_does_not_state_stays():
    theirs = str(merge(None, dataset_card(boosted(), license="mit")))
    assert "license: mit" in str(merge(theirs, dataset_card(boosted())))
    assert "license: gpl" in str(merge(theirs, dataset_card(boosted(), license="gpl")))


def test_broken_lines_or_metadata_are_told_and_nothing_is_guessed():
    card = dataset_card(boosted())
    for theirs in (BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"):
        with pytest.raises(MidbError, match="correct it on the Hub first"):
            merge(theirs, card)
    for theirs in ("---\n[1, 2]\n---\n", "---\na: b: c\n---\n"):
        with pytest.raises(MidbError, match=r"metadata of its README.md cannot be read"):
            merge(theirs, card)
    theirs = "---\nconfigs:\n- config_name: fr\n  data_files: mine.csv\n---\n"
    card.data["configs"] = [{"config_name": "fr", "data_files": "fr/*"}]
    with pytest.raises(MidbError, match="has the configurations fr, which midb did not write"):
        merge(theirs, card)


def test_configurations_that_are_ours_are_replaced_and_others_stay():
    mine = {"config_name": "mine", "data_files": [{"split": "train", "path": "mine/train-*"}]}
    theirs = pushed_card(boosted(), "fr", "de")
    theirs.data["configs"].append(mine)  # as `push_to_hub(repo, "mine")` writes it
    card = pushed_card(boosted(), "fr")
    assert metadata(merge(str(theirs), card))["configs"] == [*card.data["configs"], mine]
    assert earlier_folders(str(theirs), card) == {"fr", "de"}


def test_languages_that_people_added_and_the_configuration_that_they_chose_stay():
    first = str(pushed_card(boosted(), "fr", "ar"))
    edited = first.replace("language:\n- ar\n", "language:\n- en\n- ar\n").replace("  default: true\n", "", 1)
    edited = edited.replace("- config_name: fr\n", "- config_name: fr\n  default: true\n")
    second = str(merge(edited, pushed_card(boosted(30, ("fr", "ja")), "fr", "ja")))
    head = yaml.safe_load(second.split("---\n")[1])
    assert head["language"] == ["fr", "ja", "en"]
    assert [each["config_name"] for each in head["configs"] if each.get("default")] == ["fr"]
    head = metadata(merge(second, pushed_card(boosted(30, ("ja", "it")), "ja", "it")))
    assert head["language"] == ["it", "ja", "en"]
    assert [each["config_name"] for each in head["configs"] if each.get("default")] == ["all"]


CALM = edits([("fr", "a", "b")])
OURS = DatasetCard(f"---\nlanguage: fr\n---\n\n{as_section('new', 'dataset')}\n")
THEIRS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([*HOSTILE, "---\n", "license: mit\n---\n", "\ufeff", "<!-- midb", "\\1"]), max_size=4).map(
        "\n".join
    ),
).map(lambda text: text.replace("\r", "").replace("midb:", ""))  # for those see the test of Windows line ends


@settings(deadline=None)
@given(THEIRS, THEIRS)
def test_whatever_people_write_is_there_after_a_push(above, below):
    theirs = f"---\nlicense: mit\n---\n{above}\n{as_section('old')}\n{below}"
    merged = str(merge(theirs, OURS))
    assert merged.split("\n---\n", 1)[1].startswith(f"{above}\n<!-- midb:begin dataset -->")
    assert merged.endswith(f"{END}\n{below}")


# --- evaluation sets and metrics -------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_cards_of_the_published_sets_tell_what_was_lost(shared):
    from midb import release

    bench = eval_set_card(release.load_mt_bench(shared / "data/midb"))
    assert "machine translations of the 80 English questions" in bench.text  # the rows' own information says so
    assert metadata(bench)["license"] == "apache-2.0"  # what the published repository says, though nobody said it here
    assert "the originals have terms of their own" in bench.text
    assert len(metadata(bench)["language"]) == 16
    assert "74 questions are in all 16 languages, and 70 of them are without a defect in each" in bench.text
    assert "| Thai | 77 | 75 | 3 (lost 2, split 1) | 0 | 90, 98, 131 |" in bench.text
    alpaca = eval_set_card(release.load_alpaca_eval(shared / "data/midb"))
    assert "797 questions are in all 16 languages" in alpaca.text
    assert "machine translations of the 805 English instructions" in alpaca.text


def test_a_set_of_ones_own_is_not_called_a_translation():
    own = Dataset.from_dict({"id": [1, 2], "language": ["fr", "fr"], "turns": [["a", "b"], ["c"]]})
    card = eval_set_card(own)
    assert "ranslated by machine" not in card.text
    with pytest.raises(ColumnError, match="an evaluation set has an id and turns"):
        eval_set_card(boosted())


def test_a_card_speaks_of_defects_repairs_and_common_questions_only_where_they_are():
    own = {"id": [1, 2], "language": ["fr", "ja"], "turns": [["a"], ["b"]]}
    text = eval_set_card(Dataset.from_dict(own)).text
    assert "defect" not in text
    assert "repair" not in text
    assert "Compare languages" not in text
    assert "No `id` is in all 2 languages" in text
    shared_ids = eval_set_card(Dataset.from_dict(own | {"id": [1, 1]})).text
    assert "1 question is in all 2 languages. Compare languages over those." in shared_ids
    with_defects = eval_set_card(Dataset.from_dict(own | {"id": [1, 1], "defect": ["", "lost"]})).text
    assert "and 0 of them are without a defect in each." in with_defects
    assert "Compare languages" not in with_defects
    assert "midb mended" not in eval_set_card(Dataset.from_dict(own | {"repair": ["", "x"]})).text


def test_hostile_questions_break_nothing():
    rows = {"id": ["|", "\n# x"], "language": ["fr", "fr"], "turns": [HOSTILE, HOSTILE], "category": ["a|b", "<b>"]}
    card = eval_set_card(Dataset.from_dict(rows))
    page = str(card)
    assert page.count(START) == page.count(END) == 1
    for table in tables(page):
        assert len({len(row) for row in table}) == 1
    assert set(Tags(MARKDOWN.render(card.text)).opened) <= SAFE


def test_the_looks_of_a_space_are_ours_at_first_and_then_theirs():
    made_by_the_hub = "---\ntitle: x\nemoji: 🌖\ncolorFrom: red\nsdk: gradio\nsdk_version: 1.0.0\n---\nCheck out ...\n"
    first = merge(made_by_the_hub, metric_card("pairwise_judge"))
    assert (first.data["title"], first.data["emoji"]) == ("Pairwise judge", "⚖️")
    edited = str(first).replace("emoji: ⚖️", "emoji: 🦊").replace("sdk_version: ", "sdk_version: 0.")
    second = merge(edited, metric_card("pairwise_judge"))
    assert (second.data["title"], second.data["emoji"]) == ("Pairwise judge", "🦊")
    assert second.data["sdk_version"] == first.data["sdk_version"]


def test_a_metric_keeps_its_own_card_between_our_lines():
    card = metric_card("pairwise_judge")
    assert card.data["sdk"] == "gradio"
    assert 'pairwise_judge = evaluate.load("owner/name")' in card.text
    assert card.text.count(START) == card.text.count(END) == 1
    with pytest.raises(ValueError, match="there is no metric 'bleu'"):
        metric_card("bleu")


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter(tmp_path, base="org/base"):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}", "peft_type": "LORA", "r": 8}}')
    return folder


def test_an_adapters_card_names_its_base_and_nothing_it_does_not_know(tmp_path):
    card = adapter_card(adapter(tmp_path), license="apache-2.0")
    assert isinstance(card, ModelCard)
    assert metadata(card) == {
        "base_model": "org/base", "license": "apache-2.0", "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["midb", "booster", "lora", "base_model:adapter:org/base"],
    }  # fmt: skip
    assert "nothing is known of its training" in card.text
    assert "is made to improve instruction data" not in card.text
    assert "no record of its training (`booster.json`) says so" in " ".join(card.text.split())
    assert "# An adapter on base" in card.text


def test_a_base_model_that_is_a_place_of_this_machine_is_refused(tmp_path, monkeypatch):
    folder = adapter(tmp_path, "/data/models/llama")
    with pytest.raises(
        MidbError, match=r"the adapter's base model is the local path '/data/models/llama'.*base_model='owner/name'"
    ):
        adapter_card(folder)
    assert "/data" not in str(adapter_card(folder, base_model="org/base"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/base").mkdir(parents=True)
    assert metadata(adapter_card(folder, base_model="org/base"))["base_model"] == "org/base"  # whatever lies here
    with pytest.raises(MidbError, match=r"base_model= is the local path './org/base'"):
        adapter_card(folder, base_model="./org/base")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(MidbError, match="the adapter's base model is the local path 'org/base'"):
        adapter_card(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config.json"):
        adapter_card(tmp_path)


def test_a_column_of_the_callers_own_is_told_no_meaning():
    rows = boosted().add_column("defect", ["idiom"] * len(boosted()))
    assert "second turn" not in dataset_card(rows, repo_id="a/b").content


# --- how the rows were made ------------------------------------------------------------------------------------------

SETTINGS = {
    "midb": "0.1.0", "prompt": "Make *it* <b>better</b>.", "tags": ["[I]", "[C]", "[O]"], "fields": "response", "parity": False,
    "language": None, "guards": ["midb.guards.lost_code", "midb.guards.lost_url"],
    "sampling": {"temperature": 0.4, "top_p": 1.0, "max_tokens": 512, "seed": 7, "stop": None},
    "generator": {"engine": "openai", "model": "org/base", "adapter": "org/booster", "adapter_hash": "ab12", "extra_body": ["user"]},
}  # fmt: skip


def made(rows, settings=SETTINGS, identity="0123456789abcdef", name="org/booster"):
    """Rows of one run, with what a booster says of how it made them."""
    said = settings if isinstance(settings, str) else json.dumps(settings, sort_keys=True)
    new = {"boosted_by": name, "boost_identity": identity, "boost_settings": said}
    rows = rows.remove_columns([each for each in new if each in rows.column_names])
    for column, value in new.items():
        rows = rows.add_column(column, [value] * len(rows))
    return rows


def run_tables(card):
    """The two-column tables below "How the rows were made", without their heads and as a reader sees them."""
    section = Tags(MARKDOWN.render(card.text.split("## How the rows were made")[1].split("## Languages")[0]))
    pairs = list(zip(section.cells[::2], section.cells[1::2], strict=True))
    starts = [at for at, (name, _) in enumerate(pairs) if name == "rows"]
    return [dict(pairs[start:end]) for start, end in pairwise([*starts, None])]


def test_the_card_reads_from_the_rows_how_they_were_made():
    card = dataset_card(made(boosted()))
    [run] = run_tables(card)
    assert run["rows"] == "30"
    assert "org/booster" in run["boosted by"]
    assert run["boost_identity"] == "0123456789abcdef"
    assert [run[name] for name in ("engine", "model", "adapter", "adapter hash")] == [
        "openai",
        "org/base",
        "org/booster",
        "ab12",
    ]
    assert run["sampling"] == "max_tokens 512, seed 7, temperature 0.4, top_p 1.0"
    assert run["guards"] == "lost_code, lost_url"
    assert run["fields that may change"] == "response"
    assert run["midb's version"] == "0.1.0"
    assert run["further request fields"] == "user"
    assert run["tags"] == "[I], [C], [O]"
    assert "Make &#42;it&#42; &#60;b&#62;better" in card.text


def test_the_settings_of_two_runs_are_counted_apart_and_never_mixed():
    warm = SETTINGS | {"sampling": {"temperature": 0.9}, "prompt": "Another prompt."}
    both = concatenate_datasets([made(boosted(20)), made(boosted(10), warm, "fedcba9876543210")])
    card = dataset_card(both)
    assert "The rows come from 2 runs with different settings" in card.text
    first, second = run_tables(card)
    assert (first["rows"], "temperature 0.4" in first["sampling"]) == ("20", True)
    assert (second["rows"], second["sampling"]) == ("10", "temperature 0.9")
    assert card.text.index("Make &#42;it") < card.text.index("| run 2") < card.text.index("Another prompt.")
    same_words = concatenate_datasets([made(boosted(20)), made(boosted(10), identity="f" * 16)])  # other weights
    assert [run["rows"] for run in run_tables(dataset_card(same_words))] == ["20", "10"]


def test_rows_without_settings_say_only_who_was_asked():
    [run] = run_tables(dataset_card(boosted()))
    assert run == {"rows": "30", "boosted by": "org/booster", "settings": "these rows do not state their settings"}
    older = concatenate_datasets([made(boosted(20)), made(boosted(10), "", "")])
    assert [run["rows"] for run in run_tables(dataset_card(older))] == ["20", "10"]
    assert run_tables(dataset_card(edits([("fr", "a", "b")]))) == []
    some = concatenate_datasets([made(boosted(20)), made(boosted(10), "", "", "")])
    assert run_tables(dataset_card(some))[1] == {"rows": "10", "settings": "these rows do not state their settings"}
    unknown = dataset_card(boosted().remove_columns("boosted_by")).text
    assert "The rows do not say which model made them, nor how." in unknown


def test_where_no_guard_looked_the_card_speaks_of_none():
    without = dataset_card(made(boosted(), SETTINGS | {"guards": []})).text
    assert "no guard looked at it" in without
    assert "guard refused" not in without
    assert "a guard refused" in dataset_card(made(boosted())).text
    mixed = concatenate_datasets([made(boosted(), SETTINGS | {"guards": []}), made(boosted())])
    assert "a guard refused" in dataset_card(mixed).text


def test_rows_that_the_budget_left_out_are_no_answers():
    rows = edits(
        [("fr", "a", "b"), ("fr", "a", "a"), ("fr", "a", "a")],
        boost_status=["boosted", "not_run", "failed"],
        boost_reason=["", "budget: 0.01 spent", "timeout: 60 s"],
    )
    facts = read_edits(named_splits(rows)).total
    assert facts.failed == {"budget": 1, "timeout": 1}
    assert facts.boosted_share == Share(1, 1)
    assert "the budget ended the run before the row" in dataset_card(rows).text


NASTY = "</code></td>|`x`\n---\nlicense: mit\n---\n# no\n<!-- midb:end --><script>alert(1)</script>\ud800"


@pytest.mark.parametrize(
    "said",
    [
        "no JSON", "[1, 2]", '"text"', "null", "7", "{", "9" * 5000, "[" * 5000, '{"a":' * 3000, "x" * 100_000, '{"prompt": "' + "p" * 19_000 + '"}',
        json.dumps({"prompt": [1], "tags": 7, "fields": {"a": [None]}, "guards": "x", "sampling": [], "generator": 3, "parity": "y"}),
        json.dumps({NASTY: NASTY, "prompt": NASTY, "guards": [NASTY, 1, None], "sampling": {NASTY: NASTY}, "generator": {NASTY: [NASTY]}}),
        json.dumps({f"key {at}": at for at in range(500)}), '{"sampling": {"temperature": NaN, "seed": Infinity}}', '{"midb": "\\ud800"}',
    ],
    ids=range(16),
)  # fmt: skip
def test_no_boost_settings_break_a_card(said):
    rows = made(boosted(10, ("fr",)), said, identity=NASTY[:-1], name=NASTY[:-1])
    page = str(dataset_card(rows))
    page.encode()
    assert len(page) < 40_000
    assert page.count(START) == page.count(END) == 1
    assert page.split("\n---\n")[0] == str(dataset_card(boosted(10, ("fr",)))).split("\n---\n")[0]
    body = page.split("\n---\n", 1)[1]
    assert not any(each == "no" for each in headings(body))
    for table in tables(body):
        assert len({len(row) for row in table}) == 1
    assert set(Tags(MARKDOWN.render(body)).opened) <= SAFE


def test_columns_of_another_kind_and_a_row_each_of_its_own_settings_break_no_card():
    rows = boosted(10, ("fr",)).remove_columns("boosted_by")
    rows = rows.add_column("boost_settings", [{"a": 1}] * 10).add_column("boosted_by", list(range(10)))
    assert [run["boosted by"] for run in run_tables(dataset_card(rows))] == [str(at) for at in range(8)]
    many = made(edits([("fr", "a", "b")] * 1500)).remove_columns("boost_settings")
    many = many.add_column("boost_settings", [json.dumps({"seed": at}) for at in range(1500)])
    text = dataset_card(many).text
    assert "1,000 runs with different settings; 500 further rows have other settings again" in text
    assert "992 further runs with 992 rows not described here" in text
