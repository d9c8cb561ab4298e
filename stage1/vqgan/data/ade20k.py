"""Readers `ade20k` and `landscapes`: photos with segmentation masks."""

from pathlib import Path

from vqgan.data.files import folders_in, make_key
from vqgan.data.label_names import check_label_names
from vqgan.data.sources import read_text
from vqgan.data.split import Split
from vqgan.data.split_names import SPLIT_NAMES, split_names, split_word
from vqgan.data.trees import class_items, split_folders, with_maps
from vqgan.errors import InputError

_ADE20K_LABELS = 151


def ade20k(root: Path) -> dict[str, Split]:
    """Read ADEChallengeData2016: `images/{training,validation}` with masks in `annotations/`.

    Labels of masks are 0 (unlabelled) to 150, with the names in `objectInfo150.txt`. The class label is the scene
    category in `sceneCategories.txt`. Both files may be missing.

    Raises:
        InputError: `images/` is missing, or `objectInfo150.txt` does not number its names from 1 to 150.
    """
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    listed = root / "sceneCategories.txt"
    lines = [line.split(maxsplit=1) for line in read_text(listed).splitlines()] if listed.is_file() else []
    category = {make_key(f"{line[0]}."): line[1].strip() for line in lines if len(line) > 1}
    names = sorted(set(category.values()))
    label_of = {name: label for label, name in enumerate(names)}
    label_names = _object_names(root / "objectInfo150.txt")
    splits = {}
    if not (root / "images").is_dir():
        raise InputError(
            f"{root / 'images'} is missing: ADE20K is images/ with masks of the same names in annotations/"
        )
    for split, folder in split_folders(root / "images").items():
        found = class_items(folder, folders_in(folder))
        items, strays = with_maps(found, {"segmentation": _masks(root / "annotations", folder.name, split)})
        items = [item.labelled(label_of.get(category.get(item.key.split("/")[-1], ""))) for item in items]
        splits[split] = Split(items, names, n_labels=_ADE20K_LABELS, label_names=label_names, strays=strays)
    return splits


def _object_names(path: Path) -> tuple[str, ...]:
    """Return the names of labels in the release's table, whose columns are Idx, Ratio, Train, Val and Name."""
    if not path.is_file():
        return ()
    names = ["unlabelled"]
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = [field.strip() for field in line.rstrip().split("\t")]
        if fields[0] in ("", "Idx"):
            continue
        if fields[0] != str(len(names)) or len(fields) < 2:
            raise InputError(
                f"{path}, line {number}: expected the number {len(names)}, tabs and a name, found {line[:80]!r}: copy "
                "the file of the release again, or remove it"
            )
        names.append(fields[-1])
    return check_label_names(tuple(names), _ADE20K_LABELS, path)


def _masks(folder: Path, name: str, split: str) -> Path:
    """Return the folder of masks of a split; its name may differ (`training`) from that of the images (`Train`)."""
    word_of = split_names(folders_in(folder)) if folder.is_dir() else {}
    same = [other for other, word in word_of.items() if SPLIT_NAMES[word] == split]
    return folder / min(same, key=lambda other: (other != name, word_of[other] != split_word(name)), default=name)


def landscapes(root: Path) -> dict[str, Split]:
    """Read `images/` with masks of 182 stuff-and-things labels (0 … 181) in `segmentations/`.

    Sub-folders are splits, classes, or splits with classes.

    Raises:
        InputError: one of the two folders is missing.
    """
    for folder in (root / "images", root / "segmentations"):
        if not folder.is_dir():
            raise InputError(
                f"{folder} is missing: landscapes are images/ with masks of the same names in segmentations/"
            )
    images, masks = root / "images", root / "segmentations"
    folders = {split: Path(str(folder)) for split, folder in split_folders(images).items()}
    mask_folders = {split: _masks(masks, folder.name, split) for split, folder in folders.items()} or {"train": masks}
    folders = folders or {"train": images}
    names = sorted({name for folder in folders.values() for name in folders_in(folder)})
    splits = {}
    for split, folder in folders.items():
        items, strays = with_maps(class_items(folder, names), {"segmentation": mask_folders[split]})
        splits[split] = Split(items, names, n_labels=182, strays=strays)
    return splits
