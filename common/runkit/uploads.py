"""Upload a set of files to a repository of the Hugging Face Hub, so that readers see all of it or nothing.

The client transfers only what the Hub does not have, so that a repeated upload continues an interrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from runkit.errors import UserError
from runkit.hub import REMEDY, HubAddress, hub_client, hub_errors
from runkit.places import Store, open_store

log = logging.getLogger(__name__)

_FILES_PER_COMMIT = 1_000
CARD = "README.md"
_NEW = {".gitattributes", CARD}
"""Files of a repository that was made on the website."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What is uploaded."""

    what: str
    """Its kind for messages, such as "tokenizer"."""
    repo_type: Literal["model", "dataset"]
    """Type of the repository."""
    files: Mapping[str, Path | bytes]
    """Name in the repository → the file or its content."""
    last: str
    """The file that marks the set as complete. It is in the last commit."""
    owned: tuple[str, ...]
    """Names (glob patterns) of the files that such a set may have. Those of an earlier set are deleted."""
    is_same_kind: Callable[[Store], bool]
    """Whether a folder of the Hub, which is not empty, holds a set of this kind."""
    is_card: Callable[[bytes], bool]
    """Whether a README.md was made by a program. Any other is kept."""


def upload(
    content: Upload, to: HubAddress, *, private: bool = False, message: str | None = None
) -> tuple[HubAddress, str]:
    """Upload a set of files in one commit, or if there are thousands, in several.

    Args:
        content: The files.
        to: The repository, which is created if it does not exist, with the branch to write and perhaps a folder.
        private: Create a private repository.
        message: Message of the commit.

    Returns:
        The address of the files with their commit, and the URL of the commit.

    Raises:
        UserError: The repository holds something else, or the Hub refuses.
    """
    if to.repo_type not in (None, content.repo_type):
        right = replace(to, repo_type=content.repo_type)
        raise UserError(f"{to} is not the place of a {content.what}: push it to {right}")
    to = replace(to, repo_type=content.repo_type)
    client, where = hub_client(), {"repo_id": to.repo_id, "repo_type": to.repo_type}
    try:
        with hub_errors():
            client.create_repo(private=private or None, exist_ok=True, **where)
            if private and not client.repo_info(**where).private:
                raise UserError(f"{to} is a public repository: make it private in its settings, or push in public")
            if to.revision not in (None, "main"):
                client.create_branch(branch=to.revision, exist_ok=True, **where)
        there = _names(content, to)
        content = _without_card(content, to) if CARD in there else content
        with hub_errors():
            info = _commit(client, content, to, there, message or f"Upload a {content.what}")
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # the client raises each of them for what the Hub answers
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise UserError(
            f"{to} cannot be written ({cause}). {REMEDY}: what is there already is not sent again"
        ) from error
    return replace(to, revision=info.oid), str(info.commit_url)


def _names(content: Upload, to: HubAddress) -> set[str]:
    """The names of the files that are there.

    Raises:
        UserError: They are of another kind.
    """
    store = open_store(str(to))
    there = set(store.files())
    if there - _NEW and not content.is_same_kind(store):
        listed = ", ".join(sorted(there - _NEW)[:3])
        raise UserError(f"{to} holds no {content.what} but {listed}: nothing was changed. Choose another repository")
    return there


def _without_card(content: Upload, to: HubAddress) -> Upload:
    """The files without the card if a person has written the one that is there."""
    if content.is_card((open_store(str(to)) / CARD).read_bytes()):
        return content
    log.warning("%s/%s is not a card that was made here, and is kept", to, CARD)
    return replace(content, files={name: file for name, file in content.files.items() if name != CARD})


def _commit(client: Any, content: Upload, to: HubAddress, there: set[str], message: str) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def delete(name: str) -> Any:
        return CommitOperationDelete(to.name_of(name), is_folder=False)

    names = sorted(content.files, key=lambda name: (name == content.last, name))
    parts = [names[start : start + _FILES_PER_COMMIT] for start in range(0, len(names), _FILES_PER_COMMIT)]
    stale = [name for name in sorted(there - {*names, CARD}) if any(_matches(name, glob) for glob in content.owned)]
    for number, part in enumerate(parts):
        operations: list[Any] = [CommitOperationAdd(to.name_of(name), content.files[name]) for name in part]
        if number == 0 and len(parts) > 1 and content.last in there and not _is_same(content, to):
            operations.append(delete(content.last))  # the set is incomplete until the last commit
        if number == len(parts) - 1:
            operations += map(delete, stale)
        numbered = message if len(parts) == 1 else f"{message} ({number + 1} of {len(parts)})"
        info = client.create_commit(operations=operations, commit_message=numbered, **to.repository)
        log.info("%s", info.commit_url)
    return info


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _is_same(content: Upload, to: HubAddress) -> bool:
    file = content.files[content.last]
    return (open_store(str(to)) / content.last).read_bytes() == (file if isinstance(file, bytes) else file.read_bytes())
