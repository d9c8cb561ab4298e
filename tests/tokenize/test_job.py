"""The tokenize job: bytes follow from the plan, also after kills; bad samples are named; wrong input is refused."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from tiny_job import CONFIG, MORTAL, hashes

from codeshards.config import TokenizeConfig
from codeshards.format import GridSpec, Manifest, ShardDataset, ShardError, ShardSpec, Sidecar, load_plan, open_store
from codeshards.format.contents import save_or_match
from codeshards.format.files import sha256_file
from codeshards.format.manifest import MANIFEST_FILE
from codeshards.format.plan import PlannedShard
from codeshards.job.encode import ShardTask, encode_shard
from codeshards.job.resume import Arrivals
from codeshards.job.scheduler import run_shards
from codeshards.job.tokenize import tokenize
from codeshards.tools.reencode import reencode
from codeshards.tools.verify import verify
from imagepriors.decode.rows import load_shard_tokenizer
from vqgan.checkpoint import architecture_of, fingerprint, load_config, save_model
from vqgan.config import ModelConfig, TrainConfig
from vqgan.data import Item, Split, open_splits
from vqgan.data.sources import File
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer


def test_shards_hold_the_tokenizers_codes_in_every_order(data, tokenizer, undisturbed):
    dataset = ShardDataset.open(undisturbed)
    assert dataset.class_names == ("class0", "class1", "class2")
    assert (dataset.rows("train"), dataset.rows("val")) == (60, 6)
    split, encoder = open_splits("folder", data)["val"], Tokenizer.load(tokenizer, device="cpu")
    (batch,) = dataset.batches("val", ["key", "label", "codes_row_major", "codes_alternate"])
    assert batch["key"].tolist() == split.keys
    codes = encoder.encode([split.read(i, 32).image for i in range(4)])  # the job's first batch
    np.testing.assert_array_equal(batch["codes_row_major"][:4], codes.reshape(4, -1))
    snake = codes.copy()
    snake[:, 1::2] = snake[:, 1::2, ::-1]
    np.testing.assert_array_equal(batch["codes_alternate"][:4], snake.reshape(4, -1))
    assert batch["label"].tolist() == [item.label for item in split.items]


def test_licence_can_be_added_later(local_ray_cores, data, tokenizer, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "o")
    where = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": tmp_path / "o"}
    assert tokenize(replace(CONFIG, license="cc-by-4.0"), **where).license == "cc-by-4.0"
    assert 'license: "cc-by-4.0"' in (tmp_path / "o" / "README.md").read_text()
    assert tokenize(CONFIG, **where).license == "cc-by-4.0"  # not named again: what it was
    assert sorted(hashes(tmp_path / "o")) == sorted(hashes(undisturbed))


def test_job_planned_with_an_earlier_fingerprint_is_resumed(data, tokenizer, undisturbed, tmp_path):
    """Earlier versions hashed the bytes of the file, including the sha256 in it."""
    architecture = architecture_of(load_config(tokenizer).model)
    content = architecture + (tokenizer / "model.safetensors").read_bytes()
    earlier = hashlib.sha256(content).hexdigest()[:16]
    plan = load_plan(undisturbed)
    assert plan.settings["spec"]["image"]["fingerprint"] == fingerprint(tokenizer) != earlier
    plan.settings["spec"]["image"]["fingerprint"] = earlier
    save_or_match(plan, tmp_path / "o")
    where = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": tmp_path / "o"}
    made = tokenize(CONFIG, **where)
    assert made.spec.image.fingerprint == made.tokenizer["fingerprint"] == earlier
    assert verify(tmp_path / "o", fingerprint_of=fingerprint).problems == ()
    assert load_shard_tokenizer(tmp_path / "o", "tokenizer", earlier).fingerprint == earlier
    assert tokenize(CONFIG, overwrite=True, **where).spec.image.fingerprint == fingerprint(tokenizer)


def test_two_workers_give_the_same_bytes(data, tokenizer, undisturbed, tmp_path):
    config = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=2)
    tokenize(config, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=tmp_path / "o")
    assert hashes(tmp_path / "o") == hashes(undisturbed)


def test_temporary_files_of_killed_processes_are_removed(data, tokenizer, undisturbed, tmp_path, monkeypatch):
    """A driver died while copying a tokenizer; then a worker dies while writing, and another makes its shard."""
    out = tmp_path / "o"
    (out / "tokenizer").mkdir(parents=True)
    (out / "tokenizer" / ".model.safetensors.tmp-1-dead").write_bytes(b"half")

    def with_a_death(*arguments, **settings):
        run_shards(*arguments, **settings)
        (out / "train" / ".shard-000001.parquet.tmp-2-dead").write_bytes(b"half")

    monkeypatch.setattr("codeshards.job.tokenize.run_shards", with_a_death)
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
    assert not list(out.rglob("*.tmp-*"))
    assert hashes(out) == hashes(undisturbed)
    assert verify(out).problems == ()


def test_killed_driver_then_resumed_gives_the_same_bytes(data, tokenizer, undisturbed, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "from pathlib import Path\nfrom codeshards.config import TokenizeConfig\n"
        "from codeshards.job.tokenize import tokenize\n"
        f"c = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=2)\n"
        f"tokenize(c, dataset='folder', data=Path({str(data)!r}), tokenizers={{'image': Path({str(tokenizer)!r})}}, "
        f"out=Path({str(tmp_path / 'o')!r}))\n"
    )
    rng = random.Random(7)
    for _ in range(2):
        job = subprocess.Popen([sys.executable, script], start_new_session=True, stderr=subprocess.DEVNULL)
        seen = len(list((tmp_path / "o").rglob("shard-*.json")))
        deadline = time.monotonic() + 90
        while job.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "o").rglob("shard-*.json"))) > seen:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=tmp_path / "o")
    assert hashes(tmp_path / "o") == hashes(undisturbed)
    assert not list((tmp_path / "o").rglob("*.tmp-*"))


def test_killed_worker_does_not_change_the_bytes(data, tokenizer, undisturbed, tmp_path):
    """The first worker that finds no marker dies as if killed by the kernel's out-of-memory killer."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, pathlib\nimport codeshards.job.tokenize as job\nfrom codeshards.config import TokenizeConfig\n"
        f"marker = pathlib.Path({str(tmp_path / 'died')!r})\n"
        f"{MORTAL}"
        "c = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=2)\n"
        f"job.tokenize(c, dataset='folder', data=pathlib.Path({str(data)!r}), "
        f"tokenizers={{'image': pathlib.Path({str(tokenizer)!r})}}, out=pathlib.Path({str(tmp_path / 'o')!r}))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "died").exists()
    assert hashes(tmp_path / "o") == hashes(undisturbed)


