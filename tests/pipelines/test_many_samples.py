"""Many samples: the three outputs, and that ranks, Ray workers and kills leave no trace in their bytes."""

import io
import json
import random
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import killed_at
from PIL import Image
from tiny_job import write_tokenizer
from tiny_shards import SPEC, make_dataset

import imagepriors as ip
from codeprior.config import ModelConfig, TrainConfig
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeshards.format import ShardError
from codeshards.format.files import sha256_file
from imagepriors.cli import main
from imagepriors.decode import many
from imagepriors.decode.many import Drawing, write_many
from imagepriors.decode.outputs import NpzOutput
from imagepriors.decode.partial import known_codes
from runkit.errors import UserError
from vqgan.checkpoint import fingerprint

N, SIDE = 22, 8
CONFIG = SampleConfig(batch_size=4, seed=3, guidance=2.0)
SCRIPT = """
import sys
from pathlib import Path
from test_many_samples import draw
from runkit.ranks import process_group

with process_group():
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with shards of pictures in three classes, and a class-conditional prior that is hardly trained."""
    root = tmp_path_factory.mktemp("many")
    tokenizer = write_tokenizer(root / "tokenizer", resolution=SIDE, ch_mult=(1, 1), codebook_size=50)
    image = replace(SPEC.image, fingerprint=fingerprint(tokenizer))
    make_dataset(root / "shards", spec=replace(SPEC, image=image), tokenizer=tokenizer, labelled=True)
    model = ModelConfig(n_layer=1, n_head=2, n_embd=16)
    config = TrainConfig(
        model=model, condition="class", cond_dropout=0.5, steps=2, warmup_steps=1, batch_size=4, device="cpu"
    )
    train_prior(config, root / "shards", root / "prior")
    return root


@pytest.fixture(scope="module")
def whole(run):
    """The samples, as one process draws them without an interruption."""
    draw(run, run / "whole.npz")
    return run / "whole.npz"


def drawing(run: Path, out: Path, n: int = N, config: SampleConfig = CONFIG, given: int = 0, **fields: Any) -> Drawing:
    sequence = ip.load_prior(run / "prior", device="cpu").sequence
    return Drawing(
        prior_run=run / "prior", sequence=sequence, shards=run / "shards", out=out, n=n, config=config,
        given=str(given), known_T=known_codes(sequence, given), device="cpu", threads=1, part_samples=8, **fields,
    )  # fmt: skip


def draw(run: Path, out: Path, **fields: Any) -> Path:
    return write_many(drawing(run, out, **fields))


def hashes(out: Path) -> dict[str, str]:
    """Suffix → hash of each file of a set."""
    return {path.name.removeprefix(out.stem): sha256_file(path) for path in sorted(out.parent.glob(f"{out.stem}*"))}


