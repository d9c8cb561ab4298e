"""Pictures without the layout of a dataset: all files of a folder or a tar."""

import posixpath
from collections.abc import Iterable
from pathlib import Path

from vqgan.data.archives import tar_members
from vqgan.data.files import IMAGE_SUFFIXES, find_files, make_key
from vqgan.data.samples import Item
from vqgan.data.sources import File, Source, stored
from vqgan.data.split import Split
from vqgan.errors import InputError


def open_pictures(path: Path) -> Split:
    """Open all pictures below a folder, or in a tar, as one split in the order of their names; none is held out.

    Raises:
        InputError: the path does not exist, has no picture, or is neither a folder nor a tar.
    """
    found: Iterable[tuple[str, Source]]
    if path.is_dir():
        found = ((name, File(stored(path / name))) for name in find_files(path))
    elif path.exists():
        members = (member for member in tar_members(path) if posixpath.splitext(member[0])[1].lower() in IMAGE_SUFFIXES)
        found = sorted(members, key=lambda member: member[0])
    else:
        raise InputError(f"{path} does not exist: pass a folder or a tar of pictures")
    split = Split(Item(key=make_key(name), image=source) for name, source in found)
    if not len(split):
        raise InputError(f"{path} has no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return split
