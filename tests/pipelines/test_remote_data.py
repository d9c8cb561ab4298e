"""Every command that takes a folder of pictures takes its URL, or refuses it by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import S3Server
from tiny_pictures import TINY

import imagepriors as ip
from imagepriors.api.defaults import run_folder
from imagepriors.cli import main
from runkit.places import open_store

URL = "s3://bucket/sets/photos"


@pytest.fixture
def photos(s3: S3Server, write_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of which a copy is at URL."""
    root = write_images(tmp_path / "photos", {"train": 6, "val": 4})
    for path in root.rglob("*.png"):
        (open_store(URL) / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


def test_commands_read_pictures_from_a_store(
    local_ray_cores: object, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dpt: Path
) -> None:
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY)
    assert main(["inspect", "--data", URL, "--size", "32"]) == 0
    assert f"{URL} is read as folder" in capsys.readouterr().out
    assert main(["inspect", "--data", str(photos), "--size", "32", "--out", "local"]) == 0
    found, wanted = (json.loads((Path(f) / "inspection.json").read_text()) for f in ("runs/photos/inspect", "local"))
    assert {**found, "data": ""} == {**wanted, "data": ""}
    assert main(["train-vqgan", "--preset", str(preset), "--data", URL]) == 0
    capsys.readouterr()
    for words in (
        ["evaluate-tokenizer", "--tokenizer", "runs/photos/tokenizer", "--data", URL, "--frechet", "none"],
        ["tokenize", "--data", URL, "--dry-run"],
        ["train-palette", "--data", URL, "--colours", "4", "--resolution", "16", "--out", "palette"],
        ["report", "runs/photos", "--data", URL],
    ):
        assert main(words) == 0, capsys.readouterr().err
    assert URL in next(Path("runs/photos").rglob("*.html")).read_text()
    model = ["annotate", "depth", "--data", URL, "--model", str(dpt)]
    assert main(model) == 2
    assert f"no map can be beside an image of {URL}: pass --out DIR" in capsys.readouterr().err
    assert main([*model, "--out", "maps", "--shard-samples", "8", "--workers", "1"]) == 0
    assert (
        len(list(Path("maps/train_depth").rglob("*.png"))) == len(list(Path("maps/train_images").rglob("*.png"))) == 6
    )
    assert main(["tokenize", "--data", URL, "--tokenizer", "runs/photos/tokenizer", "--out", f"{URL}/train/o"]) == 2
    assert f"the output {URL}/train/o is in the input data {URL}/train" in capsys.readouterr().err
    assert main(["inspect", "imagenet", "--data", URL]) == 2
    assert f"{URL}: imagenet is read from a local folder only" in capsys.readouterr().err
    assert main(["inspect", "--data", "s3://bucket/none"]) == 2
    assert "s3://bucket/none has no files" in capsys.readouterr().err


def test_the_api_takes_urls(photos: Path) -> None:
    data, here = ip.open_dataset(URL), ip.open_dataset(photos)
    assert repr(data) == f"ImageDataset({URL!r}, layout folder: 6 train and 4 val images)"
    assert [image.tobytes() for image in data.images(n=3)] == [image.tobytes() for image in here.images(n=3)]
    assert ip.inspect(URL)["splits"] == ip.inspect(photos, out="here")["splits"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("s3://bucket/sets/photos/", "photos"),
        ("gs://bucket", "bucket"),
        ("hf://datasets/owner/name@v1", "name"),
        ("https://host/sets/cats/train-{000..099}.tar", "cats"),
        ("https://host/cats/list.txt?token=a.b", "cats"),
    ],
)
def test_runs_are_named_after_the_last_folder(data: str, name: str) -> None:
    assert run_folder(Path(data)) == Path("runs") / name
