"""Folders of images: which are splits, which are classes, and which hold maps."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from runkit.remote import AnyPath
from vqgan.data.columns import Beside
from vqgan.data.conditions import CONDITIONS
from vqgan.data.files import (
    IMAGE_SUFFIXES,
    MAP_SUFFIXES,
    find_files,
    folders_in,
    is_image_name,
    make_key,
    map_folder,
    walk,
)
from vqgan.data.samples import Item
from vqgan.data.sources import File, Stored, stored_in
from vqgan.data.split import Split
from vqgan.data.split_names import choose_splits, counted, names_both, split_names, split_word
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_NO_CLASSES = frozenset({"image", "images", "img", "imgs", "jpegimages"})
"""Common names of a folder of images that has a folder of maps beside it."""


def split_folders(root: AnyPath) -> dict[str, AnyPath]:
    """Return the folder of each split in `root`, by the usual names in any case; empty if no folder has one.

    They may be in a common folder (`images/train/`, `images/val/`), and in a folder of the same name (`train/train/`).

    Raises:
        InputError: two folders name the same split, one is a dangling link, images are beside a split that is not
            train, or several folders have splits of their own.
    """
    broken = {path.name for path in root.iterdir() if split_word(path.name) and path.is_symlink() and not path.exists()}
    word_of = split_names(without_maps(folders_in(root)) | broken)
    if not word_of:
        return _splits_below(root)
    found = choose_splits(word_of | dict.fromkeys(_beside(root, word_of)), root)
    for folders in found.values():
        if len(folders) > 1:
            raise InputError(
                f"{root}: {folders[0]} and {folders[1]} name the same split: pass a folder with one of them"
            )
        if not (root / folders[0]).exists():
            raise InputError(f"{root / folders[0]} is a dangling link: is its target mounted?")
    return {split: _unwrapped(root / folders[0]) for split, folders in found.items()}


def without_maps(names: Iterable[str]) -> set[str]:
    """Return names of folders without those of maps, such as `train_depth` if `train` is among them."""
    names = set(names)
    return names - {f"{name}_{condition}" for name in names for condition in CONDITIONS}


def _splits_below(root: AnyPath) -> dict[str, AnyPath]:
    """Return the splits of the one folder in `root` that has splits."""
    folders = folders_in(root)
    holders = [name for name in folders if names_both(split_names(folders_in(root / name)).values())]
    holders = [name for name in holders if _holds_images(root / name)]
    if len(holders) > 1:
        raise InputError(
            f"{root}: {' and '.join(f'{name}/' for name in holders[:2])} have splits of their own: pass one of them as "
            "the folder, or sort all images into train/ and val/"
        )
    if holders:
        beside = _beside(root, holders)
        if beside:
            log.warning("%s: %s not read: the splits are in %s/", root, counted(beside), holders[0])
        return split_folders(root / holders[0])
    if any(is_image_name(path.name) for path in root.iterdir()):
        return {}
    first = list(islice((name for name in folders if _holds_images(root / name)), 2))
    return split_folders(root / first[0]) if len(first) == 1 else {}


def _unwrapped(folder: AnyPath) -> AnyPath:
    """Return the folder of the same split that is the only content of a folder, as after unpacking into one."""
    inner = sorted(without_maps(folders_in(folder))) if folder.is_dir() else []
    same = len(inner) == 1 and folder.name.lower() in (inner[0].lower(), split_word(inner[0]))
    if not same or any(map_folder(folder, condition).exists() for condition in CONDITIONS):
        return folder
    return folder if any(is_image_name(path.name) for path in folder.iterdir()) else _unwrapped(folder / inner[0])


def _beside(root: AnyPath, names: Iterable[str]) -> list[str]:
    """Return the images in `root`, and its folders with images, except these names and their maps."""
    names = set(names)
    folders = folders_in(root)
    others = without_maps({*folders, *names}) - names
    found = [f"{name}/" for name in others if _holds_images(root / name)]
    return sorted(found + [path.name for path in root.iterdir() if is_image_name(path.name) and path.is_file()])


def _holds_images(folder: AnyPath) -> bool:
    return any(is_image_name(path) for path in walk(folder))


def class_items(folder: AnyPath, class_names: Sequence[str]) -> Iterator[Item]:
    """Yield the images below `folder`, labelled by the name of the first folder; without a folder the label is None."""
    label_of = {name: label for label, name in enumerate(class_names)}
    found = find_files(folder, IMAGE_SUFFIXES | {".txt", ".json"}, count_others=True)
    beside = {path for path in found if path.endswith((".txt", ".json"))}
    for path in found:
        if path in beside or not is_image_name(path):
            continue
        label = label_of[path.split("/", 1)[0]] if "/" in path else None
        text, about = (f"{path.rpartition('.')[0]}{suffix}" for suffix in (".txt", ".json"))
        columns = Beside(*(File(stored_in(folder, name)) if name in beside else None for name in (text, about)))
        given = columns if columns != Beside() else None
        yield Item(key=make_key(path), image=File(stored_in(folder, path)), label=label, columns=given)


def with_maps(items: Iterable[Item], folders: Mapping[str, AnyPath]) -> tuple[list[Item], tuple[str, ...]]:
    """Attach maps to the items with the same relative path, whatever the suffix.

    Args:
        items: Items whose keys are relative paths.
        folders: Condition → folder of its maps; a missing folder has none.

    Returns:
        The items, and the maps that belong to no item.

    Raises:
        InputError: two maps differ in their suffix alone.
    """
    items, strays = list(items), list[str]()
    for condition, folder in folders.items():
        suffixes = IMAGE_SUFFIXES if condition == "pose" else MAP_SUFFIXES
        map_of: dict[str, Stored] = {}
        for path in find_files(folder, suffixes, count_others=True):
            found = stored_in(folder, path)
            other = map_of.setdefault(make_key(path), found)
            if other != found:
                raise InputError(f"{other} and {path} are maps of the same image: move one of them away")
        items = [
            replace(item, conditions={**item.conditions, condition: File(map_of.pop(item.key))})
            if item.key in map_of
            else item
            for item in items
        ]
        strays += map(str, map_of.values())
    return items, tuple(strays)


def image_tree(
    folders: Mapping[str, AnyPath], *, conditions: Sequence[str] = CONDITIONS, n_labels: int = 256
) -> dict[str, Split]:
    """Return splits of folders with an optional sub-folder per class and optional folders of maps beside them.

    The maps of `train/` are in `train_segmentation/`, `train_depth/` and `train_pose/`, under the names of the images.

    Args:
        folders: Split → its folder of images.
        conditions: Conditions to search for.
        n_labels: Number of labels that a mask may hold.
    """
    names = sorted({name for folder in folders.values() for name in folders_in(folder)})
    splits = {}
    for split, folder in folders.items():
        maps = {condition: map_folder(folder, condition) for condition in conditions}
        items, strays = with_maps(class_items(folder, names), maps)
        _warn_of_maps(folder, {item.label for item in items}, names)
        splits[split] = Split(items, names, n_labels=n_labels, strays=strays)
    return splits


def _warn_of_maps(folder: AnyPath, labels: set[int | None], names: Sequence[str]) -> None:
    """Warn that folders are read as classes, if the name of one suggests that the others hold maps of its images."""
    classes = [name for label, name in enumerate(names) if label in labels]
    if len(classes) > 1 and any(name.lower() in _NO_CLASSES for name in classes):
        log.warning(
            "%s: %s are read as classes; if one holds the maps of another, put them into folders beside each other, "
            "such as train/ and train_segmentation/",
            folder,
            ", ".join(f"{name}/" for name in classes[:10]),
        )
