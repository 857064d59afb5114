"""One push: look at what the repository holds, and send files and card in one commit.

Nothing is visible before that commit, so a push that dies leaves the repository as it was; what it uploaded until then the
Hub keeps by its content, and the same push again does not send it again. `HfApi.upload_folder` splits a large folder into
several commits, of which `parent_commit` protects only the first; so files are sent with `HfApi.create_commit`.

Knows repositories and files, not what is in them.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midb.errors import MidbError
from midb.hub.readme import BEGIN, END, merge, read_kind

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, RepoCard

README = "README.md"
# What may lie in a repository that is still nobody's: a person's own text and pictures.
_HARMLESS = (".gitattributes", ".gitignore", README, "LICENSE*", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp")
_WHAT = {"dataset": "edits", "eval_set": "an evaluation set", "adapter": "an adapter", "metric": "a metric"}
_UNREACHED = "the Hub cannot be reached"


@dataclass(frozen=True)
class Pushed:
    """What a push sent, or with `dry_run` would send. Print it to see where, what and how much; of a dry run also the card.

    Attributes:
        repo_id: Where.
        card: As it is in the repository now, or with `dry_run` would be.
        files: Path → bytes, the card apart.
        removed: Files of an earlier push that this one has no more.
        replaced: Files that were there under the same name.
        commit: With `commit_url`, `oid` and, for a pull request, `pr_url`; None where nothing was sent.
        what: What was pushed, in a few words.
        told: What came of it.
        dry_run: Whether it was one.
    """

    repo_id: str
    card: "RepoCard"
    files: dict[str, int]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    commit: "CommitInfo | None"
    what: str
    told: str
    dry_run: bool

    def __str__(self) -> str:
        sizes = {README: len(str(self.card).encode()), **self.files}
        if not self.dry_run:
            removed = f", {len(self.removed)} removed" * bool(self.removed)
            return (
                f"{self.repo_id}: {self.what}\n{len(sizes)} files, {sum(sizes.values()):,} bytes{removed}\n{self.told}"
            )
        lines = [f"{size:>14,}  {path}{'  (is there)' * (path in self.replaced)}" for path, size in sizes.items()]
        lines += [f"{'removed':>14}  {path}" for path in self.removed]
        return "\n".join(
            [str(self.card).rstrip(), "", f"{'bytes':>14}  files of {self.repo_id}", *lines, "", self.told]
        )


@dataclass(eq=False)
class Shipment:
    """A push under way. Making one looks at the repository and changes nothing.

    Args:
        repo_id: `owner/name`, or a name in one's own namespace.
        kind: What is pushed.
        revision: A branch, made where it is missing; None is `main`.
        private: Of a new repository; one that is there must agree where it would be seen by others.
        create_pr: Propose the whole push as one pull request.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and ask only what is there.

    Attributes:
        there: The repository's files.
        readme: Its README; None where there is none.
        earlier: The kind that an earlier push wrote; empty where a person put the bare lines, None where there are none.

    Raises:
        MidbError: Nobody is logged in, the repository holds something else, or there is no such branch to propose to.
        ValueError: The repository's name cannot be, or it is public and was to be private.
    """

    repo_id: str
    kind: Literal["dataset", "eval_set", "adapter", "metric"]
    revision: str | None = None
    private: bool | None = None
    create_pr: bool = False
    token: str | None = field(default=None, repr=False)
    dry_run: bool = False
    there: list[str] = field(init=False, default_factory=list)
    readme: str | None = field(init=False, default=None)
    earlier: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(self.repo_id)
        if not self.dry_run and not (self.token or get_token()):
            raise MidbError(
                "nobody is logged in to the Hub; run `hf auth login`, set HF_TOKEN, or give token= (one that may write)"
            )
        self.api = HfApi(token=self.token)
        self.repo_type = {"adapter": "model", "metric": "space"}.get(self.kind, "dataset")
        self._head: str | None = None
        self._unseen = ""  # why a dry run does not know what is there
        if self.dry_run:
            self._look_if_possible()
        else:
            self._look()

    def begin(self, card: "RepoCard") -> None:
        """Check that the card fits in, and make the repository and the branch, where they are missing."""
        self._validate(merge(self.readme, card))
        if self.dry_run:
            return
        space: dict[str, Any] = {"space_sdk": "gradio"} if self.repo_type == "space" else {}
        with self._refusals():
            self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True, **space)
            if self.revision and not self.create_pr and not self.revision.startswith("refs/"):
                self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True)
        if self._head is None:
            self._look()  # at what the Hub has put there itself

    def send(
        self, card: "RepoCard", files: Mapping[str, Path | bytes], what: str, *, earlier_files: Sequence[str] = ()
    ) -> Pushed:
        """Commit the files and the card, with what people wrote into the one that is there.

        Args:
            card: Ours.
            files: Path in the repository → content, or where it is.
            what: A few words for the commit's message.
            earlier_files: Files of an earlier push: removed where this one does not have them.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        merged = merge(self.readme, card)
        sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()}
        removed = tuple(path for path in earlier_files if path not in files)
        replaced = tuple(path for path in self.there if path in (README, *files))
        commit, told = None, f"nothing was sent{self._unseen and f'; {self._unseen}'}"
        if not self.dry_run:
            added = [CommitOperationAdd(path, file) for path, file in {README: str(merged).encode(), **files}.items()]
            with self._refusals():
                commit = self.api.create_commit(
                    self.repo_id,
                    [*added, *map(CommitOperationDelete, removed)],
                    commit_message=f"midb: {what}",
                    repo_type=self.repo_type,
                    revision=self.revision,
                    create_pr=self.create_pr,
                    parent_commit=self._head,  # what is written meanwhile is not lost: the Hub refuses
                )
            told = f"sent: {commit.pr_url or commit.commit_url}"
            if commit.oid == self._head:
                commit = None
                told = "nothing changed; nothing was sent" + ", and no pull request was made" * self.create_pr
        return Pushed(self.repo_id, merged, sizes, removed, replaced, commit, what, told, self.dry_run)

    def _validate(self, card: "RepoCard") -> None:
        """Let the Hub read the metadata before anything is sent: it alone knows its lists, such as that of licences."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        if self.dry_run and self._unseen.startswith(_UNREACHED):
            return
        try:
            card.validate(repo_type=self.repo_type)
        except ValueError as error:
            raise MidbError(
                f"the Hub refuses the metadata of the card: {_line(error, 400)}; correct what it names"
            ) from error
        except (httpx.TransportError, HfHubHTTPError, OfflineModeIsEnabled):
            if not self.dry_run:
                raise

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say in one line what to do where the Hub lets nobody write, or not this."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            match error.response.status_code:
                case 400:
                    told = f"the Hub refuses the push: {_line(error, 400)}; correct what it names"
                case 403:
                    # A pull request needs a repository to be made to.
                    can_propose = self._head is not None and not self.create_pr
                    propose = ", propose it with create_pr=True (--create-pr)" * can_propose
                    told = f"your token may not write to {self.repo_id} ({_line(error, 200)}); give another name{propose}, or a token that may"
                case 412:
                    told = f"{self.repo_id} was changed while this push was under way ({_line(error, 200)}); nothing was sent: push again"
                case _:
                    raise
            raise MidbError(told) from error

    def _look_if_possible(self) -> None:
        """As a push does, but where the Hub does not answer, or not to this token, that is told and no error."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        if "/" not in self.repo_id and not (self.token or get_token()):
            self._unseen = "what is there is not known: nobody is logged in, so that the name is nobody's"
            return
        try:
            self._look()
        except (httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            self._unseen = f"{_UNREACHED} ({_line(error, 120)}), so that what is there is not known"
        except HfHubHTTPError as error:
            self._unseen = f"what is there is not known: the Hub does not tell ({_line(error, 120)})"
        else:
            if self._head is None:
                self._unseen = f"{self.repo_id} is not there yet, or not for who asked"

    def _look(self) -> None:
        """What is there: its newest commit, its files, and its README."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        if "/" not in self.repo_id:
            self.repo_id = f"{self.api.whoami()['name']}/{self.repo_id}"
        try:
            try:
                info = self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=self.revision)
            except RevisionNotFoundError:  # a branch that will begin at main
                self._check_branch()
                info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except RepositoryNotFoundError:
            if not self.dry_run:  # it may be there for who pushes
                self._check_branch()
            return
        if self.private and not info.private:
            raise ValueError(
                f"{self.repo_id} is public, and private=True would not change that; make it private in its settings first, or "
                "give another name"
            )
        self._head = info.sha
        self.there = self.api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=info.sha)
        if README in self.there:
            path = self.api.hf_hub_download(self.repo_id, README, repo_type=self.repo_type, revision=info.sha)
            self.readme = Path(path).read_bytes().decode("utf-8", "replace")
        self.earlier = read_kind(self.readme)
        self._check_free()

    def _check_branch(self) -> None:
        """Refuse, before anything is made, a branch that is not there and that this push would not make."""
        if self.revision in (None, "main") or not (self.create_pr or self.revision.startswith("refs/")):
            return
        raise MidbError(
            f"{self.repo_id} has no {self.revision}; give a branch or an open pull request that is there, leave out revision= to "
            "use main, or leave out create_pr= to make the branch"
        )

    def _check_free(self) -> None:
        if self.earlier and self.earlier not in _WHAT:
            raise MidbError(
                f"{README} of {self.repo_id} has a line <!-- midb:begin {self.earlier} -->, which this midb did not write; make it "
                f"{BEGIN}, or upgrade midb"
            )
        if self.earlier and self.earlier != self.kind:
            raise MidbError(
                f"{self.repo_id} holds {_WHAT[self.earlier]}, and this is {_WHAT[self.kind]}; give another name"
            )
        others = [path for path in self.there if not any(fnmatch.fnmatch(path, each) for each in _HARMLESS)]
        if others and self.earlier is None:
            raise MidbError(
                f"{self.repo_id} is taken: it holds {', '.join(others[:3])}{' and more' * (len(others) > 3)}, and its {README} has "
                f"no lines that say that midb may write there; give another name, or put the line {BEGIN} and below it {END} into "
                f"its {README}, around what midb wrote where it wrote some: the next push replaces what is between them, and "
                "configurations of the same names with their files"
            )


def _line(error: Exception, most: int) -> str:
    """The Hub's own words, or the error's, on one line."""
    return " ".join((getattr(error, "server_message", None) or str(error)).split())[:most]
