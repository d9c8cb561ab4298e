"""`imagepriors shards …` on a dataset that the tokenize job made."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_job import write_images, write_tokenizer

from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset, ShardError
from codeshards.job.tokenize import tokenize
from imagepriors.cli import main
from imagepriors.decode.rows import load_shard_tokenizer


@pytest.fixture(scope="module")
def made(local_ray_cores, tmp_path_factory):
    """Pictures, and the shards made of them in both formats with scales and mirrored views."""
    root = tmp_path_factory.mktemp("shards")
    write_images(root / "data", train=20)
    write_tokenizer(root / "tokenizer")
    config = TokenizeConfig(
        shard_rows=12, batch_size=4, threads=1, workers=1, views=2, scales=(1, 2), formats=("parquet", "webdataset")
    )
    tokenizers = {"image": root / "tokenizer"}
    tokenize(config, dataset="folder", data=root / "data", tokenizers=tokenizers, out=root / "shards")
    return root


def test_verify_encodes_again(made, capsys, tmp_path):
    shards, pixels = str(made / "shards"), ["--dataset", "folder", "--data", str(made / "data")]
    assert main(["shards", "verify", shards, "--reencode", "8", *pixels]) == 0
    answer = capsys.readouterr().out
    assert "is whole" in answer
    assert (
        "8 samples encoded again in float32, share of equal codes: codes_row_major 100.00%, scale_1 100.00%" in answer
    )
    assert "encoded again in bfloat16" in answer
    assert main(["shards", "verify", shards, "--reencode", "8"]) == 2
    assert "pass the --data of tokenize" in capsys.readouterr().err
    for split in ("train", "val"):
        (tmp_path / "other" / split / "a").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "other" / split / "a/0.png")
    wrong = ["--dataset", "folder", "--data", str(tmp_path / "other")]
    assert main(["shards", "verify", shards, "--reencode", "8", *wrong]) == 2
    assert "is not what split" in capsys.readouterr().err


def test_verify_ends_with_the_problems_and_exit_code_2(made, capsys, tmp_path):
    assert main(["shards", "convert", str(made / "shards"), "--out", str(tmp_path / "t"), "--to", "webdataset"]) == 0
    path = tmp_path / "t/train/shard-000001.tar"
    intact = path.read_bytes()
    path.write_bytes(intact.replace(b"codes.npy", b"codex.npy", 1))
    assert main(["shards", "verify", str(tmp_path / "t")]) == 2
    error = capsys.readouterr().err
    assert "has 1 problem:" in error
    assert f"{path} is missing, or its sha256" in error
    path.write_bytes(intact)
    assert main(["shards", "verify", str(tmp_path / "t"), "--again"]) == 0
    assert "earlier run" not in capsys.readouterr().out
    path.unlink()
    assert main(["shards", "verify", str(tmp_path / "t")]) == 2
    path.write_bytes(intact)
    assert main(["shards", "verify", str(tmp_path / "t")]) == 0
    assert "shards were read by an earlier run; --again reads them too" in capsys.readouterr().out
    assert main(["shards", "verify", str(tmp_path / "t"), "--workers", "-1"]) == 2
    assert "workers is -1" in capsys.readouterr().err


def test_inspect_and_preview_show_the_dataset(made, capsys, tmp_path):
    shards = str(made / "shards")
    assert main(["shards", "inspect", shards, "--out", str(tmp_path / "i")]) == 0
    answer = capsys.readouterr().out
    assert "train: 40 rows of 20 samples, 0 failed" in answer
    assert "of 64 codes used, perplexity" in answer
    value = json.loads((tmp_path / "i/inspect.json").read_text())
    assert len(value["codes"]["image"]["entropy_bits_per_position"]) == 64
    assert {Image.open(tmp_path / "i" / name).format for name in ("entropy.png", "labels.png")} == {"PNG"}
    assert main(["shards", "preview", shards, "--n", "9", "--split", "train", "--out", str(tmp_path / "p.png")]) == 0
    assert Image.open(tmp_path / "p.png").size == (3 * 98 + 2, 3 * 98 + 2)
    assert main(["shards", "preview", shards, "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err


def test_merge_refuses_keys_that_occur_twice(made, capsys, tmp_path):
    shards = str(made / "shards")
    assert main(["shards", "merge", shards, shards, "--out", str(tmp_path / "m")]) == 2
    assert "occurs more than once" in capsys.readouterr().err


def test_codes_that_were_imported_without_a_tokenizer_are_not_decoded(made, capsys, tmp_path):
    lines = [json.dumps({"class_id": 0, "tokens": [code % 8] * 16}) for code in range(8)]
    (tmp_path / "tokens.jsonl").write_text("\n".join(lines) + "\n")
    shards = str(tmp_path / "shards")
    options = ["--codebook-size", "8", "--lines", "1", "--val-every", "4"]
    assert main(["shards", "import", str(tmp_path / "tokens.jsonl"), shards, *options]) == 0
    assert main(["shards", "preview", shards, "--out", str(tmp_path / "preview.png")]) == 2
    assert "imported without their tokenizer: import them again with it" in capsys.readouterr().err
    fingerprint = ShardDataset.open(shards).spec.image.fingerprint
    with pytest.raises(ShardError, match="imported without their tokenizer: import them again with it"):
        load_shard_tokenizer(shards, "tokenizer", fingerprint)


def test_the_job_writes_both_formats(made):
    manifest = ShardDataset.open(made / "shards").manifest
    assert manifest.formats == ("parquet", "webdataset")
    text = Path(made / "shards" / "README.md").read_text()
    assert "| `scale_2` | the picture, coarser: 4 codes (2×2) below 64 |" in text


def test_columns_are_added_by_commands(made, capsys, tmp_path):
    data, shards = tmp_path / "data", str(tmp_path / "shards")
    shutil.copytree(made / "data", data)
    shutil.copytree(made / "shards", shards)
    for split in ("train", "val"):
        for path in sorted((data / split).rglob("*.png")):
            place = data / f"{split}_depth" / path.relative_to(data / split)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("L").save(place)
    write_tokenizer(tmp_path / "depth", modality="depth")
    words = ["tokenize", "--data", str(data), "--out", shards, "--add-condition", str(tmp_path / "depth")]
    assert main([*words, "--workers", "1", "--preset", "demo"]) == 0
    assert "conditions       depth" in capsys.readouterr().out
    assert main([*words, "--tokenizer", str(made / "tokenizer"), "--preset", "demo"]) == 2
    assert "--add-condition takes finished shards" in capsys.readouterr().err
    assert main(["shards", "add", shards, "--scales", "4"]) == 0
    assert "scales 1, 2, 4 in" in capsys.readouterr().out
    assert main(["shards", "add", shards]) == 2
    assert "nothing to add" in capsys.readouterr().err
    assert main(["shards", "verify", shards]) == 0
    assert main(["shards", "preview", shards, "--out", str(tmp_path / "p.png"), "--n", "4"]) == 0
    assert main(["shards", "inspect", shards]) == 0
    assert "cond_depth" in capsys.readouterr().out
