"""What is pushed, over HTTP, to a Hub on this machine: it loads back equal, and what people wrote there stays."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hub_process
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from hub_process import at_hub
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from test_cards import START, boosted, edits, judged, made, run_tables
from test_transformers import make_adapter, make_model

from midb import Booster
from midb.errors import ColumnError, MidbError
from midb.generators import Sampling
from midb.hub import (
    push_adapter,
    push_dataset,
    push_eval_set,
    push_metric,
)
from midb.hub.readme import BEGIN, END
from midb.schema import PAIR, RAW


def stored(repo_id, kind="dataset", revision="main"):
    """Path → content in the repository."""
    repo = hub_process.hub.repos[kind, repo_id]
    files = repo["commits"][hub_process.hub.rev(repo, revision)]["files"]
    return {path: hub_process.hub.get(file["sha256"]) for path, file in files.items() if path != ".gitattributes"}


def readme(repo_id, kind="dataset", revision="main"):
    return stored(repo_id, kind, revision)["README.md"].decode()


def commits(repo_id, kind="dataset"):
    return len(hub_process.hub.repos[kind, repo_id]["order"])


def asked(command, pattern):
    return [path for verb, path, _ in hub_process.hub.log if verb == command and re.search(pattern, path)]


def written():
    return [path for verb, path, _ in hub_process.hub.log if verb not in ("GET", "HEAD") and "validate" not in path]


def loaded(repo_id, config=None, **how):
    return load_dataset(repo_id, config, download_mode="force_redownload", **how)


FEATURES = Features(
    {name: Value("string") for name in ("language", *PAIR, *RAW)}
    | {
        "id": Value("int32"),
        "kind": ClassLabel(names=["x", "y"]),
        "tags": List({"a": Value("float32")}),
        "maybe": Value("bool"),
    }
)


def typed(n, languages):
    rows = edits([(languages[i % len(languages)], f"a{i}", f"b\n{i} é ع") for i in range(n)])
    more = {
        "id": range(n),
        "kind": [i % 2 for i in range(n)],
        "maybe": [None, True, False] * (n // 3) + [None] * (n % 3),
    }
    for name, values in (more | {"tags": [[{"a": 0.5}] * (i % 3) for i in range(n)]}).items():
        rows = rows.add_column(name, list(values))
    return rows.select_columns(list(FEATURES)).cast(FEATURES)


# --- datasets --------------------------------------------------------------------------------------------------------


@at_hub
def test_a_dataset_loads_back_equal_by_language_whole_and_streamed():
    train, test = typed(31, ["fr", "ar", "ja"]), typed(7, ["ar"])
    pushed = push_dataset(DatasetDict(train=train, test=test), "tester/typed")
    assert pushed.commit.commit_url
    for code in ("fr", "ar", "ja"):
        mine = train.filter(lambda row, code=code: row["language"] == code)
        back = loaded("tester/typed", code)
        assert set(back) == ({"train", "test"} if code == "ar" else {"train"})
        assert back["train"].features == FEATURES
        assert back["train"][:] == mine[:]
        assert list(load_dataset("tester/typed", code, split="train", streaming=True)) == list(mine)
    assert loaded("tester/typed", "ar", split="test")[:] == test[:]
    whole = loaded("tester/typed")  # `all` is what nobody has to name
    order = sorted(train, key=lambda row: (["fr", "ar", "ja"].index(row["language"]), row["id"]))
    assert list(whole["train"]) == order
    assert list(load_dataset("tester/typed", "all", split="train", streaming=True)) == order
    assert whole["test"][:] == test[:]


@at_hub
def test_the_same_files_serve_a_language_and_all_of_them():
    push_dataset(boosted(), "tester/files")
    assert set(stored("tester/files")) == {
        "README.md", "distances.png", "fr/train-00000-of-00001.parquet", "ar/train-00000-of-00001.parquet"
    }  # fmt: skip
    head = readme("tester/files")
    assert (
        "config_name: all\n  data_files:\n  - split: train\n    path:\n    - fr/train-*\n    - ar/train-*\n  default: true"
        in head
    )
    assert 'load_dataset("tester/files", "ar"' in head
    assert "owner/name" not in head


@at_hub
def test_rows_without_a_language_are_in_all_alone():
    rows = typed(9, ["fr", ""])
    push_dataset(rows, "tester/some")
    whole = loaded("tester/some")
    assert sorted(whole["train"]["id"]) == list(range(9))
    assert loaded("tester/some", "fr")["train"]["id"] == [0, 2, 4, 6, 8]
    none = rows.remove_columns("language")
    push_dataset(none, "tester/none")
    assert loaded("tester/none", split="train")[:] == none[:]
    push_dataset(none, "tester/told", language="French")
    assert loaded("tester/told", "fr", split="train")[:] == none[:]


@at_hub
def test_several_files_for_one_language_keep_the_rows_in_order():
    rows = typed(50, ["fr"])
    pushed = push_dataset(rows, "tester/shards", max_shard_size=1500)
    assert sum(path.startswith("fr/train-") for path in pushed.files) > 2
    assert loaded("tester/shards", "fr", split="train")[:] == rows[:]
    push_dataset(rows, "tester/shards")
    assert sum("parquet" in path for path in stored("tester/shards")) == 1
    assert loaded("tester/shards", "fr", split="train")[:] == rows[:]


@at_hub
def test_pushing_the_same_again_changes_nothing():
    push_dataset(boosted(), "tester/twice")
    before, _ = commits("tester/twice"), hub_process.hub.log.clear()
    again = push_dataset(boosted(), "tester/twice")
    proposed = push_dataset(boosted(), "tester/twice", create_pr=True)
    assert commits("tester/twice") == before
    assert asked("PUT", "_lfs") == []
    assert again.commit is proposed.commit is None
    assert str(again).endswith("\nnothing changed; nothing was sent")
    assert str(proposed).endswith("\nnothing changed; nothing was sent, and no pull request was made")


@at_hub
def test_pushing_again_updates_and_keeps_what_people_wrote(tmp_path):
    push_dataset(boosted(30, ("fr", "ar")), "tester/again", license="mit")
    api = HfApi()
    edited = readme("tester/again").replace("tags:\n", "pretty_name: Ours\ntags:\n- own\n") + "\n## Thanks\n\nto all\n"
    edited = edited.replace("configs:\n", "configs:\n- config_name: extra\n  data_files: extra.parquet\n")
    Dataset.from_dict({"a": [1], "b": [2]}).to_parquet(tmp_path / "extra.parquet")
    extra = (tmp_path / "extra.parquet").read_bytes()
    for path, content in {"README.md": edited.encode(), "extra.parquet": extra, "LICENSE": b"mine"}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="tester/again", repo_type="dataset")
    pushed = push_dataset(boosted(40, ("fr", "ja")), "tester/again")
    assert pushed.removed == ("ar/train-00000-of-00001.parquet",)
    page = readme("tester/again")
    assert all(
        each in page for each in ("license: mit", "pretty_name: Ours", "- own", "## Thanks\n\nto all\n", "40 rows")
    )
    assert "config_name: ar" not in page
    assert stored("tester/again")["LICENSE"] == b"mine"
    assert loaded("tester/again", "extra", split="train")[:] == {"a": [1], "b": [2]}
    assert len(loaded("tester/again", "ja", split="train")) == 20
    assert len(loaded("tester/again", split="train")) == 40


@at_hub
def test_a_readme_that_was_there_first_stays_whole():
    api = HfApi()
    api.create_repo("tester/first", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=b"# By hand\n\nFor my friends.",
        path_in_repo="README.md",
        repo_id="tester/first",
        repo_type="dataset",
    )
    push_dataset(boosted(), "tester/first")
    assert "# By hand\n\nFor my friends.\n\n<!-- midb:begin dataset" in readme("tester/first")
    assert len(loaded("tester/first", "fr", split="train")) == 15


@at_hub
def test_a_pull_request_holds_the_whole_push_and_main_nothing_of_it():
    push_dataset(boosted(), "tester/pr")
    main = stored("tester/pr")
    pushed = push_dataset(boosted(50, ("fr", "it")), "tester/pr", create_pr=True)
    assert pushed.commit.pr_url.endswith("/datasets/tester/pr/discussions/1")
    assert stored("tester/pr") == main
    proposed = pushed.commit.pr_revision
    assert len(loaded("tester/pr", "it", split="train", revision=proposed)) == 25
    assert "ar/train-00000-of-00001.parquet" not in stored("tester/pr", revision=proposed)
    again = push_dataset(boosted(60, ("fr", "it")), "tester/pr", revision=proposed)  # more of the same pull request
    assert again.commit.pr_url is None
    assert len(loaded("tester/pr", "it", split="train", revision=proposed)) == 30


@at_hub
def test_a_proposal_to_a_branch_that_is_not_there_is_refused_before_anything_is_made():
    for revision, how in (("v2", {"create_pr": True}), ("refs/pr/7", {})):
        with pytest.raises(MidbError, match=f"tester/nothing has no .*{revision}.*; "):
            push_dataset(boosted(), "tester/nothing", revision=revision, **how)
    assert ("dataset", "tester/nothing") not in hub_process.hub.repos
    push_dataset(boosted(), "tester/something")
    with pytest.raises(
        MidbError, match="tester/something has no v2; give a branch or an open pull request that is there, leave out"
    ):
        push_dataset(boosted(), "tester/something", revision="v2", create_pr=True)


@at_hub
def test_a_line_that_no_midb_wrote_is_told():
    api = HfApi()
    api.create_repo("tester/here", repo_type="dataset")
    page = f"<!-- midb:begin here -->\n{END}\n".encode()
    api.upload_file(path_or_fileobj=page, path_in_repo="README.md", repo_id="tester/here", repo_type="dataset")
    with pytest.raises(MidbError, match="has a line <!-- midb:begin here -->, which this midb did not write; make it"):
        push_dataset(boosted(), "tester/here")


@at_hub
def test_a_wrong_token_is_told_as_the_hub_says_it_and_not_shown():
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as told:
        push_dataset(boosted(), "tester/wrong", token="hf_wrong")
    assert "hf_wrong" not in str(told.value)
    with pytest.raises(HfHubHTTPError, match=r"Invalid|401"):
        push_dataset(boosted(), "wrong", token="hf_wrong")


@at_hub
def test_a_branch_is_made_and_main_stays():
    push_dataset(boosted(), "tester/branch")
    main = stored("tester/branch")
    push_dataset(boosted(50), "tester/branch", revision="v2")
    assert stored("tester/branch") == main
    assert len(loaded("tester/branch", revision="v2", split="train")) == 50
    push_dataset(boosted(10), "tester/new", revision="v1")
    assert len(loaded("tester/new", revision="v1", split="train")) == 10


@at_hub
def test_private_is_private_and_a_public_repository_is_not_taken_for_one():
    push_dataset(boosted(), "tester/private", private=True)
    assert hub_process.hub.repos["dataset", "tester/private"]["private"]
    push_dataset(boosted(), "tester/private", private=True)
    push_dataset(boosted(), "tester/public")
    with pytest.raises(
        ValueError, match="tester/public is public, and private=True would not change that; make it private"
    ):
        push_dataset(boosted(40), "tester/public", private=True)


@at_hub
def test_a_name_alone_is_in_ones_own_namespace():
    assert push_dataset(boosted(), "short").repo_id == "tester/short"
    assert 'load_dataset("tester/short"' in readme("tester/short")


@at_hub
def test_what_somebody_else_put_there_is_not_overwritten():
    boosted().push_to_hub("tester/theirs")
    before = stored("tester/theirs")
    with pytest.raises(
        MidbError,
        match=r"tester/theirs is taken: it holds data/train.*, and its README.md has no lines that say that midb may",
    ):
        push_dataset(boosted(), "tester/theirs")
    assert stored("tester/theirs") == before
    HfApi().upload_file(
        path_or_fileobj=f"{BEGIN}\n{END}\n".encode(),
        path_in_repo="README.md",
        repo_id="tester/theirs",
        repo_type="dataset",
    )
    push_dataset(boosted(), "tester/theirs")  # with their consent
    assert stored("tester/theirs").keys() > before.keys()
    with pytest.raises(MidbError, match="tester/theirs holds edits, and this is an evaluation set; give another name"):
        push_eval_set(QUESTIONS, "tester/theirs")


QUESTIONS = Dataset.from_dict({"id": [1, 1], "language": ["fr", "ja"], "turns": [["a", "b"], ["c"]]})


@at_hub
def test_nobody_logged_in_a_foreign_namespace_and_a_bad_name_are_told_before_anything_is_sent():
    token = os.environ.pop("HF_TOKEN")
    try:
        with pytest.raises(
            MidbError, match="nobody is logged in to the Hub; run `hf auth login`, set HF_TOKEN, or give token="
        ):
            push_dataset(boosted(), "tester/no")
        push_dataset(boosted(), "tester/with-token", token="hf_given")
    finally:
        os.environ["HF_TOKEN"] = token
    with pytest.raises(MidbError, match=r"not write to google/no \(.*rights to create a dataset.*\); give") as told:
        push_dataset(boosted(), "google/no")
    assert "hf_secret" not in str(told.value)
    assert "create_pr" not in str(told.value)  # there is nothing to propose it to
    assert isinstance(told.value.__cause__, HfHubHTTPError)
    with pytest.raises(ValueError, match="Repo id"):
        push_dataset(boosted(), "a/b/c")
    assert not [name for _, name in hub_process.hub.repos if name.endswith("/no")]


@at_hub
def test_what_would_arrive_as_something_else_is_refused():
    with_files = boosted(10).add_column("picture", [None] * 10).cast_column("picture", Image())
    with pytest.raises(ColumnError, match=r"column 'picture' holds Image.* whose files are on this machine"):
        push_dataset(with_files, "tester/no")
    with pytest.raises(ColumnError, match="a language is called 'all'"):
        push_dataset(edits([("all", "a", "b")]), "tester/no")
    with pytest.raises(TypeError, match="cannot be pushed"):
        push_dataset(boosted().to_iterable_dataset(), "tester/no")
    assert ("dataset", "tester/no") not in hub_process.hub.repos


@at_hub
def test_a_push_that_dies_leaves_nothing_to_see_and_goes_on_from_there():
    push_dataset(boosted(30), "tester/half")
    before = stored("tester/half")
    rows = typed(40, ["fr", "ar", "ja", "it"])
    hub_process.hub.fail = lambda command, path: 403 if "/commit/" in path else None
    with pytest.raises(MidbError, match="told to fail"):
        push_dataset(rows, "tester/half")
    assert stored("tester/half") == before
    sent = len(asked("PUT", "_lfs"))
    assert sent >= 4
    hub_process.hub.fail = None
    push_dataset(rows, "tester/half")
    assert len(asked("PUT", "_lfs")) == sent  # what was there was not sent again
    assert len(loaded("tester/half", split="train")) == 40


@pytest.mark.slow
@at_hub
def test_a_killed_push_can_be_repeated(tmp_path):
    rows = typed(60, ["fr", "ar", "ja", "it"])
    rows.save_to_disk(tmp_path / "rows")
    script = (
        "import sys; from datasets import load_from_disk; from midb.hub import push_dataset\n"
        "push_dataset(load_from_disk(sys.argv[1]), 'tester/killed')"
    )

    def kill(command, path):
        if command == "PUT" and asked("PUT", "_lfs"):  # the first file is there, the second on its way
            child.kill()
            return 500

    hub_process.hub.fail = kill
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "rows")])
    assert child.wait() == -signal.SIGKILL
    first = asked("PUT", "_lfs")[0]
    assert not stored("tester/killed")
    hub_process.hub.fail = None
    push_dataset(rows, "tester/killed")
    assert asked("PUT", "_lfs").count(first) == 1  # what was there was not sent again
    assert sorted(loaded("tester/killed", split="train")["id"]) == list(range(60))


@at_hub
def test_what_a_person_writes_during_a_push_is_not_lost():
    push_dataset(boosted(30), "tester/race")
    once = []

    def write(command, path):
        if "/preupload/" in path and not once:
            once.append(path)
            repo = hub_process.hub.repos["dataset", "tester/race"]
            files = dict(repo["commits"][repo["branches"]["main"]]["files"])
            page = hub_process.hub.get(files["README.md"]["sha256"]) + b"\nWritten meanwhile.\n"
            files["README.md"] = {"sha256": hub_process.hub.put(page), "size": len(page), "oid": "x", "lfs": False}
            hub_process.hub.commit(repo, "main", "by hand", files)

    hub_process.hub.fail = write
    with pytest.raises(
        MidbError, match=r"tester/race was changed while .*A commit has happened since.*; nothing was sent: push"
    ):
        push_dataset(boosted(50), "tester/race")
    push_dataset(boosted(50), "tester/race")
    assert readme("tester/race").endswith("\nWritten meanwhile.\n")
    assert "50 rows" in readme("tester/race")


@at_hub
def test_a_dry_run_says_all_and_writes_nothing():
    token = os.environ.pop("HF_TOKEN")
    try:
        would = push_dataset(boosted(), "tester/dry", dry_run=True)
    finally:
        os.environ["HF_TOKEN"] = token
    assert written() == []
    did = push_dataset(boosted(), "tester/dry")
    assert (would.files, str(would.card)) == (did.files, str(did.card))
    assert str(did.card) == readme("tester/dry")
    assert {path: len(content) for path, content in stored("tester/dry").items() if path != "README.md"} == did.files
    assert "fr/train-00000-of-00001.parquet" in str(would)
    assert str(would).endswith("\nnothing was sent; tester/dry is not there yet, or not for who asked")
    assert "# Boosted instructions in Arabic and French" in str(would)


@at_hub
def test_a_dry_run_lists_what_would_be_replaced_and_removed():
    push_dataset(boosted(30, ("fr", "ar")), "tester/fewer")
    token = os.environ.pop("HF_TOKEN")
    try:
        anyone = push_dataset(boosted(20, ("fr",)), "tester/fewer", dry_run=True)
        private = push_dataset(boosted(20, ("fr",)), "alone", dry_run=True)
    finally:
        os.environ["HF_TOKEN"] = token
    hub_process.hub.log.clear()
    would = push_dataset(boosted(20, ("fr",)), "tester/fewer", dry_run=True)
    assert written() == []
    assert would.removed == anyone.removed == ("ar/train-00000-of-00001.parquet",)
    assert set(would.replaced) == {"README.md", "distances.png", "fr/train-00000-of-00001.parquet"}
    assert "removed  ar/train-00000-of-00001.parquet" in str(would)
    assert "fr/train-00000-of-00001.parquet  (is there)" in str(would)
    assert str(would).endswith("\nnothing was sent")
    assert "nobody is logged in" in str(private).splitlines()[-1]
    with pytest.raises(MidbError, match="holds edits, and this is an evaluation set"):
        push_eval_set(QUESTIONS, "tester/fewer", dry_run=True)
    did = push_dataset(boosted(20, ("fr",)), "tester/fewer")
    assert (did.removed, str(did.card)) == (would.removed, str(would.card))
    hub_process.hub.fail = lambda command, path: 502 if path.startswith("/api/datasets/") else None
    unknown = push_dataset(boosted(), "tester/fewer", dry_run=True)
    assert "nothing was sent; what is there is not known: the Hub does not tell (" in str(unknown).splitlines()[-1]


@at_hub
def test_a_dry_run_without_a_hub_says_so_in_a_line_and_the_rest(tmp_path):
    boosted().to_parquet(tmp_path / "edits.parquet")
    push = ("-m", "midb", "push", "dataset", tmp_path / "edits.parquet", "tester/no", "--dry-run")
    for nowhere in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        shown = run(*push, env={**os.environ, **nowhere}, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert "fr/train-00000-of-00001.parquet" in shown.stdout
        assert shown.stdout.splitlines()[-1].startswith("nothing was sent; the Hub cannot be reached (")


@at_hub
def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_sent():
    for dry_run in (True, False):
        with pytest.raises(MidbError, match=r'the Hub refuses the metadata of the card: .*"license.*; correct') as told:
            push_dataset(boosted(), "tester/bogus", license="bogus-license", dry_run=dry_run)
        assert "\n" not in str(told.value)
    assert written() == []
    hub_process.hub.fail = lambda command, path: 400 if "/commit/" in path else None
    with pytest.raises(MidbError, match="the Hub refuses the push: told to fail; correct what it names"):
        push_dataset(boosted(), "tester/bad")


@at_hub
def test_what_one_may_not_write_to_can_be_proposed():
    hub_process.hub.create("dataset", "acme/data")
    with pytest.raises(
        MidbError,
        match=r"not write to acme/data \(.*\); give another name, propose it with create_pr=True \(--create-pr\)",
    ) as told:
        push_dataset(boosted(), "acme/data")
    assert "\n" not in str(told.value)
    assert isinstance(told.value.__cause__, HfHubHTTPError)
    pushed = push_dataset(boosted(), "acme/data", create_pr=True)
    assert str(pushed).endswith("/datasets/acme/data/discussions/1")


@at_hub
def test_who_deleted_our_lines_is_told_what_is_so_and_what_to_do_works():
    rows = typed(50, ["fr", "ar"])
    push_dataset(rows, "tester/lines", max_shard_size=1500)
    page = readme("tester/lines")
    first = next(line for line in page.splitlines() if line.startswith(START))

    def write(text):
        HfApi().upload_file(
            path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="tester/lines", repo_type="dataset"
        )

    write(page.replace(first + "\n", "").replace(END + "\n", ""))
    with pytest.raises(MidbError, match=r"its README.md has no lines that say") as told:
        push_dataset(rows, "tester/lines")
    assert all(each in str(told.value) for each in (BEGIN, END))
    write(page.replace(first, BEGIN))
    push_dataset(rows, "tester/lines")
    assert loaded("tester/lines", "fr", split="train")[:] == rows.filter(lambda row: row["language"] == "fr")[:]
    assert len(loaded("tester/lines", split="train")) == 50
    assert readme("tester/lines").count("## Languages") == 1


@at_hub
def test_hostile_rows_load_back_as_they_were():
    from test_cards import HOSTILE

    rows = edits([("ar", text, text + text) for text in HOSTILE])
    push_dataset(rows, "tester/hostile")
    assert loaded("tester/hostile", "ar", split="train")[:] == rows[:]


@at_hub
def test_a_push_makes_the_card_of_the_rows_that_it_pushes(tmp_path):
    own = tmp_path / "own.md"
    own.write_text('{{ facts.rows }} rows of {{ license }}: load_dataset("{{ repo_id }}")')
    rows = made(boosted(60))
    pushed = push_dataset(rows, "tester/made", license="mit", source_datasets=["org/raw"], report=judged())
    assert run_tables(pushed.card)[0]["sampling"] == "max_tokens 512, seed 7, temperature 0.4, top_p 1.0"
    page = readme("tester/made")
    assert all(
        each in page for each in ("license: mit", "- org/raw", "## Judged by a model", 'load_dataset("tester/made"')
    )
    assert loaded("tester/made", "fr", split="train")["boost_settings"][0] == rows["boost_settings"][0]
    push_dataset(rows.select(range(4)), "tester/made", license="mit", template=own)
    assert '4 rows of mit: load_dataset("tester/made")' in readme("tester/made")
    assert "source_datasets" not in readme("tester/made")
    with pytest.raises(ValueError, match="the report is of 60 comparisons, and there are 30 rows"):
        push_dataset(boosted(), "tester/other", report=judged())
    assert ("dataset", "tester/other") not in hub_process.hub.repos


@at_hub
def test_a_configuration_that_others_pushed_into_ours_stays_with_its_files():
    push_dataset(boosted(), "tester/guests")
    guest = Dataset.from_dict({"a": [1, 2]})
    guest.push_to_hub("tester/guests", "extra", data_dir="extra")
    push_dataset(boosted(20, ("fr",)), "tester/guests")
    assert loaded("tester/guests", "extra", split="train")[:] == guest[:]
    assert "ar/train-00000-of-00001.parquet" not in stored("tester/guests")
    assert "config_name: ar" not in readme("tester/guests")


# --- evaluation sets -------------------------------------------------------------------------------------------------


def push_and_load(shared, languages):
    from midb import release

    for name, load in (("mt-bench", release.load_mt_bench), ("alpaca-eval", release.load_alpaca_eval)):
        questions = load(shared / "data/midb", languages)
        repo_id = f"tester/{name}-{len(languages or ())}"
        push_eval_set(questions, repo_id, license="apache-2.0")
        assert loaded(repo_id, split="test")[:] == questions[:]
        codes = list(dict.fromkeys(questions["language"]))
        for code in codes:
            mine = questions.filter(lambda row, code=code: row["language"] == code)
            back = loaded(repo_id, code, split="test")
            assert back.features == questions.features
            assert back[:] == mine[:]
        assert list(load_dataset(repo_id, code, split="test", streaming=True)) == list(mine)
        assert "license: apache-2.0" in readme(repo_id)
    return codes


@pytest.mark.shared
@at_hub
def test_both_published_sets_load_back_equal(shared):
    assert push_and_load(shared, ["th", "ar"]) == ["th", "ar"]


@pytest.mark.slow
@pytest.mark.shared
@at_hub
def test_both_published_sets_load_back_equal_in_all_sixteen_languages(shared):
    assert len(push_and_load(shared, None)) == 16


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    """As a training leaves it, with what must not be sent."""
    folder = make_adapter(tmp_path_factory.mktemp("adapters") / "mine", base)
    shutil.copy(base / "tokenizer.json", folder)
    shutil.copy(base / "tokenizer_config.json", folder)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"x")
    (folder / "README.md").write_text("---\nlicence: license\n---\n/home/me/models/base")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "optimizer.pt").write_bytes(b"x")
    return folder


def push_base(base, repo_id="org/base"):
    if ("model", repo_id) not in hub_process.hub.repos:
        HfApi().create_repo(repo_id)
        HfApi().upload_folder(repo_id=repo_id, folder_path=base)


@at_hub
def test_an_adapter_boosts_from_the_hub_as_from_its_folder(base, adapter):
    from peft import AutoPeftModelForCausalLM

    push_base(base)
    pushed = push_adapter(
        adapter,
        "tester/booster",
        base_model="org/base",
        license="mit",
    )
    assert set(pushed.files) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not any(str(base.parent).encode() in content for content in stored("tester/booster", "model").values())
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base
    )  # as it was
    assert "base_model: org/base" in readme("tester/booster", "model")
    question = [[{"role": "user", "content": "Hello"}]]
    local = Booster.from_pretrained(adapter).generator.generate(question, Sampling(max_tokens=6))
    from_hub = Booster.from_pretrained("tester/booster")
    assert from_hub.generator.name == "org/base+tester/booster"
    assert from_hub.generator.generate(question, Sampling(max_tokens=6)) == local
    model = AutoPeftModelForCausalLM.from_pretrained("tester/booster")
    assert model.peft_config["default"].base_model_name_or_path == "org/base"


@at_hub
def test_a_base_model_that_others_could_not_load_is_refused(base, adapter):
    with pytest.raises(
        MidbError,
        match=r"is the local path '.*', where nobody else has a model; give its Hub id: base_model='owner/name'",
    ):
        push_adapter(adapter, "tester/lost")
    with pytest.raises(
        MidbError, match="the base model org/nothing is not on the Hub, or not for this token; give its Hub id"
    ):
        push_adapter(adapter, "tester/lost", base_model="org/nothing")
    with pytest.raises(FileNotFoundError, match="holds no adapter_config"):
        push_adapter(base, "tester/lost", base_model="org/base")
    assert ("model", "tester/lost") not in hub_process.hub.repos


@at_hub
def test_an_adapter_pushed_again_leaves_no_file_of_the_last_one(base, adapter, tmp_path):
    push_base(base)
    push_adapter(adapter, "tester/update", base_model="org/base")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="tester/update")
    smaller = shutil.copytree(adapter, tmp_path / "smaller")
    (smaller / "tokenizer_config.json").unlink()
    pushed = push_adapter(smaller, "tester/update", base_model="org/base")
    assert pushed.removed == ("tokenizer_config.json",)
    assert {"notes.txt", "tokenizer.json"} <= stored("tester/update", "model").keys()


@at_hub
def test_an_adapter_is_not_pushed_over_a_model(base, adapter):
    push_base(base)
    with pytest.raises(MidbError, match="org/base is taken: it holds "):
        push_adapter(adapter, "org/base", base_model="org/base")


# --- metrics ---------------------------------------------------------------------------------------------------------


@at_hub
def test_a_metric_is_loaded_from_its_space():
    import evaluate

    for name in ("pairwise_judge", "judge_agreement"):
        push_metric(f"tester/{name}")
        assert hub_process.hub.repos["space", f"tester/{name}"]["sdk"] == "gradio"
    agreement = evaluate.load("tester/judge_agreement")
    assert agreement.compute(predictions1=["a", "b", "tie"], predictions2=["a", "b", "b"])[
        "agreement"
    ] == pytest.approx(2 / 3)
    judged = evaluate.load("tester/pairwise_judge").compute(
        predictions=["4", "no"], references=["5", "yes"], questions=["2+2?", "?"], verdicts=["a", "b"]
    )
    assert judged["win_score"] == 0.5
    with pytest.raises(ValueError, match="there is no metric 'my-judge'"):
        push_metric("tester/my-judge")


@at_hub
def test_a_space_keeps_what_people_wrote():
    push_metric("org/judge_agreement")
    page = readme("org/judge_agreement", "space").replace("emoji: 🤝", "emoji: 🦊") + "\nOurs.\n"
    HfApi().upload_file(
        path_or_fileobj=page.encode(), path_in_repo="README.md", repo_id="org/judge_agreement", repo_type="space"
    )
    push_metric("org/judge_agreement")
    assert readme("org/judge_agreement", "space").endswith("\nOurs.\n")
    assert "emoji: 🦊" in readme("org/judge_agreement", "space")
    assert Path(hf_hub_download("org/judge_agreement", "app.py", repo_type="space")).is_file()


# --- commands and the example ----------------------------------------------------------------------------------------


def run(*command, **how):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, **how)


@at_hub
def test_the_command_shows_first_and_then_sends(base, adapter, tmp_path):
    push_base(base)
    boosted().to_parquet(tmp_path / "edits.parquet")
    hub_process.hub.log.clear()
    push = (
        "-m",
        "midb",
        "push",
        "dataset",
        tmp_path / "edits.parquet",
        "tester/command",
        "--license",
        "mit",
        "--source-dataset",
        "org/raw",
    )
    shown = run(*push, "--dry-run")
    assert "license: mit" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("nothing was sent")
    assert written() == []
    sent = run(*push)
    assert sent.returncode == 0, sent.stderr
    assert "/datasets/tester/command/commit/" in sent.stdout
    assert len(sent.stdout.splitlines()) == 3
    assert sent.stdout.startswith("tester/command: 30 rows in 2 languages\n4 files, ")
    assert len(loaded("tester/command", "fr", split="train")) == 15
    refused = run("-m", "midb", "push", "adapter", adapter, "tester/command-booster")
    assert refused.returncode == 1
    assert refused.stderr.startswith("midb: the adapter's base model is the local path")
    assert (
        run(
            "-m", "midb", "push", "adapter", adapter, "tester/command-booster", "--base-model", "org/base"
        ).returncode
        == 0
    )
    assert run("-m", "midb", "push", "metric", "org/pairwise_judge").returncode == 0
    assert 'evaluate.load("org/pairwise_judge")' in readme("org/pairwise_judge", "space")


@at_hub
def test_a_hub_that_is_not_there_and_a_broken_template_are_told_in_a_line(tmp_path):
    boosted().to_parquet(tmp_path / "edits.parquet")
    nowhere = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    push = ("-m", "midb", "push", "dataset", tmp_path / "edits.parquet", "tester/no")
    lost = run(*push, env=nowhere)
    assert (lost.returncode, lost.stderr.splitlines()[-1][:35]) == (1, "midb: the Hub cannot be reached ([E")
    assert "Traceback" not in lost.stderr
    (tmp_path / "own.md").write_text("{{ nothing }}")
    broken = run(*push, "--template", tmp_path / "own.md", "--dry-run")
    assert "own.md cannot be filled in ('nothing' is undefined); mend it" in broken.stderr
    assert "Traceback" not in broken.stderr


@at_hub
def test_the_command_states_what_an_evaluation_set_was_translated_from(tmp_path):
    QUESTIONS.to_parquet(tmp_path / "questions.parquet")
    push = ("-m", "midb", "push", "eval-set", tmp_path / "questions.parquet", "tester/set", "--dry-run")
    assert "source_datasets:\n- org/english" in run(*push, "--source-dataset", "org/english").stdout


@pytest.mark.shared
@at_hub
def test_the_example_publishes_both_sets(shared):
    example = Path(__file__).parents[1] / "examples/publish_eval_sets.py"
    shown = run(example, "tester", "--files", shared / "data/midb", "--dry-run")
    assert shown.stdout.count("nothing was sent") == 2
    assert ("dataset", "tester/mt-bench-16-languages") not in hub_process.hub.repos
    done = run(example, "tester", "--files", shared / "data/midb")
    assert done.returncode == 0, done.stderr
    assert len(loaded("tester/mt-bench-16-languages", "th", split="test")) == 77
    assert len(loaded("tester/alpaca-eval-16-languages", "el", split="test")) == 802
