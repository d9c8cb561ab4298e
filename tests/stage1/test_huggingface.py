"""The reader `huggingface`."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pictures import mask, png, put, shades

from vqgan.data import open_splits
from vqgan.errors import InputError


def hub_table(first: int, rows: int) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "image": pa.array([{"bytes": png(first + n), "path": None} for n in range(rows)], image),
        "annotation": pa.array([{"bytes": mask(first + n), "path": None} for n in range(rows)], image),
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
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, np.int32)), [png(1)])
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


def test_invalid_features_lose_the_class_names_alone(tmp_path):
    for features in ([1], {"label": [{"dtype": "int64"}]}, {"label": {"names": {"a": 1}}}, {"label": 3}):
        table = pa.table({"image": [{"bytes": png(1), "path": None}] * 30, "label": [1] * 30})
        about = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), tmp_path / "train.parquet")
        assert open_splits("huggingface", tmp_path)["train"].items[0].label == 1


def test_labels_and_images_of_many_column_types(tmp_path):
    one = {"bytes": png(), "path": None}
    words = pa.array(["b", "a", "b"], pa.large_string())
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    for name, columns, labels in (
        ("words", {"image": [one] * 3, "label": ["b", "a", None]}, [1, 0, None]),
        ("categories", {"image": [one] * 3, "label": pa.array(["b", "a", "b"]).dictionary_encode()}, [1, 0, 1]),
        ("floats", {"image": [one] * 3, "label": [2.0, None, -1.0]}, [2, None, None]),
        ("lists", {"image": [[one]] * 3, "label": [[2], [0], [1]]}, [2, 0, 1]),
        ("polars", {"image": pa.array([one] * 3, large), "label": words}, [1, 0, 1]),
        ("capitals", {"Image": [one] * 3, "Label": [1, 0, 2], "Depth": [one] * 3}, [1, 0, 2]),
        ("bytes", {"PNG": pa.array([png()] * 3, pa.large_binary()), "labels": [1, 0, 2]}, [1, 0, 2]),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for split in ("TRAIN", "val"):
            pq.write_table(pa.table(columns), tmp_path / name / f"{split}.Parquet")
        splits = open_splits("huggingface", tmp_path / name)
        for split in splits.values():
            assert [item.label for item in split.items] == labels, name
            split.read(2, 8)
            assert split.conditions == (("depth",) if name == "capitals" else ())
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table({"image": [one] * 3, "label": [[1, 2], [0], [1]]}), tmp_path / "two/train.parquet")
    with pytest.raises(InputError, match="neither a number nor a name"):
        open_splits("huggingface", tmp_path / "two")


VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])


PLAIN = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "images",
    [
        pa.array([{"bytes": png(), "path": None}], VIEWS),
        pa.array([png()], pa.binary_view()),
        pa.array([[png()]]),
        pa.array([[{"bytes": png(), "path": "x"}]], pa.list_(PLAIN, 1)),
        pa.array([{"bytes": None, "path": "a/1.png"}]),
    ],
    ids=lambda images: str(images.type)[:20],
)  # fmt: skip
def test_images_in_columns_of_any_type_are_read(tmp_path, images, kind):
    put(tmp_path / "a/1.png")
    for split in ("train", "val"):
        table = pa.table({"image": images, "label": pa.array([b"cat"], pa.binary_view())})
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{split}.parquet")
        else:
            with pa.ipc.new_stream(tmp_path / f"{split}.arrow", table.schema) as file:
                file.write_table(table)
    splits = open_splits("huggingface", tmp_path)
    assert shades(splits["val"]) == {"val/0000000": (0, 0)}
    assert splits["train"].class_names == ("cat",)


def test_dates_beyond_the_calendar_and_tables_with_other_classes_are_refused(tmp_path):
    image = pa.array([{"bytes": png(), "path": None}] * 2)
    days = pa.array([2**31 - 1, 0], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"image": image, "label": days}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet cannot be read: days"):
        open_splits("huggingface", tmp_path)
    (tmp_path / "list").mkdir()
    pq.write_table(pa.table({"image": ["1.png", "2.png"], "label": days}), tmp_path / "list/images.parquet")
    with pytest.raises(InputError, match=r"images\.parquet cannot be read: days"):
        open_splits("folder", tmp_path / "list")
    (tmp_path / "list/images.parquet").unlink()
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        about = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
        table = pa.table({"image": image, "label": [0, 1]}, metadata={"huggingface": about})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match="names other classes than the files before it"):
        open_splits("huggingface", tmp_path)


def test_the_listed_files_of_a_saved_dataset_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(20)], "label": [n % 3 for n in range(20)]}
    saved = datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    )
    datasets.DatasetDict({"train": saved, "test": saved.select(range(5))}).save_to_disk(tmp_path / "d")
    loaded = datasets.load_from_disk(tmp_path / "d")["train"]
    loaded.map(lambda row: {"label": row["label"] + 1}).shuffle(seed=0)  # both leave a cache beside the data
    assert list((tmp_path / "d/train").glob("cache-*.arrow"))
    splits = open_splits("huggingface", tmp_path / "d")
    assert [item.label for item in splits["train"].items] == rows["label"]
    assert len(splits["val"]) == 5
    (tmp_path / "d/train/data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match=r"is missing, but the state.json beside it lists it"):
        open_splits("huggingface", tmp_path / "d")
