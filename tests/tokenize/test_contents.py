"""Where a job may start, what is deleted with a dataset, and which paths the names in its files may form."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_job import CONFIG
from tiny_shards import make_dataset

from codeshards.format import Manifest, ShardError, Sidecar, load_plan, open_store
from codeshards.format.contents import delete_dataset, save_dataset, save_or_match
from codeshards.format.files import write_sealed_json
from codeshards.format.manifest import sidecar_path
from codeshards.job.tokenize import tokenize
from codeshards.tools.convert import convert
from codeshards.tools.merge import merge
from imagepriors.cli import main
from runkit.errors import UserError


def world(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset, which tests must not change."""
    folder = tmp_path_factory.mktemp("finished") / "shards"
    make_dataset(folder, formats=["parquet", "webdataset"])
    return folder


_PARTS = st.one_of(
    st.sampled_from(
        [
            "train",
            "val",
            "tokenizer",
            "shard-000000.json",
            "shard-000099.tar",
            "shard-000000.txt",
            "config.json",
            "README.md",
        ]
    ),
    st.text("ab1. é", min_size=1, max_size=3).filter(lambda part: not part.startswith(".") and part.strip()),
)
_NAMES = st.lists(_PARTS, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60)
@given(foreign=st.dictionaries(_NAMES, st.binary(max_size=3), max_size=3))
def test_deletion_removes_only_the_dataset_or_nothing(finished, tmp_path_factory, foreign):
    """Any other file in the folder is kept, and then the dataset is kept too."""
    outside = tmp_path_factory.mktemp("world")
    shutil.copytree(finished, outside / "shards")
    (outside / "thesis.txt").write_text("years of work")
    (outside / "shards" / ".cache").mkdir()
    (outside / "shards" / ".cache" / "mine.npy").write_bytes(b"mine")
    kept = {"thesis.txt": b"years of work", "shards/.cache/mine.npy": b"mine"}
    for name, content in foreign.items():
        path = outside / "shards" / name
        if not path.exists() and all(parent.is_dir() or not parent.exists() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            kept[f"shards/{name}"] = content
    before = world(outside)
    if len(kept) == 2:
        delete_dataset(outside / "shards")
        assert world(outside) == kept
    else:
        with pytest.raises(ShardError, match="Nothing was deleted"):
            delete_dataset(outside / "shards")
        assert world(outside) == before


def test_changed_files_are_not_deleted(finished, tmp_path):
    for number, name in enumerate(sorted(world(finished))):
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        with (folder / name).open("ab") as file:
            file.write(b"edited by hand")
        before = world(folder)
        with pytest.raises(ShardError, match="Nothing was deleted"):
            delete_dataset(folder)
        assert world(folder) == before, name


def test_killed_deletion_can_be_repeated(finished, tmp_path, monkeypatch):
    store = type(open_store(tmp_path))
    delete = store.delete
    for left in range(len(world(finished))):
        folder = tmp_path / str(left)
        shutil.copytree(finished, folder)
        calls = 0

        def dying(place: Any, left: int = left) -> None:
            nonlocal calls
            if calls == left:
                raise KeyboardInterrupt
            calls += 1
            delete(place)

        with monkeypatch.context() as patch:
            patch.setattr(store, "delete", dying)
            with pytest.raises(KeyboardInterrupt):
                delete_dataset(folder)
        delete_dataset(folder)
        assert world(folder) in ({}, {"samples.parquet": (finished / "samples.parquet").read_bytes()})
        assert save_or_match(load_plan(finished), folder) is False


def test_dataset_in_an_object_store_is_deleted_by_its_records(s3):
    make_dataset("s3://bucket/shards")
    (open_store("s3://bucket") / "shards/notes.txt").write_bytes(b"mine")
    with pytest.raises(ShardError, match=r"notes\.txt.*Nothing was deleted"):
        delete_dataset("s3://bucket/shards")
    (open_store("s3://bucket") / "shards/notes.txt").delete()
    (open_store("s3://bucket") / "neighbour").write_bytes(b"mine")
    delete_dataset("s3://bucket/shards")
    assert open_store("s3://bucket").files() == ["neighbour"]


def test_lost_plan_is_written_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "d")
    plan = load_plan(finished)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"\0" * 40)):
        damage(tmp_path / "d" / "plan.json")
        if (tmp_path / "d" / "plan.json").exists():
            with pytest.raises(ShardError, match="move it away and run again"):
                save_or_match(plan, tmp_path / "d")
            (tmp_path / "d" / "plan.json").rename(tmp_path / "away")
        assert save_or_match(plan, tmp_path / "d") is False
        assert world(tmp_path / "d") == world(finished)


