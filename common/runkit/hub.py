"""Repositories of the Hugging Face Hub: addresses, downloads, and files as a read-only file system.

The client is that of ``huggingface_hub``: it finds the token where ``hf auth login`` stores it, and keeps downloaded
files in its own cache. :mod:`runkit.uploads` writes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote, unquote

from pyarrow import fs

from runkit.errors import UserError

_URL = re.compile(r"hf:/+")  # a Path drops one of the two slashes
_KEY = re.compile(r"(?:(dataset|model|space)s/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_CACHED = re.compile(r"/(dataset|model|space)s--((?:(?!--)[^/])+)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.*))?$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
REMEDY = "Check the address, the credentials and the network, and try again"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubAddress:
    """A folder or a file of a repository, such as ``hf://datasets/OWNER/NAME@REVISION/FOLDER``."""

    repo_type: str | None
    """The type of the repository: model, dataset or space. None, if the address does not have it, means a model."""
    repo_id: str
    """OWNER/NAME."""
    revision: str | None
    """A branch, a tag or a commit; None for the main branch."""
    path: str
    """The folder or file in the repository; "" for all of it."""

    @classmethod
    def parse(cls, where: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Parse a URL, with or without ``hf://``.

        Args:
            where: The URL, or OWNER/NAME.
            revision: The revision, if the URL has none.

        Raises:
            UserError: It names no repository, or two revisions.
        """
        text = _URL.sub("", os.fspath(where), count=1)
        match = _KEY.fullmatch(text)
        if match is None:
            raise UserError(f"hf://{text} names no repository: write hf://datasets/OWNER/NAME or hf://OWNER/NAME")
        kind, repo_id, found, path = match.groups()
        if found and revision:
            raise UserError(f"hf://{text} has a revision, and revision is {revision!r}: give one of them")
        path = (path or "").strip("/")
        return cls(repo_type=kind, repo_id=repo_id, revision=revision or (found and unquote(found)), path=path)

    def __str__(self) -> str:
        kind = "" if self.repo_type in (None, "model") else f"{self.repo_type}s/"
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{kind}{self.repo_id}{revision}{self.path and '/'}{self.path}"

    @property
    def repository(self) -> dict[str, Any]:
        """The repository and its revision as arguments of the client."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type or "model", "revision": self.revision}

    def name_of(self, name: str) -> str:
        """Return the path in the repository of a file below this folder."""
        return f"{self.path}/{name}" if self.path else name


def is_hub(where: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address of the Hub."""
    return _URL.match(os.fspath(where)) is not None


def hub_client() -> Any:
    """Return the client.

    Raises:
        UserError: It is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError("hf:// requires the Hugging Face client: run `pip install huggingface_hub`") from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def download_folder(where: str | os.PathLike[str], names: Sequence[str]) -> Path:
    """Download files of a folder to the client's cache, all of one commit, and return the local folder.

    Without a network, the copy in the cache is returned.

    Args:
        where: Address of the folder.
        names: The files to download, as far as they exist. The first is required.

    Raises:
        UserError: The folder does not have the first file, or nothing can be downloaded.
    """
    address, client = HubAddress.parse(where), hub_client()
    patterns = [glob.escape(address.name_of(name)) for name in names]
    try:
        with hub_errors():
            snapshot = client.snapshot_download(allow_patterns=patterns, **address.repository)
    except OSError as error:
        raise UserError(f"{address} cannot be downloaded ({error}). {REMEDY}") from error
    folder = Path(snapshot, address.path)
    if not (folder / names[0]).is_file():
        raise UserError(f"{address} has no {names[0]}: choose another repository, or the folder of it that has one")
    return folder


def hub_files(where: str | os.PathLike[str]) -> tuple[HubAddress, dict[str, tuple[int, str]]]:
    """Return the address of a folder with the commit that its revision means now, and the files below it.

    Each file is a path below the folder → its size in bytes and the id of its content.

    Raises:
        UserError: It is not an address.
        FileNotFoundError: There is no such folder.
        OSError: The repository cannot be read.
    """
    address, client = HubAddress.parse(where), hub_client()
    with hub_errors():
        address = replace(address, revision=client.repo_info(**address.repository).sha)
        tree = list(client.list_repo_tree(path_in_repo=address.path or None, recursive=True, **address.repository))
    prefix = f"{address.path}/" if address.path else ""
    return address, {
        entry.path.removeprefix(prefix): (entry.size, entry.blob_id) for entry in tree if hasattr(entry, "size")
    }


def hub_file(where: str) -> tuple[str, dict[str, str]]:
    """Return the https URL of a file, and the headers of its requests, which carry this process's token."""
    from huggingface_hub import get_token, hf_hub_url

    address, token = HubAddress.parse(where), get_token()
    url: str = hf_hub_url(filename=address.path, endpoint=hub_client().endpoint, **address.repository)
    return url, {"Authorization": f"Bearer {token}"} if token else {}


def source_of(path: Path) -> str | None:
    """Return the address and commit from which a folder or file in the client's cache comes; None for others."""
    match = _CACHED.search(path.as_posix())
    if match is None:
        return None
    kind, owner, name, commit, inner = match.groups()
    return str(HubAddress(repo_type=kind, repo_id=f"{owner}/{name}", revision=commit, path=inner or ""))


def pinned(where: str | os.PathLike[str], name: str) -> str:
    """Return an address with the commit that its revision means now, or without a network, meant last.

    Args:
        where: Address of a folder.
        name: A file that the folder has. If it is missing, the address is returned as it is.

    Raises:
        UserError: The repository cannot be read.
    """
    address, client = HubAddress.parse(where), hub_client()
    try:
        with hub_errors():
            path = Path(client.hf_hub_download(filename=address.name_of(name), **address.repository))
    except FileNotFoundError:
        return str(address)
    except OSError as error:
        raise UserError(f"{address} cannot be read ({error}). {REMEDY}") from error
    commit = HubAddress.parse(source_of(path) or "").revision
    return str(replace(address, revision=commit))


class HubFileSystem:
    """The methods of :class:`pyarrow.fs.FileSystem` that a store requires.

    pyarrow's adapter for fsspec is not used, because it reports a file as missing when the server fails;
    ``HfFileSystem`` is not used, because it keeps its listings for the lifetime of the process.
    """

    def __init__(self) -> None:
        self._api = hub_client()

    def open_input_file(self, key: str) -> BinaryIO:
        """Open a file, downloaded to the client's cache if necessary.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The Hub refuses the request or is not reachable.
        """
        address = _address(key)
        with hub_errors():
            return Path(self._api.hf_hub_download(filename=address.path, **address.repository)).open("rb")

    def get_file_info(self, key: str | fs.FileSelector) -> Any:
        """The type and size of one file, or of all files below a folder; errors as :meth:`open_input_file`."""
        if isinstance(key, str):
            address = _address(key)
            if (size := self._cached_size(address)) is not None:
                return fs.FileInfo(key, fs.FileType.File, size=size)
            with hub_errors():
                found = self._api.get_paths_info(paths=[address.path], **address.repository)
            return next(iter(_file_infos(found, "")), fs.FileInfo(key, fs.FileType.NotFound))
        address = _address(key.base_dir)
        prefix = key.base_dir.removesuffix(address.path).rstrip("/") + "/"
        try:
            with hub_errors():
                tree = self._api.list_repo_tree(path_in_repo=address.path, recursive=True, **address.repository)
                return _file_infos(tree, prefix)
        except FileNotFoundError:
            return []

    def _cached_size(self, address: HubAddress) -> int | None:
        """The size of a downloaded file of a commit, which cannot change; None for other files."""
        from huggingface_hub import try_to_load_from_cache

        if not _COMMIT.fullmatch(address.revision or ""):
            return None
        path = try_to_load_from_cache(filename=address.path, **address.repository)
        return Path(path).stat().st_size if isinstance(path, str) else None

    def open_output_stream(self, key: str) -> Any:
        """Refuse to write."""
        raise _read_only(key)

    def delete_file(self, key: str) -> None:
        """Refuse to delete."""
        raise _read_only(key)


def _address(key: str) -> HubAddress:
    try:
        return HubAddress.parse(key)
    except UserError as error:
        raise OSError(str(error)) from error


def _file_infos(entries: Any, prefix: str) -> list[fs.FileInfo]:
    return [
        fs.FileInfo(prefix + entry.path, fs.FileType.File, size=entry.size)
        for entry in entries
        if hasattr(entry, "size")  # a folder has none
    ]


def _read_only(key: str) -> OSError:
    return OSError(errno.EROFS, "the Hub is read-only here", f"hf://{key}")


@contextlib.contextmanager
def hub_errors() -> Iterator[None]:
    """Convert the client's errors to OSError; only a file that does not exist gives FileNotFoundError."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.EntryNotFoundError, errors.HTTPError, errors.HFValidationError) as error:  # type: ignore[attr-defined]
        # The client reports a request that failed as an entry that its cache does not have.
        failed = error.__cause__ or error if isinstance(error, errors.LocalEntryNotFoundError) else error
        raise _os_error(failed, missing=isinstance(failed, errors.RemoteEntryNotFoundError)) from error


def _os_error(error: BaseException, *, missing: bool) -> OSError:
    message = _explained(error) or " ".join(str(error).split()) or type(error).__name__
    if missing:
        return FileNotFoundError(errno.ENOENT, message)
    if isinstance(error, ValueError):  # a name that no repository can have
        return OSError(message)
    response = getattr(error, "response", None)  # None if the connection failed
    if response is None or response.status_code in (408, 429) or response.status_code >= 500:
        return ConnectionError(message)
    return OSError(message)


def _explained(error: BaseException) -> str | None:
    """What an answer of the Hub means for its reader; None if the answer says so itself."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return "the client is offline and has no complete copy in its cache: unset HF_HUB_OFFLINE to download it"
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted: accept the terms on its page of the Hub, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private: correct the name (the address of a dataset begins with "
            "hf://datasets/), or log in with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision: choose a branch, a tag or a commit of the repository"
    return None
