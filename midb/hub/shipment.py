"""One push: look at what the repository holds, gather files, and send them with the card in one commit.

Nothing is visible before that commit, so a push that dies leaves the repository as it was; what it uploaded until then the
Hub keeps by its content, and the same push again does not send it again. Knows repositories and files, not what is in them.
"""

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midb.errors import MidbError
from midb.hub.cards import with_repo_id
from midb.hub.readme import BEGIN, END, Owned, merge, read_owned

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, RepoCard

README = "README.md"
# What may lie in a repository that is still nobody's: a person's own text and pictures.
_HARMLESS = (".gitattributes", ".gitignore", README, "LICENSE*", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp")
_WHAT = {"dataset": "edits", "eval_set": "an evaluation set", "adapter": "an adapter", "metric": "a metric"}
_UNREACHED = "the Hub cannot be reached"
Kind = Literal["dataset", "eval_set", "adapter", "metric"]


@dataclass(frozen=True)
class Pushed:
    """What a push sent, or with `dry_run` would send. Print it to see the card and the files.

    Attributes:
        repo_id: Where.
        card: As it is in the repository now, or with `dry_run` would be.
        files: Path → bytes, the card apart.
        removed: Files of an earlier push that this one has no more.
        commit: With `commit_url`, `oid` and, for a pull request, `pr_url`; None where nothing was sent.
        replaced: Files that were there under the same name.
        told: What came of it.
    """

    repo_id: str
    card: "RepoCard"
    files: dict[str, int]
    removed: tuple[str, ...] = ()
    commit: "CommitInfo | None" = None
    replaced: tuple[str, ...] = ()
    told: str = "nothing was sent"

    def __str__(self) -> str:
        sizes = {README: len(str(self.card).encode()), **self.files}
        lines = [f"{size:>14,}  {path}{'  (is there)' * (path in self.replaced)}" for path, size in sizes.items()]
        lines += [f"{'removed':>14}  {path}" for path in self.removed]
        return "\n".join(
            [str(self.card).rstrip(), "", f"{'bytes':>14}  files of {self.repo_id}", *lines, "", self.told]
        )


@dataclass(frozen=True)
class Target:
    """Where a push goes, and how.

    Args:
        repo_id: `owner/name`, or a name in one's own namespace.
        kind: What is pushed.
        revision: A branch, made where it is missing; None is `main`.
        private: Of a new repository; one that is there must agree where it would be seen by others.
        create_pr: Propose the whole push as one pull request.
        token: In place of the one that is logged in.
        dry_run: Send nothing, and ask only what is there.
    """

    repo_id: str
    kind: Kind
    revision: str | None = None
    private: bool | None = None
    create_pr: bool = False
    token: str | None = field(default=None, repr=False)
    dry_run: bool = False

    @property
    def repo_type(self) -> str:
        """In the words of the Hub."""
        return {"adapter": "model", "metric": "space"}.get(self.kind, "dataset")


class Shipment:
    """A push under way. Making one looks at the repository and changes nothing.

    Args:
        target: Where it goes.

    Raises:
        MidbError: Nobody is logged in, the repository holds something else, or there is no such branch to propose to.
        ValueError: The repository's name cannot be, or it is public and was to be private.
    """

    def __init__(self, target: Target) -> None:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(target.repo_id)
        self.target, self.repo_id = target, target.repo_id
        self.files: dict[str, int] = {}
        self._operations: list[CommitOperationAdd] = []
        self._head: str | None = None
        self._there: list[str] = []
        self._readme: str | None = None
        self._owned = Owned(False)
        self._unseen = ""  # why a dry run does not know what is there
        self.api = _api(target.token, target.dry_run)
        if target.dry_run:
            self._look_if_possible()
        else:
            self._look()

    def begin(self, card: "RepoCard") -> None:
        """Make the repository and the branch, where they are missing; whether the card fits in is told before."""
        target = self.target
        self._validate(merge(self._readme, card, target.kind))
        if target.dry_run:
            return
        space: dict[str, Any] = {"space_sdk": "gradio"} if target.repo_type == "space" else {}
        with self._refusals():
            self.api.create_repo(
                self.repo_id, repo_type=target.repo_type, private=target.private, exist_ok=True, **space
            )
            if target.revision and not target.create_pr and not target.revision.startswith("refs/"):
                self.api.create_branch(self.repo_id, branch=target.revision, repo_type=target.repo_type, exist_ok=True)
        if self._head is None:
            self._look()  # at what the Hub has put there itself

    def add(self, path: str, file: Path | bytes, *, is_draft: bool = False) -> None:
        """Send a file ahead of the commit.

        Args:
            path: In the repository.
            file: Its content, or where that is.
            is_draft: Made for this push alone: gone from the disk as soon as the Hub has it.
        """
        from huggingface_hub import CommitOperationAdd

        self.files[path] = len(file) if isinstance(file, bytes) else file.stat().st_size
        operation = CommitOperationAdd(path, file)
        if not self.target.dry_run:
            self._send(operation)
        if is_draft and isinstance(file, Path) and (self.target.dry_run or operation.path_or_fileobj == b""):
            file.unlink()

    def _send(self, operation: "CommitOperationAdd") -> None:
        with self._refusals():
            self.api.preupload_lfs_files(
                self.repo_id,
                [operation],
                repo_type=self.target.repo_type,
                revision=self.target.revision,
                create_pr=self.target.create_pr,
            )
        self._operations.append(operation)

    def finish(
        self,
        card: "RepoCard",
        message: str,
        *,
        configs: tuple[str, ...] = (),
        is_stale: Callable[[str, Owned], bool] | None = None,
    ) -> Pushed:
        """Commit the files and the card, with what people wrote into the one that is there.

        Args:
            card: Ours.
            message: Of the commit.
            configs: The dataset configurations that this push writes.
            is_stale: Whether a file of the repository is from an earlier push, and may go if this one has it no more.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        target = self.target
        merged = merge(self._readme, with_repo_id(card, self.repo_id), target.kind, configs)
        owned = self._owned.by_consent(configs)
        stale = [path for path in self._there if path not in self.files and is_stale and is_stale(path, owned)]
        removed, replaced = tuple(stale), tuple(path for path in self._there if path in (README, *self.files))
        if target.dry_run:
            told = f"nothing was sent{self._unseen and f'; {self._unseen}'}"
            return Pushed(self.repo_id, merged, self.files, removed, None, replaced, told)
        readme = CommitOperationAdd(README, str(merged).encode())
        with self._refusals():
            commit = self.api.create_commit(
                self.repo_id,
                [readme, *self._operations, *map(CommitOperationDelete, removed)],
                commit_message=message,
                repo_type=target.repo_type,
                revision=target.revision,
                create_pr=target.create_pr,
                # What a person writes meanwhile is not lost: the Hub refuses, and the push is repeated.
                parent_commit=self._head,
            )
        if commit.oid == self._head:
            told = "nothing changed; nothing was sent" + ", and no pull request was made" * target.create_pr
            return Pushed(self.repo_id, merged, self.files, removed, None, replaced, told)
        told = f"sent: {commit.pr_url or commit.commit_url}"
        return Pushed(self.repo_id, merged, self.files, removed, commit, replaced, told)

    def _validate(self, card: "RepoCard") -> None:
        """Let the Hub read the metadata before anything is sent: it alone knows its lists, such as that of licences."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        if self.target.dry_run and self._unseen.startswith(_UNREACHED):
            return
        try:
            card.validate(repo_type=self.target.repo_type)
        except ValueError as error:
            said = " ".join(str(error).split())
            raise MidbError(f"the Hub refuses the metadata of the card: {said:.400}; mend what it names") from error
        except (httpx.TransportError, HfHubHTTPError, OfflineModeIsEnabled):
            if not self.target.dry_run:
                raise

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Tell in a line what to do where the Hub lets nobody write, or not this."""
        from huggingface_hub.errors import BadRequestError, HfHubHTTPError

        try:
            yield
        except BadRequestError as error:
            said = " ".join((error.server_message or str(error)).split())
            raise MidbError(f"the Hub refuses the push: {said:.400}; mend what it names") from error
        except HfHubHTTPError as error:
            if error.response.status_code != 403:
                raise
            # A pull request needs a repository to be made to.
            propose = ", propose it with create_pr=True (--create-pr)" * (
                self._head is not None and not self.target.create_pr
            )
            said = " ".join((error.server_message or "").split())
            raise MidbError(
                f"your token may not write to {self.repo_id} ({said:.200}); give another name{propose}, or a token that may"
            ) from error

    def _look_if_possible(self) -> None:
        """As a push does, but where the Hub does not answer, or not to this token, that is told and no error."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        if "/" not in self.repo_id and not (self.target.token or get_token()):
            self._unseen = "what is there is not known: nobody is logged in, so that the name is nobody's"
            return
        try:
            self._look()
        except (httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            self._unseen = f"{_UNREACHED} ({' '.join(str(error).split()):.120}), so that what is there is not known"
        except HfHubHTTPError as error:
            said = " ".join((error.server_message or str(error)).split())
            self._unseen = f"what is there is not known: the Hub does not tell ({said:.120})"
        else:
            if self._head is None:
                self._unseen = f"{self.repo_id} is not there yet, or not for who asked"

    def _look(self) -> None:
        """What is there: its newest commit, its files, and its README."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        target = self.target
        if "/" not in self.repo_id:
            self.repo_id = f"{self.api.whoami()['name']}/{self.repo_id}"
        try:
            try:
                info = self.api.repo_info(self.repo_id, repo_type=target.repo_type, revision=target.revision)
            except RevisionNotFoundError:  # a branch that will begin at main
                self._check_branch()
                info = self.api.repo_info(self.repo_id, repo_type=target.repo_type)
        except RepositoryNotFoundError:
            if not target.dry_run:  # it may be there for who pushes
                self._check_branch()
            return
        if target.private and not info.private:
            raise ValueError(
                f"{self.repo_id} is public, and private=True would not change that; make it private in its settings first, or "
                "give another name"
            )
        self._head = info.sha
        self._there = self.api.list_repo_files(self.repo_id, repo_type=target.repo_type, revision=info.sha)
        if README in self._there:
            path = self.api.hf_hub_download(self.repo_id, README, repo_type=target.repo_type, revision=info.sha)
            self._readme = Path(path).read_bytes().decode("utf-8", "replace")
        self._owned = read_owned(self._readme)
        self._check_free()

    def _check_branch(self) -> None:
        """Refuse, before anything is made, a branch that is not there and that this push would not make."""
        revision = self.target.revision
        if revision in (None, "main"):
            return
        if revision.startswith("refs/"):
            raise MidbError(f"{self.repo_id} has no {revision}; give a pull request that is open, or a branch")
        if self.target.create_pr:
            raise MidbError(
                f"{self.repo_id} has no branch {revision}, so that nothing can be proposed for it; leave out revision=, which "
                "proposes to main, or create_pr=, which makes the branch"
            )

    def _check_free(self) -> None:
        kind, owned = self.target.kind, self._owned
        if owned.kind and owned.kind not in _WHAT:
            raise MidbError(
                f"{README} of {self.repo_id} has a line <!-- midb:begin {owned.kind} -->, which this midb did not write; make it "
                f"{BEGIN}, or upgrade midb"
            )
        if owned.is_ours and owned.kind not in ("", kind):
            raise MidbError(f"{self.repo_id} holds {_WHAT[owned.kind]}, and this is {_WHAT[kind]}; give another name")
        others = [path for path in self._there if not any(fnmatch.fnmatch(path, each) for each in _HARMLESS)]
        if others and not owned.is_ours:
            raise MidbError(
                f"{self.repo_id} is taken: it holds {', '.join(others[:3])}{' and more' * (len(others) > 3)}, and its {README} has "
                f"no lines that say that midb may write there; give another name, or put the line {BEGIN} and below it {END} into "
                f"its {README}, around what midb wrote where it wrote some: the next push replaces what is between them, and "
                "configurations of the same names with their files"
            )


def _api(token: str | None, dry_run: bool) -> "HfApi":
    from huggingface_hub import HfApi, get_token

    if not dry_run and not (token or get_token()):
        raise MidbError(
            "nobody is logged in to the Hub; run `hf auth login`, set HF_TOKEN, or give token= (one that may write)"
        )
    return HfApi(token=token)