def test_finished_job_returns_at_once_and_a_lost_shard_is_made_again(data, tokenizer, undisturbed):
    before = hashes(undisturbed)
    start = time.monotonic()
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=undisturbed)
    assert time.monotonic() - start < 3
    (undisturbed / "train" / "shard-000002.parquet").unlink()
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=undisturbed)
    assert hashes(undisturbed) == before


def test_changed_plan_is_refused_with_the_differences(data, tokenizer, undisturbed):
    config = TokenizeConfig(shard_rows=16, batch_size=4, threads=1)
    with pytest.raises(ShardError, match="shard_rows: 8 → 16"):
        tokenize(config, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=undisturbed)


def test_missing_condition_and_wrong_modality_are_refused(data, tokenizer, tmp_path):
    both = {"image": tokenizer, "segmentation": tokenizer}
    with pytest.raises(ShardError, match="encodes rgb, expected segmentation"):
        tokenize(CONFIG, dataset="folder", data=data, tokenizers=both, out=tmp_path / "o")
    model = ModelConfig(modality="depth", resolution=32, ch=32, ch_mult=(1, 1, 1), codebook_size=64)
    save_model(tmp_path / "depth", TrainConfig(model=model), VQGAN(model))
    both = {"image": tokenizer, "depth": tmp_path / "depth"}
    with pytest.raises(ShardError, match="has depth"):
        tokenize(CONFIG, dataset="folder", data=data, tokenizers=both, out=tmp_path / "o")


def test_bad_sample_costs_one_row_and_is_named(data, tokenizer, tmp_path):
    items = open_splits("folder", data)["val"].items
    with items[1].image.open() as file:
        (tmp_path / "broken.png").write_bytes(file.read()[:60])
    items = [items[0], Item(key="broken", image=File(str(tmp_path / "broken.png"))), *items[2:]]
    encoder = Tokenizer.load(tokenizer, device="cpu")
    spec = ShardSpec(image=GridSpec(height=8, width=8, codebook_size=64, fingerprint=encoder.fingerprint))
    shard = PlannedShard(split="val", index=0, start=0, stop=6)
    task = ShardTask(shard=shard, plan_hash="p", samples=Split(items))
    sidecar = encode_shard(task, tokenizers={"image": encoder}, spec=spec, config=CONFIG, out=tmp_path)
    assert (sidecar.rows, sidecar.samples) == (5, 5)
    assert sidecar.failures[0].key == "broken"
    assert "broken.png" in sidecar.failures[0].reason
    assert json.loads((tmp_path / "val" / "shard-000000.json").read_text())["failures"][0]["key"] == "broken"


