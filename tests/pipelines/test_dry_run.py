"""Plans of jobs: what they say, and that nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest

import imagepriors as ip
from imagepriors.cli import main
from imagepriors.demo.layouts import write_demo_data

TINY_VQGAN = {
    "steps": 4, "batch_size": 4, "eval_every": 4, "eval_images": 4, "checkpoint_every": 2,
    "model": {"ch": 8, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "resolution": 32},
    "loss": {"disc_start": 2, "perceptual": "none"},
}  # fmt: skip
TINY_PRIOR = {"steps": 6, "batch_size": 4, "checkpoint_every": 4, "model": {"n_layer": 1, "n_head": 2, "n_embd": 16}}


@pytest.fixture(scope="module")
def work(local_ray_cores, tmp_path_factory):
    """A folder with data, a tokenizer, shards and a prior, and the plans that were made before each."""
    root = tmp_path_factory.mktemp("plans")
    data, run = root / "data", root / "run"
    write_demo_data(data, n_train=24, n_val=6, size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        plans = [ip.plan_tokenizer(data, out=run / "tokenizer", preset="demo", **TINY_VQGAN)]
        ip.train_tokenizer(data, out=run / "tokenizer", preset="demo", **TINY_VQGAN)
        job = {"out": run / "shards", "shard_rows": 10, "views": 2, "workers": 1}
        plans.append(ip.plan_tokenize(data, run / "tokenizer", **job))
        ip.tokenize(data, run / "tokenizer", **job)
        plans.append(ip.plan_prior(run / "shards", out=run / "prior", condition="class", preset="demo", **TINY_PRIOR))
        ip.train_prior(run / "shards", out=run / "prior", condition="class", preset="demo", **TINY_PRIOR)
    return root, plans


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_plans_have_the_counts_and_sizes_of_what_is_made(work):
    root, (tokenizer, shards, prior) = work
    run = root / "run"
    assert tokenizer.figures["images"] == {"train": 24, "val": 6}
    assert (tokenizer.figures["steps"], tokenizer.figures["adversarial_steps"]) == (4, 2)
    found = ip.open_shards(run / "shards")
    assert shards.figures["rows"] == 60
    assert shards.figures["shards_to_make"] == sum(len(found.shards(split)) for split in found.splits) == 7
    made = sum(path.stat().st_size for path in run.glob("shards/*/*.parquet"))
    assert shards.figures["shards_bytes"] == pytest.approx(made, rel=0.15)
    summary = ip.load_prior(run / "prior").summary
    assert prior.figures["parameters"] == summary["parameters"]
    assert prior.figures["epochs"] == pytest.approx(summary["epochs"], abs=0.01)
    for plan, name in ((tokenizer, "tokenizer"), (prior, "prior")):
        newest = max((run / name / "checkpoints").iterdir())
        size = sum(path.stat().st_size for path in newest.iterdir())
        assert plan.figures["checkpoint_bytes"] == pytest.approx(size, rel=0.3)  # of tiny models headers are a part
    assert all(plan.figures["time_s"] > 0 for plan in (tokenizer, shards, prior))
    assert all("note: time is that of" in str(plan) for plan in (tokenizer, shards, prior))


def test_a_plan_says_what_is_done_already_and_what_would_be_resumed(work):
    root, _ = work
    run, data = root / "run", root / "data"
    made = [run / "shards/train/shard-000001.json", run / "tokenizer/summary.json"]
    before = snapshot(root)
    finished = ip.plan_prior(run / "shards", out=run / "prior", condition="class", preset="demo", **TINY_PRIOR)
    assert finished.work.endswith("is complete: nothing to do")
    longer = {**TINY_PRIOR, "steps": 9}
    plan = ip.plan_prior(run / "shards", out=run / "prior", condition="class", preset="demo", **longer)
    assert (plan.figures["steps"], plan.figures["steps_done"]) == (3, 6)
    assert "from step 6" in plan.work
    job = {"out": run / "shards", "shard_rows": 10, "views": 2, "workers": 1}
    assert ip.plan_tokenize(data, run / "tokenizer", **job).figures["shards_to_make"] == 0
    assert ip.plan_tokenize(data, run / "tokenizer", overwrite=True, **job).figures["shards_to_make"] == 7
    assert snapshot(root) == before
    content = made[0].read_bytes()
    made[0].unlink()
    try:
        assert ip.plan_tokenize(data, run / "tokenizer", **job).figures["shards_to_make"] == 1
    finally:
        made[0].write_bytes(content)


def test_the_commands_write_nothing_and_start_no_ray(work, tmp_path):
    root, _ = work
    flags = "--out new --dry-run --preset demo --batch-size 4"
    tiny = "--steps 4 --model.ch 8 --model.ch-mult 1 1 1 --model.resolution 32 --loss.perceptual none"
    commands = [
        f"train-vqgan --data data {flags} {tiny}",
        "tokenize --data data --tokenizer run/tokenizer --out new --dry-run --preset demo",
        f"train-prior --shards run/shards --condition class {flags} --model.n-layer 1",
    ]
    before = snapshot(root)
    code = (
        "import sys\nfrom imagepriors.cli import main\n"
        "print([main(command.split()) for command in sys.argv[1:]], 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("nothing was written\n[0, 0, 0] False\n"), done.stderr
    assert done.stdout.count("settings that are not the default") == 3
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train-vqgan --data data --preset demo --out data", "choose an output folder apart from it"),
        ("train-vqgan --data data --preset demo --out run/tokenizer", "was trained differently"),
        ("train-vqgan --data data --preset demo --out new --workers 3 --batch-size 8", "choose a divisor"),
        ("tokenize --data data --tokenizer run/tokenizer --out run/shards --preset demo", "shards of another plan"),
        ("tokenize --data data --tokenizer run/tokenizer --out run/prior --overwrite --preset demo", "is no dataset"),
        ("train-prior --preset demo --shards run/shards --out new --batch-size 1000", "use at most that"),
        ("train-prior --preset demo --shards run/shards --out new --condition depth", "depth"),
        ("train-prior --preset demo --shards run/shards --out foreign", "was not made by train-prior"),
    ],
)
def test_a_dry_run_finds_the_errors_of_the_job(work, command, words, monkeypatch, capsys):
    root, _ = work
    monkeypatch.chdir(root)
    Path("foreign").mkdir(exist_ok=True)
    Path("foreign/config.json").write_text("{}")
    before = snapshot(root)
    assert main([*command.split(), "--dry-run"]) == 2
    assert words in capsys.readouterr().err
    assert snapshot(root) == before
