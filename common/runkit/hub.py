"""Files of repositories on the Hugging Face Hub, read-only.

The client is that of ``huggingface_hub``: it finds the token where ``hf auth login`` stores it, and keeps downloaded
files in its own cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from pyarrow import fs

from runkit.errors import UserError

_KEY = re.compile(r"(?:(dataset|model|space)s/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")


class HubFileSystem:
    """The methods of :class:`pyarrow.fs.FileSystem` that a store requires.

    pyarrow's adapter for fsspec is not used, because it reports a file as missing when the server fails;
    ``HfFileSystem`` is not used, because it keeps its listings for the lifetime of the process.
    """

    def __init__(self) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise UserError("hf:// requires the Hugging Face client: run `pip install huggingface_hub`") from error
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))

    def open_input_file(self, key: str) -> BinaryIO:
        """Open a file, downloaded to the client's cache if necessary.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The Hub refuses the request or is not reachable.
        """
        repository, name = _parse(key)
        with _hub_errors():
            return Path(self._api.hf_hub_download(filename=name, **repository)).open("rb")

    def get_file_info(self, key: str | fs.FileSelector) -> Any:
        """The type and size of one file, or of all files below a folder; errors as :meth:`open_input_file`."""
        if isinstance(key, str):
            repository, name = _parse(key)
            with _hub_errors():
                found = self._api.get_paths_info(paths=[name], **repository)
            return next(iter(_file_infos(found, "")), fs.FileInfo(key, fs.FileType.NotFound))
        repository, name = _parse(key.base_dir)
        prefix = key.base_dir.removesuffix(name).rstrip("/") + "/"
        try:
            with _hub_errors():
                return _file_infos(self._api.list_repo_tree(path_in_repo=name, recursive=True, **repository), prefix)
        except FileNotFoundError:
            return []

    def open_output_stream(self, key: str) -> Any:
        """Refuse to write."""
        raise _read_only(key)

    def delete_file(self, key: str) -> None:
        """Refuse to delete."""
        raise _read_only(key)


def _parse(key: str) -> tuple[dict[str, Any], str]:
    """The repository, as arguments of the client, and the path of a file in it."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise OSError("the URL names no repository: write hf://datasets/OWNER/NAME or hf://OWNER/NAME")
    kind, repo_id, revision, name = match.groups()
    return {"repo_id": repo_id, "repo_type": kind or "model", "revision": revision and unquote(revision)}, name or ""


def _file_infos(entries: Any, prefix: str) -> list[fs.FileInfo]:
    return [
        fs.FileInfo(prefix + entry.path, fs.FileType.File, size=entry.size)
        for entry in entries
        if hasattr(entry, "size")  # a folder has none
    ]


def _read_only(key: str) -> OSError:
    return OSError(errno.EROFS, "the Hub is read-only here", f"hf://{key}")


@contextlib.contextmanager
def _hub_errors() -> Iterator[None]:
    """Convert the client's errors to OSError; only a file that does not exist gives FileNotFoundError."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.EntryNotFoundError, errors.HTTPError, errors.HFValidationError) as error:  # type: ignore[attr-defined]
        # The client reports a request that failed as an entry that its cache does not have.
        failed = error.__cause__ or error if isinstance(error, errors.LocalEntryNotFoundError) else error
        raise _os_error(failed, missing=isinstance(failed, errors.RemoteEntryNotFoundError)) from error


def _os_error(error: BaseException, *, missing: bool) -> OSError:
    message = " ".join(str(error).split()) or type(error).__name__
    if missing:
        return FileNotFoundError(errno.ENOENT, message)
    if isinstance(error, ValueError):  # a name that no repository can have
        return OSError(message)
    response = getattr(error, "response", None)  # None if the connection failed
    if response is None or response.status_code in (408, 429) or response.status_code >= 500:
        return ConnectionError(message)
    return OSError(message)