def test_dataset_with_too_many_failures_is_not_finished(data, tokenizer, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "train").rglob("*.png"))[:3]:
        path.write_bytes(b"not a picture")
    where = {"dataset": "folder", "data": tmp_path / "data", "tokenizers": {"image": tokenizer}, "out": tmp_path / "o"}
    with pytest.raises(ShardError, match="3 of 66 samples failed"):
        tokenize(CONFIG, **where)
    assert not (tmp_path / "o" / MANIFEST_FILE).exists()
    manifest = tokenize(TokenizeConfig(shard_rows=8, batch_size=4, threads=1, max_failure_rate=0.1), **where)
    assert (manifest.splits["train"].rows, manifest.splits["train"].failures) == (57, 3)
    for config in (CONFIG, replace(CONFIG, license="mit")):  # nothing to make: judged again, and nothing is lost
        with pytest.raises(ShardError, match="3 of 66 samples failed"):
            tokenize(config, **where)
        assert Manifest.load(tmp_path / "o").splits == manifest.splits


def test_shards_that_never_become_visible_end_the_job(tmp_path):
    shards = [PlannedShard(split="val", index=index, start=0, stop=1) for index in range(3)]
    made = [Sidecar(plan_hash="p", split="val", index=one.index, rows=1, samples=1, files={}) for one in shards]
    arrivals = Arrivals(open_store(tmp_path), "p", timeout_s=0.0)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/shard-000000.json").write_text("{}")
    arrivals.expect(shards[0], made[0])
    with pytest.raises(ShardError, match=r"val/shard-000001 was made .* nodes must share that folder"):
        arrivals.expect(shards[1], made[1])
    Arrivals(open_store(tmp_path), "p").expect(shards[2], made[2])  # a network file system may show it later
    Arrivals(open_store("s3://bucket/o"), "p", timeout_s=0.0).expect(shards[2], made[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard_rows", 0),
        ("shard_rows", 2**21),
        ("shard_rows", 2**64),
        ("shard_rows", 8.0),
        ("views", 3),
        ("views", True),
        ("max_failure_rate", 2.0),
        ("max_failure_rate", float("nan")),
        ("orders", ()),
        ("orders", ("spiral",)),
        ("orders", ("zcurve", "zcurve")),
        ("scales", (2, 1)),
        ("precision", "float16"),
        ("device", "gpu"),
        ("batch_size", 10**6),
        ("threads", 10**4),
        ("workers", 10**6),
        ("workers", -1),
        ("decode_threads", 10**4),
        ("license", 3),
    ],
)
def test_bad_settings_name_field_and_value(field, value):
    with pytest.raises(ShardError, match=field):
        TokenizeConfig(**{field: value})


def test_the_job_writes_to_an_object_store_and_resumes_there(s3, data, tokenizer, undisturbed):
    """While the server refuses some shards the job fails with a message; then it resumes."""
    arguments = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": "s3://bucket/o"}
    s3.fails = lambda environ: environ["REQUEST_METHOD"] != "GET" and "train/shard-000003.parq" in environ["PATH_INFO"]
    with pytest.raises(ShardError, match=r"s3://bucket/o/train/shard-000003.parquet cannot be .*credentials"):
        tokenize(CONFIG, **arguments)
    out = open_store("s3://bucket/o")
    assert not (out / MANIFEST_FILE).exists()
    assert "train/shard-000003.parquet" not in out.files()
    assert "train/shard-000000.json" in out.files()
    s3.fails = lambda environ: False
    tokenize(CONFIG, **arguments)
    found = {name: sha256_file(out / name) for name in hashes(undisturbed)}
    assert found == hashes(undisturbed)
    assert verify(out, fingerprint_of=fingerprint).problems == ()


def test_pictures_resized_by_torch_have_a_plan_of_their_own(local_ray_cores, data, tokenizer, tmp_path):
    arguments = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": tmp_path / "out"}
    tokenize(replace(CONFIG, resampler="torch"), **arguments)
    settings = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]["settings"]
    assert settings["resampler"] == "torch"
    with pytest.raises(ShardError, match=r'settings.resampler: "torch" → null'):
        tokenize(CONFIG, **arguments)
    rates = reencode(tmp_path / "out", source="folder", data=data, samples=8, device="cpu")
    assert set(rates.same.values()) == {1.0}
