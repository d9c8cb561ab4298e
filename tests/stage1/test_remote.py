"""Datasets in object stores, on the Hub and on web servers are read like the same files in a local folder."""

from __future__ import annotations

import io
import json
import socket
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hub_server import HubServer
from PIL import Image
from pyarrow import ipc, parquet
from s3_server import S3Server
from web_server import WebServer

from runkit import ranges, retries
from runkit.errors import UserError
from runkit.places import ChangedError, StoreError, open_store
from runkit.remote import open_folder
from vqgan.data import Split, open_splits, resolve, sources_of
from vqgan.errors import InputError

Write = Callable[[Path], None]
LABELS = ("cat", "dog", "owl")


def picture(seed: int, side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def grey(seed: int, side: int = 24) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 9, (side, side), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, first: int, count: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            parts = {
                "png": picture(number, side),
                "cls": LABELS[number % 3].encode(),
                "json": json.dumps({"caption": f"number {number}"}).encode(),
                "seg.png": grey(number, side),
            }
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_tars(root: Path) -> None:
    for number in range(3):
        write_tar(root / f"train-{number:06d}.tar", 100 * number, 7)
    write_tar(root / "val-000000.tar", 900, 4)


def table(first: int, count: int) -> pa.Table:
    images = [{"bytes": picture(number), "path": None} for number in range(first, first + count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [LABELS[number % 3] for number in range(first, first + count)]
    return pa.table(
        {"image": pa.array(images, kind), "label": labels, "caption": [f"number {n}" for n in range(count)]}
    )


def write_parquet(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 50), ("test-00000-of-00001", 90)):
        parquet.write_table(table(first, 10), root / f"data/{name}.parquet", row_group_size=4)


def write_arrow(root: Path) -> None:
    (root / "train").mkdir(parents=True)
    content = table(0, 11)
    with ipc.new_stream(root / "train/data-00000-of-00002.arrow", content.schema) as stream:
        stream.write_table(content, max_chunksize=4)
    with ipc.new_file(root / "train/data-00001-of-00002.arrow", content.schema) as file:
        file.write_table(table(50, 5), max_chunksize=2)


def write_folder(root: Path) -> None:
    for split, count in (("train", 9), ("val", 3)):
        for number in range(count):
            folder = root / split / LABELS[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split} {number}.png").write_bytes(picture(number))
            (folder / f"{split} {number}.txt").write_text(f"number {number}")
            maps = root / f"{split}_segmentation" / LABELS[number % 3]
            maps.mkdir(parents=True, exist_ok=True)
            (maps / f"{split} {number}.png").write_bytes(grey(number))
    (root / "train/cat/._train 0.png").write_bytes(b"")
    (root / "README.md").write_text("about")


def write_flat(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    for number in range(6):
        (root / f"a/b/{number}.png").write_bytes(picture(number))
    lines = [f"a/b/{n}.png,{LABELS[n % 3]},{'val' if n == 5 else 'train'},k{n}" for n in range(6)]
    (root / "images.csv").write_text("\n".join(["image,label,split,key", *lines, "a/none.png,cat,train,k9"]))


LAYOUTS: dict[str, tuple[str, Write]] = {
    "tars": ("webdataset", write_tars),
    "parquet": ("huggingface", write_parquet),
    "arrow": ("huggingface", write_arrow),
    "folder": ("folder", write_folder),
    "list": ("folder", write_flat),
}


def upload(root: Path, url: str) -> None:
    store = open_store(url)
    for path in root.rglob("*"):
        if path.is_file():
            (store / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())


def as_read(split: Split, index: int) -> Any:
    item = split.items[index]
    try:
        sample = split.read(index, 16, conditions=tuple(item.conditions), columns={"caption": "string"})
    except InputError as error:
        return item.key, item.label, str(error).startswith(item.key)
    maps = {name: array.tolist() for name, array in sample.conditions.items()}
    return sample.key, sample.label, sample.image.tolist(), maps, sample.columns


def assert_equal(found: dict[str, Split], wanted: dict[str, Split]) -> None:
    assert found.keys() == wanted.keys()
    for name, split in wanted.items():
        assert found[name].keys == split.keys
        assert found[name].class_names == split.class_names
        assert found[name].label_names == split.label_names
        assert found[name].conditions == split.conditions
        for index in range(len(split)):
            assert as_read(found[name], index) == as_read(split, index)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_is_read_like_a_folder(layout: str, s3: S3Server, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    write(tmp_path / "data")
    (tmp_path / "data/segmentation_labels.txt").write_text("sky\nwall\n")
    upload(tmp_path / "data", f"s3://bucket/some/{layout}")
    url = Path(f"s3://bucket/some/{layout}")  # the command line converts every argument to a Path
    assert resolve("auto", url) == resolve("auto", tmp_path / "data") == name
    found, wanted = open_splits("auto", url), open_splits("auto", tmp_path / "data")
    assert_equal(found, wanted)
    assert_equal(open_splits(name, url), wanted)
    assert found["val"].label_names == ("sky", "wall")
    assert all(split.source_hash() == open_splits(name, url)[key].source_hash() for key, split in found.items())
    assert all(f"s3://bucket/some/{layout}" in str(where) for where in sources_of(found, url))


@pytest.mark.parametrize("layout", ["tars", "parquet", "folder"])
def test_a_repository_of_the_hub_is_read_like_a_folder(layout: str, hub: HubServer, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    write(tmp_path / "data")
    hub.put_folder("datasets/owner/name", tmp_path)
    url = Path("hf://datasets/owner/name/data")
    found = open_splits(name, url)
    hashes = [split.source_hash() for split in found.values()]
    hub.put("datasets/owner/name", {"README.md": b"another commit"})
    assert [split.source_hash() for split in open_splits("auto", url).values()] == hashes
    hub.put("datasets/owner/name", dict.fromkeys(hub.files("datasets/owner/name"), b""))
    assert_equal(found, open_splits(name, tmp_path / "data"))  # of the commit that was listed
    with pytest.raises(StoreError, match=r"hf://datasets/owner/none .*there is no such repository"):
        open_splits("auto", Path("hf://datasets/owner/none"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    server = WebServer(tmp_path / "web")
    yield server
    server.close()


@pytest.mark.parametrize("layout", ["tars", "parquet"])
def test_a_list_of_a_web_server_is_read_like_a_folder(layout: str, web: WebServer, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    write(web.root / "set")
    names = sorted(path.relative_to(web.root).as_posix() for path in web.root.rglob("*") if path.is_file())
    lines = [names[0], *(f"{web.url}/{path}?token=a/b.txt" for path in names[1:])]
    (web.root / "list.txt").write_text("# files\n\n" + "\n".join(lines))
    wanted = open_splits(name, web.root / ("set" if layout == "tars" else "set/data"))
    assert_equal(open_splits("auto", Path(f"{web.url}/list.txt")), wanted)
    pattern = {
        "tars": "{train-{000000..000002},val-000000}.tar",
        "parquet": "data/{train-{00000..00001}-of-00002,test-00000-of-00001}.parquet",
    }[layout]
    assert_equal(open_splits(name, Path(f"{web.url}/set/{pattern}")), wanted)


def test_lists_of_web_servers_that_cannot_be_read_are_refused(web: WebServer) -> None:
    write_tars(web.root)
    (web.root / "index").write_text("<html>")
    (web.root / "bad.txt").write_text("ftp://host/a.tar")
    for path, reason in (
        ("index", "is not a list of files"),
        ("none.txt", "HTTP status 404"),
        ("train-{000000..000005}.tar", r"train-000003.tar is missing on the server"),
        ("bad.txt", "is not an http or https URL"),
        ("train-{000002..000001}.tar", "lists no files"),
    ):
        with pytest.raises((StoreError, UserError), match=reason):
            open_splits("webdataset", Path(f"{web.url}/{path}"))
    web.ranges = False
    assert len(open_splits("webdataset", Path(f"{web.url}/train-000000.tar"))["train"]) == 6  # small: read whole
    with (web.root / "big.tar").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(StoreError, match=r"big.tar .*does not support range requests.* has 17,825,792 bytes"):
        open_splits("webdataset", Path(f"{web.url}/big.tar"))


def test_a_web_server_may_fail_in_passing_but_not_change_a_file(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    write_tars(web.root)
    wanted, asked = open_splits("webdataset", web.root), Counter[str]()

    def every_third(path: str) -> bool:
        asked[path] += 1
        return asked[path] % 3 == 1

    web.fails = every_third
    found = open_splits("webdataset", Path(f"{web.url}/{{train-{{000000..000002}},val-000000}}.tar"))
    assert_equal(found, wanted)
    web.fails = lambda path: False
    write_tar(web.root / "val-000000.tar", 901, 4)
    with pytest.raises(InputError, match=r"val-000000.tar was changed while it was read"):
        found["val"].read(1, 16)
    with pytest.raises(ChangedError, match=r"val-000000.tar was changed after it was listed"):
        found["val"].check_unchanged()
    web.close()
    with pytest.raises(InputError, match=r"val-000000.tar cannot be read .*(refused|timed out)") as raised:
        found["val"].read(0, 16)
    assert retries.is_outage(raised.value)  # which postpones the shard


def test_planning_reads_headers_and_labels(s3: S3Server, tmp_path: Path) -> None:
    write_tar(tmp_path / "small/000.tar", 0, 60)
    write_tar(tmp_path / "large/000.tar", 0, 4, side=700)  # 1.5 MB each
    write_parquet(tmp_path / "tables")
    upload(tmp_path, "s3://bucket/plan")
    for name, requests, part in (("small", 2 + 3, 1.0), ("large", 3 + 3 * 4, 0.1), ("tables", 1 + 3 * 6, 1.0)):
        size = sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
        s3.count()
        found = open_splits("auto", Path(f"s3://bucket/plan/{name}"))
        planned = s3.count()
        assert planned.requests <= requests
        assert planned.nbytes <= size * part + 4096
        open_splits("webdataset" if name != "tables" else "huggingface", Path(f"s3://bucket/plan/{name}"))
        assert name == "tables" or s3.count().requests == 1  # the listing
        s3.count()
        found["train"].read(1, 16)
        assert s3.count().requests <= 3
    open_store("s3://bucket/photos/a.png").write_bytes(picture(0))
    file = open_folder("s3://bucket/photos") / "a.png"
    s3.count()
    assert len(file.file.read_at(0, 100)) == 100
    assert s3.count().requests == 2  # its state and the range; the next range is one more
    file.file.read_at(0, 10)
    assert s3.count().requests == 1


@pytest.mark.slow
def test_errors_in_passing_change_nothing(s3: S3Server, tmp_path: Path) -> None:
    write_tars(tmp_path / "data")
    upload(tmp_path / "data", "s3://bucket/data")
    wanted = open_splits("webdataset", tmp_path / "data")
    s3.status, count = "503 Slow Down", iter(range(10**6))

    def fails(environ: dict[str, Any]) -> bool:
        number = next(count)
        if number % 5 == 1:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)  # a dropped connection
        return number % 3 == 0

    s3.fails = fails
    assert_equal(open_splits("webdataset", Path("s3://bucket/data")), wanted)


def test_a_changed_object_is_noticed(s3: S3Server, tmp_path: Path) -> None:
    write_tars(tmp_path / "data")
    upload(tmp_path / "data", "s3://bucket/data")
    url, tar = Path("s3://bucket/data"), open_store("s3://bucket/data/train-000001.tar")
    found = open_splits("webdataset", url)
    before, content = found["train"].source_hash(), tar.read_bytes()
    index = next(i for i, item in enumerate(found["train"].items) if item.image.path.name == tar.name)
    found["train"].check_unchanged()
    for other in (content[:4096], content + bytes(512), None):
        tar.delete() if other is None else tar.write_bytes(other)
        with pytest.raises(ChangedError, match=r"s3://bucket/data/train-000001.tar was (changed|deleted)"):
            found["train"].check_unchanged()
        found["val"].check_unchanged()
        ranges._opened.cache_clear()  # as in another process
        with pytest.raises(InputError, match=r"s3://bucket/data/train-000001.tar was (changed|deleted)") as raised:
            found["train"].read(index, 16)
        assert isinstance(raised.value.__cause__, ChangedError)
    tar.write_bytes(content[:-2048])
    with pytest.raises(InputError, match=r"train-000001.tar cannot be read as an uncompressed tar .*truncated"):
        open_splits("webdataset", url)
    s3.touch("data/train-000001.tar", content, seconds=5)  # the same size and content, written later
    again = open_splits("webdataset", url)
    assert again["train"].keys == found["train"].keys
    assert again["train"].source_hash() != before
    with pytest.raises(InputError, match="was changed after it was listed"):
        found["train"].read(index, 16)


def test_what_cannot_be_read_from_a_store_is_refused_by_name(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"s3://bucket/none has no files, or there is no such bucket or folder"):
        open_splits("auto", Path("s3://bucket/none"))
    with pytest.raises(StoreError, match=r"s3://nobucket/x has no files"):
        open_splits("folder", Path("s3://nobucket/x"))
    open_store("s3://bucket/e/x.bin").write_bytes(b"1")
    open_store("s3://bucket/d/demo.json").write_bytes(b"{}")
    for name in ("auto", "demo"):
        with pytest.raises(InputError, match=r"s3://bucket/d.* is read from a local folder only: copy it"):
            open_splits(name, Path("s3://bucket/d"))
    with pytest.raises(InputError, match=r"no dataset is recognised in s3://bucket/e"):
        open_splits("auto", Path("s3://bucket/e"))
    with pytest.raises(StoreError, match=r"hdfs://x/y is not supported: use a local path or"):
        open_splits("auto", Path("hdfs://x/y"))
    s3.fails = lambda environ: True
    with pytest.raises(StoreError, match=r"s3://bucket/d cannot be listed .*credentials"):
        open_splits("auto", Path("s3://bucket/d"))


def test_maps_beside_the_listed_folder(s3: S3Server, tmp_path: Path) -> None:
    for number in range(3):
        open_store(f"s3://bucket/photos/{number}.png").write_bytes(picture(number))
        open_store(f"s3://bucket/photos_segmentation/{number}.png").write_bytes(grey(number))
    found = open_splits("folder", Path("s3://bucket/photos"))
    assert found["train"].conditions == ("segmentation",)


def test_paths_of_a_listing_are_those_of_a_folder(s3: S3Server, tmp_path: Path) -> None:
    for name in ("b/c.png", "b/d/e", "b.png", "a", "b-/x"):
        path = tmp_path / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    upload(tmp_path / "x", "s3://bucket/x")
    listed, local = open_folder("s3://bucket/x"), tmp_path / "x"
    for below in ("", "b", "b/d", "b/c.png", "none"):
        here, there = local / below, listed / below
        assert (there.is_dir(), there.is_file(), there.exists()) == (here.is_dir(), here.is_file(), here.exists())
        if below:
            assert (there.name, there.suffix) == (here.name, here.suffix)
        if here.is_dir():
            assert sorted(path.name for path in there.iterdir()) == sorted(path.name for path in here.iterdir())
    assert str(listed / "b" / "../b/c.png") == "s3://bucket/x/b/c.png"
