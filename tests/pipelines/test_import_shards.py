"""Published sets of tokens with their tokenizer: `imagepriors shards import` and `import_shards`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image
from tiny_job import MODEL, write_images, write_tokenizer

import imagepriors as ip
from imagepriors.cli import main
from vqgan import plugin_tokenizer
from vqgan.checkpoint import fingerprint, publish_model
from vqgan.model import build_model

IMAGES = 8


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of one line per image, with codes of an 8×8 grid."""
    codes = np.random.default_rng(0).integers(0, 64, (IMAGES, 64))
    lines = [json.dumps({"class_id": index, "tokens": row.tolist()}) for index, row in enumerate(codes)]
    (tmp_path / "tokens.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "tokens.jsonl"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_and_the_api_give_the_same_dataset_with_its_tokenizer(source: Path, tmp_path: Path, capsys) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    options = ["--lines", "1", "--val-every", "4", "--tokenizer", str(tokenizer)]
    assert main(["shards", "import", str(source), str(tmp_path / "a"), *options]) == 0
    assert "6 rows of train, 2 rows of val" in capsys.readouterr().out
    shards = ip.import_shards(source, tmp_path / "b", tokenizer=ip.load_tokenizer(tokenizer), lines=1, val_every=4)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    image, net = shards.spec.image, ip.load_tokenizer(tokenizer).config
    assert (image.height, image.width, image.codebook_size) == (*net.grid, net.codebook_size)
    assert shards.manifest.tokenizer == {"folder": "tokenizer", "fingerprint": fingerprint(tokenizer)}
    for name in ("config.json", "model.safetensors"):
        assert (shards.path / "tokenizer" / name).read_bytes() == (tokenizer / name).read_bytes()
    assert main(["shards", "preview", str(tmp_path / "a"), "--n", "2", "--out", str(tmp_path / "look.png")]) == 0
    assert Image.open(tmp_path / "look.png").size[0] > 0


def test_a_tokenizer_of_the_hub_is_downloaded_and_its_commit_recorded(
    source: Path, hub: HubServer, tmp_path: Path
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    ip.push(tokenizer, "user/tok")
    out = tmp_path / "shards"
    options = ["--lines", "1", "--val-every", "4", "--tokenizer", "hf://user/tok"]
    assert main(["shards", "import", str(source), str(out), *options]) == 0
    commit = hub.repositories["models/user/tok"].branches["main"]
    found = ip.open_shards(out).manifest.tokenizer
    assert found["source"] == f"hf://user/tok@{commit}"
    assert found["fingerprint"] == fingerprint(tokenizer)


def test_a_tokenize_job_records_the_commit_of_its_tokenizer(
    local_ray_cores: object, hub: HubServer, tmp_path: Path
) -> None:
    ip.push(write_tokenizer(tmp_path / "tokenizer"), "user/tok")
    photos = write_images(tmp_path / "photos", train=4, val=2)
    shards = ip.tokenize(photos, "hf://user/tok", out=tmp_path / "shards", workers=1, threads=1, shard_rows=8)
    commit = hub.repositories["models/user/tok"].branches["main"]
    assert shards.manifest.tokenizer["source"] == f"hf://user/tok@{commit}"
    assert (tmp_path / "shards/tokenizer/config.json").is_file()
    again = ip.tokenize(photos, tmp_path / "tokenizer", out=tmp_path / "local", workers=1, threads=1, shard_rows=8)
    assert again.fingerprint == shards.fingerprint  # where a tokenizer is from does not identify the codes


def test_tokenizers_that_do_not_fit_are_refused_with_one_message(source: Path, tmp_path: Path, capsys) -> None:
    depth = dataclasses.replace(MODEL, modality="depth")
    publish_model(tmp_path / "depth", depth, build_model(depth), "import-tokenizer")
    small = dataclasses.replace(MODEL, resolution=16)
    publish_model(tmp_path / "small", small, build_model(small), "import-tokenizer")
    for name, message in {
        "depth": "encodes depth, expected rgb",
        "small": "an image has 64 codes, not 4×4",
        "missing": "no tokenizer in",
    }.items():
        words = ["shards", "import", str(source), str(tmp_path / "out"), "--lines", "1", "--val-every", "4"]
        assert main([*words, "--tokenizer", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


STRIPS = """
import numpy as np

class Row:
    resolution, grid, codebook_size, fingerprint = 32, (1, 64), 256, "strips"

    def encode(self, pictures):
        raise NotImplementedError

    def decode(self, codes):
        return codes[..., :32, None, None].astype(np.uint8).repeat(32, -2).repeat(3, -1).reshape(-1, 32, 32, 3)
"""


def test_codes_of_a_tokenizer_of_another_package_are_shown_if_a_person_names_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "import_strips.py").write_text(STRIPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    out, name = tmp_path / "shards", "import_strips:Row"
    shards = ip.import_shards(source, out, tokenizer=name, lines=1, val_every=4)
    assert (shards.spec.image.height, shards.spec.image.width) == (1, 64)
    monkeypatch.setattr(plugin_tokenizer, "_NAMED", set())  # as in a process that has not been given the name
    show = ["shards", "preview", str(out), "--n", "2", "--out", str(tmp_path / "look.png")]
    assert main(show) == 2
    assert f"pass {name} as the tokenizer" in capsys.readouterr().err
    assert main([*show, "--tokenizer", name]) == 0
    assert main([*show, "--tokenizer", str(write_tokenizer(tmp_path / "other"))]) == 2
    assert "decode with the tokenizer that made them" in capsys.readouterr().err
