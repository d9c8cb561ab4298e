"""Each reader on its published layout: the demo data, and small folders and archives made here."""

import csv
import io
import json
import os
import pickle
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from imagepriors.demo.layouts import write_demo_data
from imagepriors.demo.scenes import CLASS_NAMES, render_scene
from runkit.errors import UserError
from runkit.folders import check_apart
from vqgan.data import open_splits, sources_of
from vqgan.data.imagenet import SUPER_CLASSES
from vqgan.errors import InputError


def picture(shade: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    put(path, tar_bytes(members, mode))


def shades(split) -> dict[str, tuple[int, int | None]]:
    """Key → (the red of its picture, its label)."""
    return {item.key: (int(split.read(index, 8).image[0, 0, 0]), item.label) for index, item in enumerate(split.items)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return out


def test_demo_samples_carry_every_condition_exactly(demo):
    splits = open_splits("demo", demo)
    assert len(splits["train"]) == 12
    assert splits["train"].class_names == tuple(sorted(set(splits["train"].class_names)))
    sample = splits["val"].read(2, 32, conditions=("segmentation", "depth", "pose"))
    scene = render_scene(0, 2, 32, split=1)
    assert np.abs(sample.image.astype(int) - scene.image).mean() < 4  # JPEG
    np.testing.assert_array_equal(sample.conditions["segmentation"], scene.segmentation)
    np.testing.assert_allclose(
        sample.picture("depth") * np.ptp(scene.depth) + scene.depth.min(), scene.depth, atol=1e-4
    )
    assert sample.conditions["pose"].shape == (32, 32, 3)
    assert splits["val"].class_names[sample.label] == CLASS_NAMES[scene.label]


@pytest.mark.parametrize(
    ("name", "folder", "conditions"),
    [
        ("imagenet", "imagenet", ()),
        ("ade20k", "ADEChallengeData2016", ("segmentation",)),
        ("imagenet-depth", "imagenet-depth", ("depth",)),
        ("deepfashion", "deepfashion", ("pose",)),
    ],
)
def test_each_demo_layout_is_read_by_its_reader(demo, name, folder, conditions):
    for split, count in (("train", 12), ("val", 4)):
        data = open_splits(name, demo / folder)[split]
        assert len(data) == count
        assert data.conditions == conditions
        assert data.strays == ()
        assert data.read(0, 16, conditions=conditions).image.shape == (16, 16, 3)


# folder


def test_folder_with_classes_maps_and_strays(tmp_path):
    for split in ("training", "test"):
        for number, name in enumerate(("b", "a")):
            put(tmp_path / split / name / f"{number}.png", picture(number))
            put(tmp_path / f"{split}_segmentation" / name / f"{number}.png", seg(number))
    put(tmp_path / "training_segmentation" / "a" / "lost.png", seg(0))
    splits = open_splits("folder", tmp_path)
    assert set(splits) == {"train", "val"}
    assert splits["train"].class_names == ("a", "b")
    assert shades(splits["train"]) == {"a/1": (1, 0), "b/0": (0, 1)}
    assert [Path(path).name for path in splits["train"].strays] == ["lost.png"]
    assert splits["val"].conditions == ("segmentation",)
    assert splits["val"].read(0, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 1


def seg(label: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, label).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_flat_folder_has_its_maps_beside_it(tmp_path, monkeypatch):
    for number in range(3):
        put(tmp_path / "photos" / f"{number}.png", picture(number))
        put(tmp_path / "photos_depth" / f"{number}.png", gradient())
    monkeypatch.chdir(tmp_path / "photos")
    for root in (tmp_path / "photos", Path()):
        splits = open_splits("folder", root)
        assert sum(map(len, splits.values())) == 3
        assert splits["train"].conditions == ("depth",)


def gradient(size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_folder_with_a_list(tmp_path, form):
    for number in range(4):
        put(tmp_path / "any" / f"{number}.png", picture(number))
        put(tmp_path / "masks" / f"{number}.png", seg(number))
    rows = [
        {"image": f"any/{n}.png", "label": "cat" if n % 2 else "ant", "split": "val" if n == 3 else "train",
         "key": f"00{n}", "segmentation": f"masks/{n}.png"}
        for n in range(4)
    ]  # fmt: skip
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    else:
        with (tmp_path / "images.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    splits = open_splits("folder", tmp_path)
    assert shades(splits["train"]) == {"000": (0, 0), "001": (1, 1), "002": (2, 0)}
    assert shades(splits["val"]) == {"003": (3, 1)}
    assert splits["val"].read(0, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,label\na.png,1\n", "no column 'image'|unknown column 'picture'"),
        ("image,labels\na.png,1\n", "unknown column 'labels'"),
        ("image,label\n,1\n", "row 1: image is empty"),
        ("image,split\na.png,other\n", "split is 'other'"),
        ("image,label\na.png,1,2\n", "cannot be read"),
        ("image,label\na.png,99999999\n", "too large"),
        ("image,key\na.png,x\nb.png,x\n", "share the key 'x'"),
    ],
)
def test_a_wrong_list_is_refused_before_any_work(tmp_path, text, words):
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        open_splits("folder", tmp_path)


# ImageNet

SYNSETS = ("n01440764", "n01443537", "n02123045")
VAL = {f"ILSVRC2012_val_0000000{n + 1}.JPEG": SYNSETS[(2 * n) % 3] for n in range(5)}
EXPECTED_VAL = {Path(name).stem: (n, SYNSETS.index(synset)) for n, (name, synset) in enumerate(VAL.items())}
EXPECTED_TRAIN = {f"{synset}/{synset}_{n}": (10 * c + n, c) for c, synset in enumerate(SYNSETS) for n in range(2)}


def put_train(root: Path) -> None:
    for key, (shade, _) in EXPECTED_TRAIN.items():
        put(root / f"{key}.JPEG", picture(shade))


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
        put_tar(root / "ILSVRC2012_devkit_t12.tar.gz", {f"{inside}/{n}": d for n, d in files.items()}, "w:gz")
    else:
        for name, data in files.items():
            put(root / inside / name, data)


def tell_val(root: Path, how: str) -> None:
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
        put(data / "val" / name, picture(number))
    tell_val(tmp_path, how)
    splits = open_splits("imagenet", tmp_path)
    assert splits["train"].class_names == SYNSETS
    assert shades(splits["train"]) == EXPECTED_TRAIN
    assert shades(splits["val"]) == EXPECTED_VAL


@pytest.mark.parametrize("how", ["synsets", "devkit"])
def test_imagenet_val_that_lacks_a_picture_keeps_its_labels(tmp_path, how):
    put_train(tmp_path / "train")
    for number, name in list(enumerate(VAL))[1:]:
        put(tmp_path / "val" / name, picture(number))
    tell_val(tmp_path, how)
    first = next(iter(EXPECTED_VAL))
    assert shades(open_splits("imagenet", tmp_path)["val"]) == {k: v for k, v in EXPECTED_VAL.items() if k != first}


def test_imagenet_from_the_official_tars_in_place(tmp_path):
    inner = {
        f"{synset}.tar": tar_bytes({
            f"{synset}_{n}.JPEG": picture(EXPECTED_TRAIN[f"{synset}/{synset}_{n}"][0]) for n in range(2)
        })
        for synset in reversed(SYNSETS)
    }  # fmt: skip
    put_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    put_tar(tmp_path / "ILSVRC2012_img_val.tar", {name: picture(n) for n, name in enumerate(VAL)})
    put_devkit(tmp_path, packed=True)
    splits = open_splits("imagenet", tmp_path)
    assert shades(splits["train"]) == EXPECTED_TRAIN
    assert shades(splits["val"]) == EXPECTED_VAL
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes((tmp_path / "ILSVRC2012_img_train.tar").read_bytes()[:900])
    with pytest.raises(InputError, match="ILSVRC2012_img_train"):
        open_splits("imagenet", tmp_path)


def test_imagenet_whose_val_nobody_can_label_is_refused(tmp_path):
    put_train(tmp_path / "train")
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", picture(0))
    with pytest.raises(InputError, match="lies flat and nothing tells its classes"):
        open_splits("imagenet", tmp_path)
    tell_val(tmp_path, "kaggle")
    put(tmp_path / "val" / "stranger.JPEG", picture(0))
    with pytest.raises(InputError, match="lacks 'stranger'"):
        open_splits("imagenet", tmp_path)


def test_restricted_imagenet_is_nine_super_classes(tmp_path):
    for index in range(1000):
        put(tmp_path / "train" / f"n{index:08d}" / "x.png", picture(index % 256))
    splits = open_splits("restricted-imagenet", tmp_path)
    labels = {item.key: item.label for split in splits.values() for item in split.items}
    assert len(labels) == sum(len(members) for members in SUPER_CLASSES.values())
    assert splits["train"].class_names[labels["n00000281/x"]] == "cat"
    assert splits["train"].class_names[labels["n00000268/x"]] == "dog"
    assert "n00000000/x" not in labels
    put_train(tmp_path / "small" / "train")
    with pytest.raises(InputError, match="has 3 classes"):
        open_splits("restricted-imagenet", tmp_path / "small")


# The others


def cifar(form: str) -> dict[str, bytes]:
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    rows = np.zeros((6, 2, 3, 32, 32), np.uint8)
    rows[:, :, 0] = np.arange(12).reshape(6, 2, 1, 1)
    rows[:, :, 1, 5, 9] = 200
    files = {}
    for index, name in enumerate(names):
        flat, labels = rows[index].reshape(2, -1), [index % 10, (index + 1) % 10]
        if form == "bin":
            files[f"{name}.bin"] = b"".join(bytes([c]) + r.tobytes() for c, r in zip(labels, flat, strict=True))
        else:
            files[name] = pickle.dumps({b"data": flat, b"labels": labels}, protocol=2)
    classes = [f"class{n}" for n in range(10)]
    meta = {"batches.meta.txt": "\n".join(classes).encode()} if form == "bin" else {
        "batches.meta": pickle.dumps({b"label_names": [name.encode() for name in classes]}, protocol=2)
    }  # fmt: skip
    return files | meta


@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_official_versions(tmp_path, form, packed):
    folder = f"cifar-10-batches-{form}"
    if packed:
        members = {f"{folder}/{name}": data for name, data in cifar(form).items()}
        put_tar(tmp_path / f"cifar-10-{'python' if form == 'py' else 'binary'}.tar.gz", members, "w:gz")
    else:
        for name, data in cifar(form).items():
            put(tmp_path / folder / name, data)
    splits = open_splits("cifar10", tmp_path)
    assert (len(splits["train"]), len(splits["val"])) == (10, 2)
    assert splits["train"].class_names[3] == "class3"
    sample = splits["train"].read(3, 32)
    assert (sample.key, sample.label, sample.image[0, 0, 0], sample.image[5, 9, 1]) == ("data_batch_2/00001", 2, 3, 200)


def test_cifar10_never_runs_code_of_a_pickle(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    for name, data in (cifar("py") | {"data_batch_2": pickle.dumps(Evil())}).items():
        put(tmp_path / name, data)
    with pytest.raises(InputError, match=r"builtins\.print"):
        open_splits("cifar10", tmp_path)
    put(tmp_path / "data_batch_2", b"")
    with pytest.raises(InputError, match="missing or broken"):
        open_splits("cifar10", tmp_path)


def test_landscapes(tmp_path):
    for number in range(4):
        put(tmp_path / "images" / "coast" / f"{number}.png", picture(number))
        put(tmp_path / "segmentations" / "coast" / f"{number}.png", seg(181 if number else 182))
    splits = open_splits("landscapes", tmp_path)
    read = {
        item.key: (split, index) for split in splits.values() for index, item in enumerate(split.items)
    }  # fmt: skip
    split, index = read["coast/1"]
    assert split.read(index, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 181
    split, index = read["coast/0"]
    with pytest.raises(InputError, match="label 182"):
        split.read(index, 8, conditions=("segmentation",))
    (tmp_path / "segmentations").rename(tmp_path / "masks")
    with pytest.raises(InputError, match="segmentations is missing"):
        open_splits("landscapes", tmp_path)


def test_deepfashion_lines(tmp_path):
    for split in ("train", "test"):
        for number in range(3):
            put(tmp_path / split / f"{number}.png", picture(number))
    ys, xs = [2] * 17 + [-1], [3] * 17 + [-1]
    lines = ["name:keypoints_y:keypoints_x", f"0.png: {ys}: {xs}", f"1.png: {ys[:5]}: {xs}", f"9.png: {ys}: {xs}"]
    for split in ("train", "test"):
        put(tmp_path / f"fasion-resize-annotation-{split}.csv", "\n".join(lines).encode())
    split = open_splits("deepfashion", tmp_path)["train"]
    assert split.read(0, 8, conditions=("pose",)).conditions["pose"].shape == (8, 8, 3)
    with pytest.raises(InputError, match=r"1: fasion-resize-annotation-train.csv, line 3"):
        split.read(1, 8, conditions=("pose",))
    with pytest.raises(InputError, match="2: no pose"):
        split.read(2, 8, conditions=("pose",))
    assert split.strays == ("fasion-resize-annotation-train.csv, line 4",)
    put(tmp_path / "fasion-annotation-train.csv", b"picture,x,y\n")
    with pytest.raises(InputError, match="wanted the header"):
        open_splits("deepfashion", tmp_path)


def test_webdataset(tmp_path):
    for shard in range(2):
        members = {}
        for n in (2 * shard, 2 * shard + 1):
            members[f"{n:04d}.png"] = picture(n)
            members[f"{n:04d}.cls"] = str(n % 3).encode()
            members[f"{n:04d}.seg.png"] = seg(n)
        put_tar(tmp_path / f"train-{shard:06d}.tar", members)
    put_tar(tmp_path / "val" / "0.tar", {"a.b.c/x.png": picture(7), "a.b.c/x.json": json.dumps({"label": 2}).encode()})
    put_tar(tmp_path / "test" / "0.tar", {"a.b.c/x.png": picture(9)})  # val is there: test is not for validation
    splits = open_splits("webdataset", tmp_path)
    assert shades(splits["train"]) == {f"{n:04d}": (n, n % 3) for n in range(4)}
    assert shades(splits["val"]) == {"a%2Eb%2Ec/x": (7, 2)}
    assert splits["train"].read(3, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 3
    put_tar(tmp_path / "train-000009.tar", {"0001.png": picture(1)})
    with pytest.raises(InputError, match="share the key '0001'"):
        open_splits("webdataset", tmp_path)
    put_tar(tmp_path / "train-000009.tar", {"z.png": picture(1), "z.cls": b"cat"})
    with pytest.raises(InputError, match="label 'cat' of z is a word, while others are numbers"):
        open_splits("webdataset", tmp_path)
    put_tar(tmp_path / "train-000009.tar", {"z.png": picture(1)}, "w:gz")
    with pytest.raises(InputError, match="uncompressed tar"):
        open_splits("webdataset", tmp_path)


def hub_table(first: int, rows: int) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "image": pa.array([{"bytes": picture(first + n), "path": None} for n in range(rows)], image),
        "annotation": pa.array([{"bytes": seg(first + n), "path": None} for n in range(rows)], image),
        "label": pa.array([n % 2 for n in range(rows)], pa.int64()),
    })  # fmt: skip
    features = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    return table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})


@pytest.mark.parametrize("form", ["parquet", "arrow stream", "arrow file"])
def test_huggingface(tmp_path, form):
    for split, first in (("train", 0), ("validation", 40), ("test", 80)):
        table, path = hub_table(first, 5), tmp_path / "data" / f"{split}-00000-of-00001"
        path.parent.mkdir(exist_ok=True)
        if form == "parquet":
            pq.write_table(table, f"{path}.parquet", row_group_size=2)
        else:
            new = pa.ipc.new_stream if form == "arrow stream" else pa.ipc.new_file
            with new(f"{path}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    splits = open_splits("huggingface", tmp_path)
    assert splits["train"].class_names == ("ant", "bee")
    assert list(shades(splits["train"]).values()) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert list(shades(splits["val"]).values())[3] == (43, 1)
    assert splits["train"].read(3, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 3


def test_huggingface_without_images_or_damaged_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="no column of images"):
        open_splits("huggingface", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        open_splits("huggingface", tmp_path)


def flood(path: Path, member: str, nbytes: int) -> None:
    """A small tar.gz whose member is so many zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        info = tarfile.TarInfo(member)
        info.size = nbytes
        archive.addfile(info, Zeros(nbytes))


class Zeros(io.RawIOBase):
    """That many zeros."""

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
        put(tmp_path / "train/n01/1.png", picture(1))
        put(tmp_path / "val/ILSVRC2012_val_00000001.png", picture(2))
    assert (tmp_path / file).stat().st_size < 700_000
    tracemalloc.start()
    with pytest.raises(InputError, match="it unpacks to more than 536,870,912 bytes"):
        open_splits(name, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_mat_that_would_fill_the_memory_is_refused(tmp_path):
    put(tmp_path / "train/n01/1.png", picture(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", picture(2))
    data = tmp_path / "ILSVRC2012_devkit_t12/data"
    put(data / "ILSVRC2012_validation_ground_truth.txt", b"1\n")
    savemat(data / "meta.mat", {"synsets": np.zeros(70 * 2**20, np.uint8)}, do_compression=True)
    with pytest.raises(InputError, match="inflates to more than 67,108,864 bytes"):
        open_splits("imagenet", tmp_path)


def test_a_pickle_of_cifar_takes_no_more_memory_than_its_bytes(tmp_path):
    """In C, an object's number makes the unpickler allocate a table of that size."""
    put(tmp_path / "test_batch", b"")
    put(tmp_path / "batches.meta", b"\x80\x02K\x01r\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="CIFAR-10 cannot be read"):
        open_splits("cifar10", tmp_path)


def test_tables_that_would_fill_the_memory_are_refused(tmp_path):
    big = np.random.default_rng(0).bytes(2**18)
    rows = pa.array(np.zeros(50_000, np.int32))

    def repeated(value):
        return pa.DictionaryArray.from_arrays(rows, [value])

    def write(path, **columns):
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path, store_schema=False)

    write(tmp_path / "list" / "images.parquet", image=repeated("a" * 100_000))
    with pytest.raises(InputError, match="the table would become 5,000,000,000 bytes"):
        open_splits("folder", tmp_path / "list")
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, np.int32)), [picture(1)])
    write(tmp_path / "rows" / "train.parquet", image=many)
    with pytest.raises(InputError, match="3,000,000 rows in"):
        open_splits("huggingface", tmp_path / "rows")
    # Repeated pictures are decoded once each, not all at once.
    write(tmp_path / "same" / "train.parquet", image=repeated(big), label=rows)
    start = time.monotonic()
    split = open_splits("huggingface", tmp_path / "same")["train"]
    with pytest.raises(InputError, match="cannot identify image file"):
        split.read(0, 8)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.json": b"[" * 100_000}}, "label of a.*nested too deep"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.cls": b"1000000000"}}, "label '1000000000' of a is too large"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.json": b'{"label": 1e999}'}}, "label inf of a is too large"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.cls": b"\xff"}}, "label of a"),
        ("ade20k", {"images/training/a.jpg": b"", "sceneCategories.txt": b"a caf\xe9\n"}, "is not UTF-8"),
        ("imagenet", {"LOC_val_solution.csv": b"a,b\n1,2\n"}, "no list of ImageId"),
        ("imagenet", {"LOC_val_solution.csv": b"ImageId,PredictionString\nx,\n"}, "no list of ImageId"),
        ("imagenet", {"LOC_val_solution.csv": b"ImageId,PredictionString\n" + b"x" * 200_000}, "no list of ImageId"),
        ("deepfashion", {"fasion-annotation-train.csv": b"name:keypoints_y:keypoints_x\n" + b"x" * 200_000}, "line 1"),
    ],
)
def test_texts_beside_the_images_are_one_message(tmp_path, name, files, words):
    put(tmp_path / "train/n01/1.png", picture(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", picture(2))
    for path, content in files.items():
        put(tmp_path / path, tar_bytes(content) if isinstance(content, dict) else content)
    with pytest.raises(InputError, match=words):
        open_splits(name, tmp_path)


def test_a_byte_order_mark_and_other_encodings_of_names_cost_nothing(tmp_path):
    put(tmp_path / "train/1.png", picture(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", picture(2))
    put(tmp_path / "train/n01/2.png", picture(1))
    rows = "\ufeffImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4\n"
    put(tmp_path / "LOC_val_solution.csv", rows.encode())
    assert open_splits("imagenet", tmp_path)["val"].items[0].label == 0
    header = b"\xef\xbb\xbfname:keypoints_y:keypoints_x\n"
    for split, line in (("train", b"0\xe9.png: [1]: [1]\n"), ("val", b"")):
        put(tmp_path / f"fasion-annotation-{split}.csv", header + line)
    assert open_splits("deepfashion", tmp_path)["train"].keys


def test_features_of_any_shape_cost_the_names_alone(tmp_path):
    for features in ([1], {"label": [{"dtype": "int64"}]}, {"label": {"names": {"a": 1}}}, {"label": 3}):
        table = pa.table({"image": [{"bytes": picture(1), "path": None}] * 30, "label": [1] * 30})
        about = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), tmp_path / "train.parquet")
        assert open_splits("huggingface", tmp_path)["train"].items[0].label == 1


def test_pipes_among_the_files_are_refused(tmp_path):
    for name, file in (("webdataset", "train.tar"), ("huggingface", "train.parquet"), ("huggingface", "train.arrow")):
        folder = tmp_path / file
        folder.mkdir()
        os.mkfifo(folder / file)
        with pytest.raises(InputError, match=r"(no|not a) regular file"):
            open_splits(name, folder)


def test_where_samples_lie_and_where_an_output_may_go(tmp_path):
    for name in ("train/cat", "val/cat", "train_depth/cat"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            mode, colour = ("L", number) if "depth" in name else ("RGB", (number, 0, 0))
            Image.new(mode, (8, 8), colour).save(tmp_path / name / f"{number}.png")
    found = sources_of(open_splits("folder", tmp_path), tmp_path)
    assert found == [tmp_path / "train", tmp_path / "train_depth", tmp_path / "val"]
    check_apart(tmp_path / "run", data=found)  # beside them: no reader looks there
    for out in (".", "train", "train/run", "train_depth/cat", ".."):
        with pytest.raises(UserError, match="the input data"):
            check_apart(tmp_path / out, data=found)
    flat = sources_of(open_splits("folder", tmp_path / "train"), tmp_path / "train")
    assert flat == [tmp_path / "train", tmp_path / "train_depth"]  # classes: a further folder would be one
