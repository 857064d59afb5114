"""One push: look at what the repository holds, gather files, and send them with the card in one commit.

Nothing is visible before that commit, so a push that dies leaves the repository as it was; what it uploaded until then the
Hub keeps by its content, and the same push again does not send it again. Knows repositories and files, not what is in them.
"""

import fnmatch
from collections.abc import Callable
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
Kind = Literal["dataset", "eval_set", "adapter", "metric"]


@dataclass(frozen=True)
class Pushed:
    """What a push sent, or with `dry_run` would send. Print it to see the card and the files.

    Attributes:
        repo_id: Where.
        card: As it is in the repository now; with `dry_run` without what people wrote there.
        files: Path → bytes, the card apart.
        removed: Files of an earlier push that this one has no more.
        commit: With `commit_url`, `oid` and, for a pull request, `pr_url`; None with `dry_run`.
    """

    repo_id: str
    card: "RepoCard"
    files: dict[str, int]
    removed: tuple[str, ...] = ()
    commit: "CommitInfo | None" = None

    def __str__(self) -> str:
        lines = [f"{size:>14,}  {path}" for path, size in {README: len(str(self.card).encode()), **self.files}.items()]
        lines += [f"{'removed':>14}  {path}" for path in self.removed]
        told = f"sent: {self.commit.pr_url or self.commit.commit_url}" if self.commit else "nothing was sent"
        return "\n".join([str(self.card).rstrip(), "", f"{'bytes':>14}  files of {self.repo_id}", *lines, "", told])


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
        dry_run: Ask and send nothing.
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
        if not target.dry_run:
            self.api = _api(target.token)
            self._look()

    def begin(self, card: "RepoCard") -> None:
        """Make the repository and the branch, where they are missing; whether the card fits in is told before."""
        target = self.target
        merge(self._readme, card, target.kind)
        if target.dry_run:
            return
        space: dict[str, Any] = {"space_sdk": "gradio"} if target.repo_type == "space" else {}
        self.api.create_repo(self.repo_id, repo_type=target.repo_type, private=target.private, exist_ok=True, **space)
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
        if target.dry_run:
            return Pushed(self.repo_id, merged, self.files)
        removed = [path for path in self._there if path not in self.files and is_stale and is_stale(path, self._owned)]
        readme = CommitOperationAdd(README, str(merged).encode())
        commit = self.api.create_commit(
            self.repo_id,
            [readme, *self._operations, *map(CommitOperationDelete, removed)],
            commit_message=message,
            repo_type=target.repo_type,
            revision=target.revision,
            create_pr=target.create_pr,
            parent_commit=self._head,  # what a person writes meanwhile is not lost: the Hub refuses, and the push is repeated
        )
        return Pushed(self.repo_id, merged, self.files, tuple(removed), commit)

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
                f"{self.repo_id} is taken: it holds {', '.join(others[:3])}{' and more' * (len(others) > 3)}, which midb did not "
                f"push; give another name, or, to let midb write there, put the lines {BEGIN} and {END} into its {README}"
            )


def _api(token: str | None) -> "HfApi":
    from huggingface_hub import HfApi, get_token

    if not (token or get_token()):
        raise MidbError(
            "nobody is logged in to the Hub; run `hf auth login`, set HF_TOKEN, or give token= (one that may write)"
        )
    return HfApi(token=token)
