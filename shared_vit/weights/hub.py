"""Files of a repository on the Hugging Face hub, by the name `hf:OWNER/NAME[@REVISION][/FILE]`.

Cache, tokens, end point and offline mode are those of `huggingface_hub`, which is imported when a
name is first used. Every file comes from one commit.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn
from urllib.parse import unquote

from shared_vit.errors import UserError
from shared_vit.files import open_regular

_START = "hf:"
_FORM = "hf:OWNER/NAME[@REVISION][/FILE]"
_PART = r"[\w.-]+"
# A revision with a slash is written with %2F, but for the hub's own references.
_NAME = re.compile(
    rf"hf:({_PART}/{_PART})(?:@(refs/(?:pr/\d+|convert/{_PART})|[^/@]+))?(?:/(.+))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Origin:
    """Where weights were downloaded from, down to their bytes."""

    name: str  # as given
    pinned: str  # the same, at the commit
    commit: str
    path: Path  # the file that was named, or the folder of the commit, in the cache
    sha256: dict[str, str]  # by the name of each weight file

    def describe(self) -> str:
        """Commit and checksums, for a message."""
        sums = ", ".join(
            digest if len(self.sha256) == 1 else f"{digest} of {name}"
            for name, digest in self.sha256.items()
        )
        return f"revision {self.commit}, sha256 {sums}"


def is_name(path: str | os.PathLike) -> bool:
    """Whether a path means a repository on the hub."""
    return str(path).startswith(_START)


def pinned(name: str, commit: str) -> str:
    """The name at a commit."""
    repository, _, file = _parsed(name)
    return f"{_START}{repository}@{commit}" + (f"/{file}" if file else "")


def _parsed(name: str) -> tuple[str, str, str]:
    """`(OWNER/NAME, revision, file or "")`."""
    found = _NAME.fullmatch(name.rstrip("/"))
    if not found:
        raise UserError(f"{name} is no name of a repository: write {_FORM}")
    repository, revision, file = found[1], unquote(found[2] or "main"), found[3] or ""
    if any(part in ("", ".", "..") for part in (file or "x").split("/")) or "\\" in file:
        raise UserError(f"{name}: {file} is no file of a repository: write {_FORM}")
    return repository, revision, file


class Repository:
    """The files of one commit, downloaded one at a time. Raises UserError for a name of another
    form, and where huggingface_hub is missing."""

    def __init__(self, name: str):
        self.name = name
        self.repository, self.revision, self.file = _parsed(name)
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError as error:
            raise UserError(
                f"{name} is on the Hugging Face hub, and the package huggingface_hub, which "
                f"downloads, cannot be imported ({error}): pip install 'twinvit[hub]'"
            ) from error
        self._hub: ModuleType = huggingface_hub
        self._sha256: dict[Path, str] = {}  # of files that were compared with it

    def need(self, file: str) -> Path:
        """A file, in the cache. Raises UserError where it cannot be had."""
        path = self.find(file)
        if path is None:
            raise UserError(
                f"{self.repository} has no file {file} at revision {self.revision}: "
                f"{self._page()}/tree/{self.revision} lists its files"
            )
        return path

    def find(self, file: str) -> Path | None:
        """A file, in the cache; None where the repository has none of this name. Raises UserError
        where it cannot be had for another reason, or is not what the hub says it is."""
        errors = self._hub.errors
        if _COMMIT.fullmatch(self.revision) and self._known_missing(file):
            return None
        try:
            path = Path(self._hub.hf_hub_download(self.repository, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            if self._known_missing(file):
                return None
            self._check_refused(file, error.__cause__)
            self._unreachable(file, error)
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.repository} is gated: request access on {self._page()}, then log in "
                "(hf auth login) or set HF_TOKEN to a token of that account"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"there is no repository {self.repository} on {self._end_point()}, or it is "
                "private: check the name; for a private one log in (hf auth login) or set HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{self.repository} has no revision {self.revision}: name a branch, a tag or a "
                f"commit of {self._page()}/commits/main"
            ) from error
        except errors.HFValidationError as error:
            raise UserError(f"{self.name}: {_first_line(error)}; write {_FORM}") from error
        # The first base is the base of the HTTP library's errors, which is another one in each
        # major version; RuntimeError is hf_xet's.
        except (*errors.HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError) as error:
            self._check_refused(file, error)
            self._broken(file, error)
        self.revision = path.parents[file.count("/")].name  # whatever a branch is next
        self._check(path, file)
        return path

    def origin(self, files: list[Path]) -> Origin:
        """Of the weight files that were downloaded."""
        snapshot = next(p for p in files[0].parents if p.name == self.revision)
        sha256 = {
            f.relative_to(snapshot).as_posix(): self._sha256.get(f) or _digest(f, "sha256")
            for f in files
        }
        path = snapshot / self.file
        at_commit = pinned(self.name, self.revision)
        return Origin(self.name, at_commit, self.revision, path, sha256)

    def _known_missing(self, file: str) -> bool:
        """Whether the hub said at an earlier time that this commit has no such file."""
        known = self._hub.try_to_load_from_cache(self.repository, file, revision=self.revision)
        return known is self._hub._CACHED_NO_EXIST

    def _check(self, path: Path, file: str) -> None:
        """Compare with the hub's checksum, which names what the cache links to: SHA-256 of large
        files, Git's SHA-1 of others. Mirrors may have names of another kind."""
        if not path.is_symlink():
            return
        said = Path(os.readlink(path)).name
        kind = {64: "sha256", 40: "sha1"}.get(len(said))
        if kind is None or not re.fullmatch("[0-9a-f]+", said):
            return
        header = b"" if kind == "sha256" else b"blob %d\0" % path.stat().st_size
        if _digest(path, kind, header) == said:
            self._sha256 |= {path: said} if kind == "sha256" else {}
        else:
            raise UserError(
                f"{file} of {self.repository} is not the file that the hub has (its {kind} is "
                f"another): remove {path.resolve()} and start again"
            )

    def _check_refused(self, file: str, error: BaseException | None) -> None:
        """Raise UserError where an error is the hub's response to a token without access."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{self._end_point()} refuses {file} of {self.repository} to this token (status "
                f"{status}): set HF_TOKEN, or log in (hf auth login), with a token that may read "
                f"gated repositories, of an account that has access on {self._page()}"
            ) from error

    def _unreachable(self, file: str, error: Exception) -> NoReturn:
        what = f"{file} of {self.repository} at revision {self.revision}"
        if self._hub.constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what} is not in the cache ({self._hub.constants.HF_HUB_CACHE}), and "
                "HF_HUB_OFFLINE is set: run it once without HF_HUB_OFFLINE, or copy the cache of "
                "another machine"
            ) from error
        cause = error.__cause__ or error
        raise UserError(
            f"{what} is not in the cache, and {self._end_point()} does not give it "
            f"({type(cause).__name__}: {_first_line(cause)}): check the network, HF_ENDPOINT and "
            "the proxy, or name a file on disk"
        ) from error

    def _broken(self, file: str, error: Exception) -> NoReturn:
        what = f"{file} of {self.repository} at revision {self.revision}"
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise UserError(
                f"cannot store {what} in the cache, {self._hub.constants.HF_HUB_CACHE}: "
                f"{error.strerror}; fix that, or set HF_HOME to another folder"
            ) from error
        raise UserError(
            f"{what} could not be downloaded ({type(error).__name__}: {_first_line(error)}): start "
            "again; nothing of it was stored"
        ) from error

    def _end_point(self) -> str:
        return str(self._hub.constants.ENDPOINT)

    def _page(self) -> str:
        return f"{self._end_point()}/{self.repository}"


def _digest(path: Path, kind: str, header: bytes = b"") -> str:
    with open_regular(path) as stream:
        start = hashlib.new(kind, header, usedforsecurity=False)
        return hashlib.file_digest(stream, lambda: start).hexdigest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]:.200}".rstrip(".") if lines else "no reason given"