@pytest.mark.parametrize(
    "content", ['{"my": "plan"}', "[]", "years of work", '{"hash": "x", "plan": {"splits": {"../..": {"samples": 1}}}}']
)
def test_a_foreign_plan_deletes_nothing(tmp_path, content):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "plan.json").write_text(content)
    before = world(tmp_path)
    with pytest.raises(ShardError, match="Nothing was deleted"):
        delete_dataset(tmp_path)
    assert world(tmp_path) == before


def _renamed(value: Any, where: str, name: str) -> Any:
    """A manifest with one of its names replaced."""
    split = value["splits"]["train"]
    entry = split["shards"][0]
    if where == "tokenizer":
        value["tokenizer"]["folder"] = name
    elif where == "condition":
        value["conditions"]["segmentation"] = {"folder": name, "fingerprint": "x"}
    elif where == "split":
        value["splits"][name] = value["splits"].pop("train")
    elif where == "shard":
        entry["name"] = name
    elif where == "data file":
        entry["files"] = {name: next(iter(entry["files"].values()))}
    else:
        value["files"][name] = value["files"].pop("plan.json")
    return value


_HOSTILE = (
    st.lists(st.sampled_from(["..", ".", "", ".ssh", "a", "target", "\\", "b\0"]), min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda name: any(part in ("..", ".", "", ".ssh", "b\0") or "\\" in part for part in name.split("/")))
)


@settings(max_examples=60)
@given(where=st.sampled_from(["tokenizer", "condition", "split", "shard", "data file", "file"]), name=_HOSTILE)
def test_names_in_a_manifest_cannot_leave_the_folder(finished, tmp_path_factory, where, name):
    """A hostile manifest with a valid hash: nothing is written outside the output."""
    outside = tmp_path_factory.mktemp("world")
    shutil.copytree(finished, outside / "download" / "shards")
    for folder in ("download", "home"):
        for place in (".ssh", "target"):
            (outside / folder / place).mkdir(parents=True)
            (outside / folder / place / "config.json").write_text(folder)
    value = json.loads((finished / "dataset.json").read_text())
    del value["sha256"]
    write_sealed_json(outside / "download" / "shards" / "dataset.json", _renamed(value, where, name))
    before = world(outside)
    with pytest.raises(ShardError, match="not a plain file or folder name"):
        convert(outside / "download" / "shards", outside / "home" / "out", ["webdataset"])
    with pytest.raises(ShardError, match="not a plain file or folder name"):
        merge([finished, outside / "download" / "shards"], outside / "home" / "out")
    assert world(outside) == before


def test_names_in_sidecars_and_plans_cannot_leave_the_folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "d")
    shard = load_plan(finished).shards[0]
    path = sidecar_path(tmp_path / "d", shard)
    value = json.loads(Path(str(path)).read_text())
    del value["sha256"]
    for change in ({"split": "../../esc"}, {"files": {"../../../esc": {"sha256": "0", "bytes": 1}}}):
        write_sealed_json(path, {**value, **change})
        with pytest.raises(ShardError, match="not a plain file or folder name"):
            Sidecar.load(path)
    plan = json.loads((tmp_path / "d" / "plan.json").read_text())
    plan["plan"]["splits"]["../../esc"] = plan["plan"]["splits"].pop("train")
    (tmp_path / "d" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ShardError, match="not a plain file or folder name"):
        load_plan(tmp_path / "d")


