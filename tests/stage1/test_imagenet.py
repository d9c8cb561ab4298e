"""The readers of ImageNet, and archives that are read whole."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from tiny_pictures import png, put, put_tar, shades, tar_bytes

from vqgan.data import open_splits
from vqgan.data.imagenet import SUPER_CLASSES
from vqgan.errors import InputError

SYNSETS = ("n01440764", "n01443537", "n02123045")


VAL = {f"ILSVRC2012_val_0000000{n + 1}.JPEG": SYNSETS[(2 * n) % 3] for n in range(5)}


EXPECTED_VAL = {Path(name).stem: (n, SYNSETS.index(synset)) for n, (name, synset) in enumerate(VAL.items())}


EXPECTED_TRAIN = {f"{synset}/{synset}_{n}": (10 * c + n, c) for c, synset in enumerate(SYNSETS) for n in range(2)}


def put_train(root: Path) -> None:
    for key, (shade, _) in EXPECTED_TRAIN.items():
        put(root / f"{key}.JPEG", png(shade))


def put_devkit(root: Path, packed: bool) -> None:
    synsets = np.zeros(3, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for place, (number, wnid) in enumerate(((1, SYNSETS[2]), (2, SYNSETS[0]), (3, SYNSETS[1]))):
        synsets[place] = (number, wnid)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    ids = {SYNSETS[2]: 1, SYNSETS[0]: 2, SYNSETS[1]: 3}
    files = {
        "meta.mat": buffer.getvalue(),
        "ILSVRC2012_validation_ground_truth.txt": "".join(f"{ids[s]}\n" for s in VAL.values()).encode(),
    }
    inside = "ILSVRC2012_devkit_t12/data"
    if packed:
        put_tar(root / "ILSVRC2012_devkit_t12.tar.gz", {f"{inside}/{n}": d for n, d in files.items()}, mode="w:gz")
    else:
        for name, data in files.items():
            put(root / inside / name, data)


def write_val_labels(root: Path, how: str) -> None:
    if how == "kaggle":
        rows = "".join(f"{Path(name).stem},{synset} 1 2 3 4\n" for name, synset in VAL.items())
        put(root / "LOC_val_solution.csv", f"ImageId,PredictionString\n{rows}".encode())
    elif how == "synsets":
        put(root / "imagenet_2012_validation_synset_labels.txt", "\n".join(VAL.values()).encode())
    else:
        put_devkit(root, packed=how == "devkit.tar.gz")


@pytest.mark.parametrize("how", ["kaggle", "synsets", "devkit", "devkit.tar.gz"])
def test_imagenet_with_a_flat_val(tmp_path, how):
    data = tmp_path / "ILSVRC/Data/CLS-LOC" if how == "kaggle" else tmp_path
    put_train(data / "train")
    for number, name in enumerate(VAL):
        put(data / "val" / name, png(number))
    write_val_labels(tmp_path, how)
    splits = open_splits("imagenet", tmp_path)
    assert splits["train"].class_names == SYNSETS
    assert shades(splits["train"]) == EXPECTED_TRAIN
    assert shades(splits["val"]) == EXPECTED_VAL


@pytest.mark.parametrize("how", ["synsets", "devkit"])
def test_imagenet_val_with_a_missing_image_keeps_its_labels(tmp_path, how):
    put_train(tmp_path / "train")
    for number, name in list(enumerate(VAL))[1:]:
        put(tmp_path / "val" / name, png(number))
    write_val_labels(tmp_path, how)
    first = next(iter(EXPECTED_VAL))
    assert shades(open_splits("imagenet", tmp_path)["val"]) == {k: v for k, v in EXPECTED_VAL.items() if k != first}


def test_imagenet_from_the_official_tars_in_place(tmp_path):
    inner = {
        f"{synset}.tar": tar_bytes({
            f"{synset}_{n}.JPEG": png(EXPECTED_TRAIN[f"{synset}/{synset}_{n}"][0]) for n in range(2)
        })
        for synset in reversed(SYNSETS)
    }  # fmt: skip
    put_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    put_tar(tmp_path / "ILSVRC2012_img_val.tar", {name: png(n) for n, name in enumerate(VAL)})
    put_devkit(tmp_path, packed=True)
    splits = open_splits("imagenet", tmp_path)
    assert shades(splits["train"]) == EXPECTED_TRAIN
    assert shades(splits["val"]) == EXPECTED_VAL
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes((tmp_path / "ILSVRC2012_img_train.tar").read_bytes()[:900])
    with pytest.raises(InputError, match="ILSVRC2012_img_train"):
        open_splits("imagenet", tmp_path)


def test_imagenet_val_without_labels_is_refused(tmp_path):
    put_train(tmp_path / "train")
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", png(0))
    with pytest.raises(InputError, match="no class folders and no list of classes"):
        open_splits("imagenet", tmp_path)
    write_val_labels(tmp_path, "kaggle")
    put(tmp_path / "val" / "stranger.JPEG", png(0))
    with pytest.raises(InputError, match="none for 'stranger'"):
        open_splits("imagenet", tmp_path)


def test_restricted_imagenet_is_nine_super_classes(tmp_path):
    for index in range(1000):
        put(tmp_path / "train" / f"n{index:08d}" / "x.png", png(index % 256))
    splits = open_splits("restricted-imagenet", tmp_path)
    labels = {item.key: item.label for split in splits.values() for item in split.items}
    assert len(labels) == sum(len(members) for members in SUPER_CLASSES.values())
    assert splits["train"].class_names[labels["n00000281/x"]] == "cat"
    assert splits["train"].class_names[labels["n00000268/x"]] == "dog"
    assert "n00000000/x" not in labels
    put_train(tmp_path / "small" / "train")
    with pytest.raises(InputError, match="has 3 classes"):
        open_splits("restricted-imagenet", tmp_path / "small")


def flood(path: Path, member: str, nbytes: int) -> None:
    """Write a small tar.gz whose member is `nbytes` zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        info = tarfile.TarInfo(member)
        info.size = nbytes
        archive.addfile(info, Zeros(nbytes))


class Zeros(io.RawIOBase):
    """A stream of `count` zeros."""

    def __init__(self, count: int) -> None:
        self.left = count

    def read(self, count: int = -1) -> bytes:
        count = min(self.left, count)
        self.left -= count
        return bytes(count)


@pytest.mark.parametrize(
    ("name", "file", "member"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"),
        ("cifar10", "cifar-10-python.tar.gz", "other"),
        ("imagenet", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12/data/meta.mat"),
    ],
)
def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, name, file, member):
    flood(tmp_path / file, member, 600 * 2**20)
    if name == "imagenet":
        put(tmp_path / "train/n01/1.png", png(1))
        put(tmp_path / "val/ILSVRC2012_val_00000001.png", png(2))
    assert (tmp_path / file).stat().st_size < 700_000
    tracemalloc.start()
    with pytest.raises(InputError, match="it unpacks to more than 536,870,912 bytes"):
        open_splits(name, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_mat_that_would_fill_the_memory_is_refused(tmp_path):
    put(tmp_path / "train/n01/1.png", png(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", png(2))
    data = tmp_path / "ILSVRC2012_devkit_t12/data"
    put(data / "ILSVRC2012_validation_ground_truth.txt", b"1\n")
    savemat(data / "meta.mat", {"synsets": np.zeros(70 * 2**20, np.uint8)}, do_compression=True)
    with pytest.raises(InputError, match="inflates to more than 67,108,864 bytes"):
        open_splits("imagenet", tmp_path)
