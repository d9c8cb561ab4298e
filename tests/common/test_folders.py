"""Output folders: apart from inputs, held by one process, and replaced only where the same command made them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runkit import folders
from runkit.errors import UserError
from runkit.folders import check_apart, held, publish
from runkit.names import plain_name, plain_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is not hidden."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("out", "data", "how"),
    [
        ("d", "d", "is"),
        ("d/x/y", "d", "is in"),
        (".", "d/x", "holds"),
        ("link/x", "d", "is in"),
        ("d/../d", "d", "is"),
        ("s3://b/x", "s3://b/x/", "is"),
        ("s3://b/x/y", Path("s3://b/x"), "is in"),
        ("s3://b", "s3://b/x", "holds"),
    ],
)
def test_an_output_apart_from_its_inputs(tmp_path, monkeypatch, out, data, how):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with pytest.raises(UserError, match=f"{how} the input data"):
        check_apart(out, data=data)


@pytest.mark.parametrize(
    ("out", "data"), [("d2", "d"), ("e/d", "d"), ("s3://b/x2", "s3://b/x"), ("b/x", "s3://b/x"), ("d", None)]
)
def test_neighbours_are_apart(tmp_path, monkeypatch, out, data):
    monkeypatch.chdir(tmp_path)
    check_apart(out, data=data, tokenizer=[])


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path):
    code = """
import pathlib, sys
from runkit.folders import held
with held(pathlib.Path(sys.argv[1]), "train"):
    print("ready", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, tmp_path / "r"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        words = rf"in use by train \(process {process.pid} on "
        with pytest.raises(UserError, match=words), held(tmp_path / "r", "train"):
            pass
        with held(tmp_path / "r", "sample"):  # another command's files are its own
            pass
        process.kill()
    with held(tmp_path / "r", "train"):  # the lock went with the process, its file stayed
        assert (tmp_path / "r" / ".train.lock").exists()
    assert not (tmp_path / "r" / ".train.lock").exists()


def test_a_refusal_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "a" / "b", "train", reserved=["model"]):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c").mkdir()
    with held(tmp_path / "c", "train"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_reserved_names_are_free_or_ours(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with held(tmp_path, "train", reserved=["model*", "checkpoints"]):
        (tmp_path / "model.bin").write_text("made")
    with held(tmp_path, "train", reserved=["model*", "checkpoints"]):  # it has worked here before
        pass
    (tmp_path / ".train.lock").unlink()
    words = r"model\.bin is there and was not made by train"
    with pytest.raises(UserError, match=words), held(tmp_path, "train", reserved=["model*"]):
        pass
    with held(tmp_path, "train", reserved=["model*"], is_ours=lambda: True):
        pass


_LETTERS = st.text("ab0.-_ é", min_size=1, max_size=4).filter(lambda name: not name.startswith(".") and name.strip())
_PATHS = st.lists(_LETTERS, min_size=1, max_size=3).map("/".join)
_FILES = st.dictionaries(_PATHS, st.binary(max_size=3), max_size=6)


@given(mine=_FILES, draws=st.lists(_FILES, min_size=1, max_size=4))
def test_only_what_a_command_made_is_ever_replaced_or_deleted(tmp_path_factory, mine, draws):
    """Whatever is in the folder and however often the command runs: every foreign byte stays."""
    folder = tmp_path_factory.mktemp("world")
    for name, content in mine.items():
        with contextlib.suppress(OSError):  # a file where a folder is, or the other way round
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    foreign = contents(folder)
    for files in draws:
        try:
            publish(folder, files, "draw")
        except UserError:  # a name is taken
            assert foreign.items() <= contents(folder).items()
        else:
            assert contents(folder) == foreign | files
    (folder / "made").mkdir()
    publish(folder / "made", {"a": b"1", "b": b"2"}, "draw")
    (folder / "made" / "a").write_bytes(b"edited by hand")
    publish(folder / "made", {}, "draw")
    assert contents(folder / "made") == {"a": b"edited by hand"}


@pytest.mark.parametrize("name", ["", ".", "..", ".ssh", "a/b", "a\\b", "a\0b", "a\nb", None, 3, "x" * 256, "\ud800"])
def test_names_that_are_no_plain_names(name):
    with pytest.raises(UserError, match="is not a plain file or folder name"):
        plain_name(name, "the file")


@given(st.text(max_size=6))
def test_a_plain_path_stays_below_its_folder(name):
    folder = Path("/a/b")
    try:
        path = plain_path(name, "the file")
    except UserError:
        return
    assert (folder / path).is_relative_to(folder)
    assert ".." not in (folder / path).parts


@pytest.mark.parametrize("killed_at", range(1, 12))
def test_a_kill_while_files_are_written_costs_nothing(tmp_path, killed_at):
    """Killed before any rename or removal, the next call knows its own files, and only those."""
    code = f"""
import os, sys, pathlib
from runkit import folders, files
count = 0
def counted(call):
    def run(*args, **kwargs):
        global count
        count += 1
        if count == {killed_at}:
            os._exit(9)
        return call(*args, **kwargs)
    return run
pathlib.Path.replace = counted(pathlib.Path.replace)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
folder = pathlib.Path(sys.argv[1])
folders.publish(folder, {{"a": b"1", "s/b": b"2", "s/c": b"3"}}, "draw", last="a")
folders.publish(folder, {{"a": b"4", "s/b": b"2"}}, "draw", last="a")
"""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").write_bytes(b"mine")
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    publish(tmp_path, {"a": b"5"}, "draw")
    assert contents(tmp_path) == {"a": b"5", "s/mine": b"mine"}
    assert folders._read_record(tmp_path, "draw").keys() == {"a"}