def test_objects_with_invalid_names_are_refused(s3, tmp_path):
    import boto3

    boto3.resource("s3").Bucket("bucket").put_object(Key="d/tokenizer/../../x", Body=b"hostile")
    with pytest.raises(ShardError, match="is not a path"), (open_store("s3://bucket/d") / "tokenizer").as_folder():
        pass


def test_an_edited_card_is_kept(tmp_path):
    make_dataset(tmp_path / "d")
    manifest = Manifest.load(tmp_path / "d")
    card = tmp_path / "d" / "README.md"
    made = card.read_bytes()
    save_dataset(manifest, tmp_path / "d")
    assert card.read_bytes() == made
    card.write_bytes(made.replace(b"# Discrete image tokens", b"# My tokens"))
    edited = card.read_bytes()
    save_dataset(manifest, tmp_path / "d")
    assert card.read_bytes() == edited
    assert Manifest.load(tmp_path / "d").files["README.md"].bytes == len(edited)


@pytest.mark.parametrize("out", ["data", "data/train", ".", "tokenizer/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_job_never_writes_into_its_inputs(data, tokenizer, tmp_path, out, overwrite):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    before = world(tmp_path)
    with pytest.raises(UserError, match="choose an output folder apart from it"):
        tokenize(
            CONFIG, dataset="folder", data=tmp_path / "data", tokenizers={"image": tmp_path / "tokenizer"},
            out=tmp_path / out, overwrite=overwrite,
        )  # fmt: skip
    assert world(tmp_path) == before


def test_shards_are_never_written_into_a_folder_with_other_files(data, tokenizer, finished, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "photos")
    before = world(tmp_path)
    into = ["--out", str(tmp_path / "photos")]
    words = ["--dataset", "folder", "--data", str(data), "--tokenizer", str(tokenizer)]
    for command in (
        ["tokenize", *words, *into],
        ["tokenize", *words, *into, "--overwrite"],
        ["shards", "convert", str(finished), "--to", "webdataset", *into],
        ["shards", "merge", str(finished), str(finished), *into],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "choose another output folder" in message or "cannot be merged" in message
        assert "--overwrite" not in message
        assert world(tmp_path) == before


def test_each_message_about_a_damaged_file_names_a_remedy_that_works(
    local_ray_cores, data, tokenizer, undisturbed, tmp_path
):
    """Every file of a finished dataset cut in half in turn: run again, do what the message says, run again."""
    whole = world(undisturbed)
    kept = ["plan.json", "samples.parquet", "tokenizer/config.json", "tokenizer/model.safetensors"]
    shards = ["train/shard-000000.parquet", "val/shard-000000.parquet"]
    messages = {}
    for name in (*kept, "dataset.json", "README.md", "val/shard-000000.json", "val/shard-000000.parquet"):
        out = tmp_path / name.replace("/", "-")
        shutil.copytree(undisturbed, out)
        (out / name).write_bytes(whole[name][: len(whole[name]) // 2])
        for _ in range(2):
            try:
                tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
            except UserError as error:
                messages[name] = str(error)
                (out / name).rename(tmp_path / f"{out.name}-moved")
        assert {same: world(out)[same] for same in (*kept, *shards)} == {same: whole[same] for same in (*kept, *shards)}
        assert main(["shards", "verify", str(out)]) == 0
    assert messages.keys() == {"plan.json", "dataset.json"}
    for name, message in messages.items():
        assert name in message
        assert "delete it and run" in message or "move it away and run again" in message


def test_pipes_and_odd_numbers_among_the_files_are_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "d")
    value = json.loads((finished / "dataset.json").read_text())
    del value["sha256"]
    value["splits"]["train"]["shards"][0]["rows"] = "4"
    write_sealed_json(tmp_path / "d" / "dataset.json", value)
    with pytest.raises(ShardError, match="a shard has '4' rows"):
        Manifest.load(tmp_path / "d")
    path = Path(str(sidecar_path(tmp_path / "d", load_plan(finished).shards[0])))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShardError, match="is not a regular file"):
        Sidecar.load(path)
