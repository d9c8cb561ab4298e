"""Repositories of the Hugging Face Hub as stores, by the real client against a server of the Hub's protocol."""

import builtins
import pickle
from typing import Any

import pytest
from hub_server import HubServer

from runkit import objects
from runkit.errors import UserError
from runkit.places import StoreError, WriteError, open_store

REPOSITORY = "hf://datasets/owner/name"


@pytest.fixture(autouse=True)
def files(hub: HubServer) -> None:
    hub.put("datasets/owner/name", {"dataset.json": b"{}", "train/a.bin": b"0123456789", "train/deep/b": b""})


def test_files_of_a_repository_are_read(hub: HubServer) -> None:
    store = pickle.loads(pickle.dumps(open_store(REPOSITORY)))
    assert str(store) == REPOSITORY
    assert store.local is None
    assert store.files() == ["dataset.json", "train/a.bin", "train/deep/b"]
    assert (store / "train").files() == ["a.bin", "deep/b"]
    assert (store / "none").files() == []
    file = store / "train/a.bin"
    assert (file.size(), file.read_bytes()) == (10, b"0123456789")
    assert ((store / "train").size(), (store / "none").size(), (store / "train/deep/b").size()) == (None, None, 0)
    with file.open() as opened:
        opened.seek(4)
        assert opened.read(3) == b"456"
    with pytest.raises(FileNotFoundError):
        (store / "none").open()
    with store.as_folder() as folder:
        assert (folder / "train/a.bin").read_bytes() == b"0123456789"
    assert open_store(f"{REPOSITORY}@main/train").files() == ["a.bin", "deep/b"]


def test_a_file_is_downloaded_once_and_a_new_file_is_seen(hub: HubServer) -> None:
    store = open_store(REPOSITORY)
    assert store.files() == ["dataset.json", "train/a.bin", "train/deep/b"]
    for _ in range(2):
        assert (store / "train/a.bin").read_bytes() == b"0123456789"
    assert hub.requests.count("GET /datasets/owner/name/resolve/main/train/a.bin") == 1
    hub.put("datasets/owner/name", {"train/new": b"1", "train/a.bin": b"changed"})
    assert (store / "train").files() == ["a.bin", "deep/b", "new"]
    assert ((store / "train/new").read_bytes(), (store / "train/a.bin").read_bytes()) == (b"1", b"changed")


def test_a_repository_is_read_only(hub: HubServer) -> None:
    file = open_store(REPOSITORY) / "train/a.bin"
    with pytest.raises(WriteError, match=r"train/a.bin cannot be written \(the Hub is read-only.*local folder.*upload"):
        file.write_bytes(b"1")
    with pytest.raises(StoreError, match=r"train/a.bin cannot be deleted .*read-only"):
        file.delete()


def test_a_server_that_fails_is_not_a_missing_file(hub: HubServer) -> None:
    store, hub.status = open_store(REPOSITORY), "403 Forbidden"
    for work in (store.files, (store / "dataset.json").size, (store / "dataset.json").open):
        with pytest.raises(StoreError, match=r"cannot be .*403.*Check the address, the credentials"):
            work()
    assert len(hub.requests) == 3
    hub.status = "503 Service Unavailable"
    with pytest.raises(StoreError, match="Check the address, the credentials"):
        (store / "dataset.json").size()
    assert len(hub.requests) == 3 + 2
    hub.close()
    with pytest.raises(StoreError, match="Check the address, the credentials and the network"):
        (store / "dataset.json").size()


def test_unknown_repositories_are_refused(hub: HubServer) -> None:
    with pytest.raises(StoreError, match=r"hf://datasets/owner/other/x cannot be read .*credentials"):
        (open_store("hf://datasets/owner/other") / "x").open()
    with pytest.raises(StoreError, match="names no repository: write hf://datasets/OWNER/NAME"):
        open_store("hf://name").files()
    with pytest.raises(StoreError, match="names no bucket or repository: write hf://datasets/OWNER/NAME"):
        open_store("hf://")


def test_a_missing_client_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_client(name: str, *arguments: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_client)
    objects._hugging_face.cache_clear()
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        open_store(REPOSITORY).files()
