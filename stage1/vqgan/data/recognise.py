"""The layout of a folder, recognised by its content."""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

from runkit.remote import AnyPath
from vqgan.data.files import IMAGE_SUFFIXES, find_files, folders_in, is_system_name
from vqgan.data.split_names import split_names, split_word
from vqgan.data.trees import without_maps
from vqgan.errors import InputError

_CIFAR10_CLASSES = frozenset({"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"})
_GENERAL = ("folder", "webdataset", "huggingface")
"""Layouts that belong to no published dataset."""
_KINDS = {".tar": "tars", ".parquet": "tables", ".arrow": "tables"}


def recognise(root: AnyPath) -> tuple[str, str]:
    """Return the name of the reader that fits a folder, and the reason.

    Raises:
        InputError: no reader fits.
    """
    here = _Folder(root)
    for name, test in _TESTS:
        why = test(here)
        if why:
            return name, why
    raise InputError(
        f"no dataset is recognised in {root}: it has no image, tar, Parquet or Arrow file and no images.csv. "
        f"Name its layout: {', '.join(sorted({name for name, _ in _TESTS}))}"
    )


def other_layout(name: str, root: AnyPath) -> str | None:
    """Return why a folder that is read as `name` looks like another published dataset, or None if it does not."""
    here = _Folder(root)
    published = ((found, test(here)) for found, test in _TESTS if found not in _GENERAL)
    found, why = next(((found, why) for found, why in published if why), (name, ""))
    related = found in name or name in found  # imagenet-depth and restricted-imagenet are ImageNet
    return None if related else f"{found}: {why}"


class _Folder:
    """The names in a folder and in the folders of its splits."""

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self.folders = set(folders_in(root))
        self.files = {path.name for path in root.iterdir() if not is_system_name(path.name)} - self.folders
        self.splits = split_names(without_maps(self.folders)).keys()
        within = [root / name for name in self.splits] or [root]
        names = {path.name: path.is_dir() for folder in within for path in folder.iterdir()}
        self.classes = {name for name, is_folder in names.items() if is_folder and not is_system_name(name)}
        self.class_tars = {name[:-4] for name in names if name.endswith(".tar") and _is_synset(name[:-4])}

    @cached_property
    def kinds(self) -> Counter[str]:
        """Number of images, tars and tables in it, at any depth."""
        files = find_files(self.root, IMAGE_SUFFIXES | _KINDS.keys())
        return Counter(_KINDS.get(path[path.rindex(".") :].lower(), "images") for path in files)

    def mostly(self, kind: str) -> str | None:
        """Return why it is of this kind, or None if another kind has more files."""
        count = self.kinds[kind]
        if not count or count < max(self.kinds.values()):
            return None
        return f"it has {count:,} {kind if count > 1 else kind.removesuffix('s')}"


def _demo(here: _Folder) -> str | None:
    return "it has demo.json" if "demo.json" in here.files else None


def _cifar10(here: _Folder) -> str | None:
    names = {"cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"}
    found = sorted(names & (here.folders | here.files)) or sorted({"test_batch", "test_batch.bin"} & here.files)
    if found:
        return f"it has {found[0]}"
    return "its class folders are the ten of CIFAR-10" if here.classes == _CIFAR10_CLASSES else None


def _ade20k(here: _Folder) -> str | None:
    if "ADEChallengeData2016" in here.folders:
        return "it has ADEChallengeData2016/"
    names = [name for name in ("images", "annotations") if name in here.folders]
    splits = [any(map(split_word, folders_in(here.root / name))) for name in names]
    return "it has images/ and annotations/ with splits" if splits == [True, True] else None


def _landscapes(here: _Folder) -> str | None:
    return "it has images/ and segmentations/" if {"images", "segmentations"} <= here.folders else None


def _deepfashion(here: _Folder) -> str | None:
    found = sorted(name for name in here.files if name.lower().startswith("fasion-") and name.lower().endswith(".csv"))
    return f"it has {found[0]}" if found else None


def _imagenet_depth(here: _Folder) -> str | None:
    found = sorted(name for name in here.splits if f"{name}_depth" in here.folders)
    return f"it has {found[0]}/ and {found[0]}_depth/ with synsets as classes" if found and _synsets(here) else None


def _imagenet(here: _Folder) -> str | None:
    for place in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"):
        if (here.root / place).is_dir():
            return f"it has {place}/"
    found = sorted(name for name in here.files if name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"))
    if found:
        return f"it has {found[0]}"
    if here.class_tars:
        return f"it has tars of classes, such as {min(here.class_tars)}.tar"
    return "its class folders are synsets (n01440764)" if _synsets(here) else None


def _synsets(here: _Folder) -> bool:
    return bool(here.classes) and all(map(_is_synset, here.classes))


def _is_synset(name: str) -> bool:
    return len(name) == 9 and name.startswith("n") and name[1:].isdecimal()


def _folder_list(here: _Folder) -> str | None:
    found = sorted({"images.csv", "images.parquet"} & here.files)
    return f"it has {found[0]}" if found else None


_TESTS: tuple[tuple[str, Callable[[_Folder], str | None]], ...] = (
    ("demo", _demo),
    ("cifar10", _cifar10),
    ("ade20k", _ade20k),
    ("landscapes", _landscapes),
    ("deepfashion", _deepfashion),
    ("imagenet-depth", _imagenet_depth),
    ("imagenet", _imagenet),
    ("folder", _folder_list),
    ("webdataset", lambda here: here.mostly("tars")),
    ("huggingface", lambda here: here.mostly("tables")),
    ("folder", lambda here: here.mostly("images")),
)
"""Name of a reader, and a test that returns why a folder has its layout, or None; the first match is chosen."""