def test_an_npz_holds_what_the_prior_draws_in_balanced_classes(run, whole):
    prior = ip.load_prior(run / "prior", device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = prior.sample(N, config=CONFIG)
        pictures = np.stack([np.asarray(image) for image in expected])
    finally:
        torch.set_num_threads(threads)
    with np.load(whole) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(found["arr_0"], pictures)
        assert found["arr_1"].dtype == np.int64
        assert np.bincount(found["arr_1"]).tolist() == [8, 7, 7]
        labels = found["arr_1"]
    with np.load(whole.with_suffix(".codes.npz")) as codes:
        np.testing.assert_array_equal(codes["codes"], expected.codes)
        np.testing.assert_array_equal(codes["condition_class"], labels)
    about = json.loads(whole.with_suffix(".json").read_text())
    assert (about["n"], about["sampling"]["seed"], about["given"]) == (N, 3, "0")
    assert about["samples_of_class"] == {"cat": 8, "dog": 7, "owl": 7}
    assert about["tokenizer"] == prior.tokenizer.fingerprint
    assert about["prior_sha256"] == sha256_file(run / "prior/model.safetensors")
    assert Image.open(whole.with_suffix(".png")).size[0] > 3 * SIDE
    assert {path.name for path in run.glob("whole*")} == {
        "whole.npz", "whole.codes.npz", "whole.json", "whole.png",
    }  # fmt: skip


def test_an_npz_is_read_in_a_stream_as_the_evaluator_of_adm_does(whole):
    with zipfile.ZipFile(whole) as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(member)
        assert (shape, by_column, dtype) == ((N, SIDE, SIDE, 3), False, np.uint8)
        rows = [np.frombuffer(member.read(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3) for _ in range(N)]
        assert member.read(1) == b""
    np.testing.assert_array_equal(np.stack(rows), np.load(whole)["arr_0"])


def test_a_tar_and_a_folder_hold_the_same_pictures(run, whole, tmp_path):
    pictures, labels = (np.load(whole)[name] for name in ("arr_0", "arr_1"))
    draw(run, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    assert list(members)[:3] == ["000000.png", "000000.cls", "000001.png"]
    assert len(members) == 2 * N
    for index in range(N):
        found = np.asarray(Image.open(io.BytesIO(members[f"{index:06d}.png"])))
        np.testing.assert_array_equal(found, pictures[index])
        assert int(members[f"{index:06d}.cls"]) == labels[index]
    grid = draw(run, tmp_path / "folder")
    assert grid == tmp_path / "folder/grid.png"
    assert len(list(tmp_path.glob("folder/samples/*.png"))) == N
    for index in range(N):
        assert (tmp_path / f"folder/samples/{index:06d}.png").read_bytes() == members[f"{index:06d}.png"]
    assert sha256_file(tmp_path / "folder/codes.npz") == sha256_file(whole.with_suffix(".codes.npz"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "a.json", "a.codes.npz", "a.png", "folder"}
    with pytest.raises(ShardError, match=r"folder holds 22 samples .* choose another folder, or delete it first"):
        ip.load_prior(run / "prior", device="cpu").save_samples(tmp_path / "folder", 2)
    assert len(list(tmp_path.glob("folder/samples/*.png"))) == N


def test_two_processes_write_the_bytes_of_one(run, whole, tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, str(tmp_path / "script.py"), str(run), str(tmp_path / "whole.npz")]
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
    (tmp_path / "script.py").write_text(code + SCRIPT)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert hashes(tmp_path / "whole.npz") == hashes(whole)


@pytest.mark.slow
def test_two_workers_on_ray_write_the_bytes_of_one(local_ray_cores, run, whole, tmp_path):
    draw(run, tmp_path / "whole.npz", workers=2)
    assert hashes(tmp_path / "whole.npz") == hashes(whole)


def check_kills(run: Path, whole: Path, folder: Path, count: int) -> None:
    """Kill the job at `count` of its file operations (0: at each), resume it, and compare all that it leaves."""
    operations = killed_at(0, folder / "0", write_many, drawing(run, folder / "0/whole.npz"))
    moments = range(1, operations + 1)
    for at in random.sample(moments, count) if count else moments:
        killed_at(at, folder / str(at), write_many, drawing(run, folder / f"{at}/whole.npz"))
        draw(run, folder / f"{at}/whole.npz")
        assert hashes(folder / f"{at}/whole.npz") == hashes(whole), at


def test_a_kill_at_a_file_operation_leaves_no_trace(run, whole, tmp_path):
    check_kills(run, whole, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_file_operation_leaves_no_trace(run, whole, tmp_path):
    check_kills(run, whole, tmp_path, 0)


def test_finished_parts_are_kept_and_other_settings_are_refused(run, whole, tmp_path, monkeypatch):
    out, drawn = tmp_path / "whole.npz", list[int]()
    draw_part = many.PartWorker.run

    def interrupted(self, shard):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(shard.index)
        return draw_part(self, shard)

    monkeypatch.setattr(many.PartWorker, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(run, out)
    assert not out.exists()
    with pytest.raises(ShardError, match=r"settings.sampling.seed: 3 → 4\n"):
        draw(run, out, config=SampleConfig(batch_size=4, seed=4, guidance=2.0))
    monkeypatch.setattr(many.PartWorker, "run", lambda self, shard: drawn.append(shard.index) or draw_part(self, shard))
    draw(run, out)
    assert drawn == [0, 1, 2]
    assert hashes(out) == hashes(whole)
    draw(run, out)  # nothing to do
    assert drawn == [0, 1, 2]
    with pytest.raises(ShardError, match=r"holds other samples(.|\n)*n: 22 → 23"):
        draw(run, out, n=23)
    assert hashes(out) == hashes(whole)


def test_samples_of_other_classes_or_shards_are_not_the_same(run, tmp_path):
    draw(run, tmp_path / "a.npz", n=4, classes=np.array([0, 1, 0, 1]))
    with pytest.raises(ShardError, match=r"holds other samples(.|\n)*conditions_sha256"):
        draw(run, tmp_path / "a.npz", n=4, classes=np.array([1, 0, 1, 0]))
    upper = drawing(run, tmp_path / "b.npz", n=4, given=8)
    plans = [many.make_plan(replace(upper, known_T=known_T), "f") for known_T in (upper.known_T, ~upper.known_T)]
    assert plans[0].settings["given_codes"] == plans[1].settings["given_codes"]
    assert plans[0].settings != plans[1].settings

    write_many(upper)
    image = replace(SPEC.image, fingerprint=upper.sequence.fingerprint)
    make_dataset(
        tmp_path / "other", spec=replace(SPEC, image=image), tokenizer=run / "tokenizer", labelled=True, seed=7
    )
    with pytest.raises(ShardError, match=r"holds other samples(.|\n)*shards"):
        write_many(replace(upper, shards=tmp_path / "other"))


def test_what_is_refused_leaves_nothing_behind(run, tmp_path, capsys):
    command = ["sample", "--prior", str(run / "prior"), "--out", str(tmp_path / "a.npz"), "--n", "2", "--threads", "1"]
    for options, words in (
        (["--condition", "99"], "knows 0 … 2"),
        (["--steps", "8"], "steps = 8: this prior draws one code after the other"),
        (["--drafts", "2", "--precision", "bfloat16"], "only float32 on a CPU"),
        (["--dry-run", "--frames"], "leave it out, or --frames"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    assert main([*command, "--condition", "owl"]) == 0


def test_a_given_tokenizer_decodes_in_its_own_precision(run, tmp_path):
    tokenizer = ip.load_tokenizer(run / "tokenizer", device="cpu", precision="bfloat16")
    prior = ip.load_prior(run / "prior", tokenizer=tokenizer, device="cpu")
    prior.save_samples(tmp_path / "a.npz", 4, threads=1)
    assert json.loads((tmp_path / "a.json").read_text())["decoder"] == {"device": "cpu", "precision": "bfloat16"}
    of_worker = many.load_decoder(
        drawing(run, tmp_path / "a.npz", decoder=run / "tokenizer", decoder_precision="bfloat16")
    )
    pictures = of_worker.decode(np.load(tmp_path / "a.codes.npz")["codes"])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["arr_0"], pictures)


def test_files_of_others_are_kept(run, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.npz is there, and is not replaced"):
        draw(run, tmp_path / "a.npz")
    (tmp_path / "b.npz.parts").mkdir()
    (tmp_path / "b.npz.parts/samples").write_bytes(b"mine")
    with pytest.raises(UserError):
        draw(run, tmp_path / "b.npz")
    assert (tmp_path / "b.npz.parts/samples").read_bytes() == b"mine"


def test_given_codes_of_a_part_are_those_of_its_samples(run, tmp_path):
    draw(run, tmp_path / "given.npz", given=5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = ip.load_prior(run / "prior", device="cpu").sample(N, given=5, config=CONFIG)
    finally:
        torch.set_num_threads(threads)
    with np.load(tmp_path / "given.codes.npz") as codes:
        np.testing.assert_array_equal(codes["codes"], expected.codes)
        np.testing.assert_array_equal(codes["condition_class"], expected.conditions["class"])


def test_the_command_writes_chosen_classes_into_a_file(run, tmp_path, capsys):
    out = tmp_path / "b.npz"
    command = ["sample", "--prior", str(run / "prior"), "--n", "5", "--condition", "owl", "0", "--out", str(out)]
    assert main([*command, "--threads", "1"]) == 0
    assert str(tmp_path / "b.png") in capsys.readouterr().out
    assert np.load(out)["arr_1"].tolist() == [2, 0, 2, 0, 2]
    assert json.loads((tmp_path / "b.json").read_text())["samples_of_class"] == {"cat": 2, "owl": 3}
    assert main([*command, "--frames"]) == 2
    assert "by one process, into a folder" in capsys.readouterr().err


def test_a_dry_run_says_how_large_the_samples_are_and_writes_nothing(run, whole, tmp_path, capsys):
    plan = ip.plan_samples(run / "prior", tmp_path / "c.npz", 1201, batch_size=40)
    assert (plan.figures["parts"], plan.figures["parts_to_draw"]) == (3, 3)  # of 520, 520 and 161
    assert plan.figures["pictures_bytes"] == 1201 * SIDE * SIDE * 3
    assert plan.figures["time_s"] == pytest.approx(1201 * plan.figures["picture_s"], rel=0.1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.npz").write_bytes(b"mine")
    command = ["sample", "--prior", str(run / "prior"), "--n", "5", "--out", str(tmp_path / "c.npz"), "--dry-run"]
    assert main(command) == 2
    assert "is not replaced" in capsys.readouterr().err


def test_joining_takes_no_memory_for_the_pictures(tmp_path):
    parts, side = [tmp_path / f"{index}.pixels" for index in range(4)], 512
    for part in parts:
        with part.open("wb") as file:
            file.truncate(40 * side * side * 3)  # without blocks on the disk
    small = {"codes": b"", "grid": b"", "metadata": b""}
    tracemalloc.start()
    try:
        NpzOutput(tmp_path / "a.npz").write(parts, None, side, small)
        assert tracemalloc.get_traced_memory()[1] < 50e6  # of 126 MB
    finally:
        tracemalloc.stop()
    assert np.load(tmp_path / "a.npz", mmap_mode="r")["arr_0"].shape == (160, side, side, 3)
