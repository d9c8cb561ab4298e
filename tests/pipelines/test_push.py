"""Tokenizers, priors and shards on the Hub: pushed and loaded by the real client against a server of its protocol."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from tiny_shards import SPEC, make_dataset

import imagepriors as ip
from codeshards.format import ShardDataset
from imagepriors.cli import main
from runkit import uploads
from runkit.hub import source_of
from vqgan.checkpoint import fingerprint, save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN

NET = ModelConfig(
    resolution=16, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=4,
    codebook_size=50,
)  # fmt: skip
RUN_SUMMARY = {"steps": 7, "val_psnr_db": 21.5, "val_usage": 0.75, "code_counts": [1, 2]}
EVALUATION = {"figures": {"psnr_db": 22.25, "ssim": 0.5}, "dataset": "demo", "split": "val"}
PRIOR_FIELDS = {"steps": 2, "batch_size": 2, "eval_every": 2, "model": {"n_layer": 1, "n_head": 2, "n_embd": 16}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folders of a tokenizer's run, shards and a prior."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = VQGAN(NET)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    save_model(root / "tokenizer", TrainConfig(model=NET, loss=LossConfig(perceptual="none")), model)
    for name, value in {"summary.json": RUN_SUMMARY, "evaluation.json": EVALUATION}.items():
        (root / "tokenizer" / name).write_text(json.dumps(value))
    for name in ("checkpoints/step-00000007/state.safetensors", "tensorboard/events", "metrics.jsonl", ".x.lock"):
        (root / "tokenizer" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tokenizer" / name).write_text("not to be uploaded")
    (root / "tokenizer/reconstructions").mkdir()
    for step in (3, 7):
        (root / f"tokenizer/reconstructions/step-{step:08d}.png").write_text(f"picture of step {step}")
    image = replace(SPEC.image, fingerprint=fingerprint(root / "tokenizer"))
    spec = replace(SPEC, image=image)
    make_dataset(root / "shards", spec=spec, tokenizer=root / "tokenizer")
    ip.train_prior(root / "shards", out=root / "prior", preset="tiny", **PRIOR_FIELDS)
    return SimpleNamespace(root=root, tokenizer=root / "tokenizer", shards=root / "shards", prior=root / "prior")


def test_a_tokenizer_is_the_same_after_a_push(hub: HubServer, made: SimpleNamespace, capsys) -> None:
    assert main(["push", str(made.tokenizer), "hf://user/tok", "--license", "mit"]) == 0
    files = hub.files("models/user/tok")
    assert (
        capsys.readouterr().out.strip()
        == f"{hub.url}/user/tok/commit/{hub.repositories['models/user/tok'].branches['main']}"
    )
    assert sorted(files) == [
        ".gitattributes", "README.md", "config.json", "evaluation.json", "model.safetensors", "reconstructions.png",
        "summary.json",
    ]  # fmt: skip
    assert files["reconstructions.png"] == b"picture of step 7"
    local = ip.load_tokenizer(made.tokenizer)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for remote in (
        ip.load_tokenizer("hf://user/tok"),
        ip.ImageTokenizer.from_pretrained("user/tok"),
        ip.ImageTokenizer.from_pretrained(made.tokenizer),
    ):
        assert remote.fingerprint == local.fingerprint
        assert np.array_equal(remote.encode(pictures), local.encode(pictures))
    commit = hub.repositories["models/user/tok"].branches["main"]
    assert source_of(ip.load_tokenizer("hf://user/tok").folder) == f"hf://user/tok@{commit}"


def test_the_card_has_the_figures_of_the_run_and_no_others(hub: HubServer, made: SimpleNamespace) -> None:
    ip.push(made.tokenizer, "user/tok", license="mit")
    _, front, body = hub.files("models/user/tok")["README.md"].decode().split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["library_name"], values["license"]) == ("imagepriors", "mit")
    assert {"imagepriors", "vqgan"} <= set(values["tags"])
    found = {
        (result["dataset"]["name"], metric["type"]): metric["value"]
        for result in values["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("demo, val", "psnr_db"): 22.25, ("demo, val", "ssim"): 0.5,
        ("validation during training", "val_psnr_db"): 21.5, ("validation during training", "val_usage"): 0.75,
    }  # fmt: skip
    for text in ("| psnr_db | 22.25 |", "hf://user/tok", 'from_pretrained("user/tok")', "(reconstructions.png)"):
        assert text in body
    ip.push(made.shards / "tokenizer", "user/bare")
    card = hub.files("models/user/bare")["README.md"].decode()
    assert "license" not in card
    assert "model-index" not in card
    assert "Figures" not in card


def test_a_prior_samples_the_same_after_a_push(
    hub: HubServer, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ip.load_prior(made.prior).push_to_hub("user/prior/small")
    assert sorted(name for name in hub.files("models/user/prior") if name.startswith("small/")) == [
        f"small/{name}"
        for name in (
            "README.md", "config.json", "model.safetensors", "summary.json", "tokenizer/config.json",
            "tokenizer/model.safetensors",
        )
    ]  # fmt: skip
    samples = [
        ip.load_prior(made.prior).sample(2, seed=3),
        ip.ImagePrior.from_pretrained("user/prior/small").sample(2, seed=3),
    ]
    assert np.array_equal(samples[0].codes, samples[1].codes)
    assert np.array_equal(np.asarray(samples[0][0]), np.asarray(samples[1][0]))
    assert main(["sample", "--prior", "hf://user/prior/small", "--n", "2"]) == 0
    assert Path("runs/samples-prior/grid.png").is_file()


def test_a_prior_trains_from_shards_of_the_hub_and_records_the_commit(
    hub: HubServer, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(tmp_path / "columns"))
    monkeypatch.chdir(tmp_path)
    ip.push(made.shards, "hf://datasets/user/shards")
    files = hub.files("datasets/user/shards")
    assert all(files[name] == (made.shards / name).read_bytes() for name in files if name != ".gitattributes")
    commit = hub.repositories["datasets/user/shards"].branches["main"]
    opened = ShardDataset.from_pretrained("user/shards")
    assert opened.fingerprint == ShardDataset.open(made.shards).fingerprint
    assert str(opened.path) == f"hf://datasets/user/shards@{commit}"
    prior = ip.train_prior("hf://datasets/user/shards", preset="tiny", **PRIOR_FIELDS)
    assert prior.folder == tmp_path / "runs/shards/prior-row_major"
    assert prior.summary["shards"] == f"hf://datasets/user/shards@{commit}"
    assert prior.summary["val_nll_nats"] == ip.load_prior(made.prior).summary["val_nll_nats"]
    assert np.array_equal(prior.sample(2, seed=1).codes, ip.load_prior(made.prior).sample(2, seed=1).codes)
    # A later commit of the repository does not change what this address means.
    hub.put("datasets/user/shards", {"dataset.json": b"damaged"})
    assert ip.open_shards(prior.summary["shards"]).fingerprint == opened.fingerprint


def test_the_card_of_a_blend_names_its_datasets(hub: HubServer, made: SimpleNamespace, tmp_path: Path) -> None:
    spec = ip.open_shards(made.shards).spec
    make_dataset(tmp_path / "more", spec=spec, seed=7)
    prior = ip.train_prior(
        {made.shards: 3, tmp_path / "more": 1}, out=tmp_path / "prior", preset="tiny", **PRIOR_FIELDS
    )
    assert prior.shards == made.shards
    ip.push(prior, "user/blend")
    card = hub.files("models/user/blend")["README.md"].decode()
    first, second = ("/".join(path.parts[-2:]) for path in (made.shards, tmp_path / "more"))
    assert f"It was trained on a blend of 75.00% {first}, 25.00% {second}." in card
    assert str(tmp_path) not in card


def test_revisions(hub: HubServer, made: SimpleNamespace) -> None:
    ip.push(made.tokenizer, "hf://user/tok@next", message="A first version")
    assert "config.json" not in hub.files("models/user/tok")
    ip.push(made.tokenizer, "user/tok", revision="next")
    expected = fingerprint(made.tokenizer)
    assert ip.ImageTokenizer.from_pretrained("user/tok", revision="next").fingerprint == expected
    commit = hub.repositories["models/user/tok"].branches["next"]
    assert ip.load_tokenizer(f"hf://user/tok@{commit}").fingerprint == expected
    for where, message in {
        "hf://user/tok": "has no config.json",
        "hf://user/tok@other": "there is no such revision",
    }.items():
        with pytest.raises(ip.UserError, match=message):
            ip.load_tokenizer(where)
    with pytest.raises(ip.UserError, match="give one of them"):
        ip.ImageTokenizer.from_pretrained("hf://user/tok@next", revision="main")
    with pytest.raises(ip.UserError, match="is a folder, which has no revisions"):
        ip.ImageTokenizer.from_pretrained(made.tokenizer, revision="main")


def test_a_copy_in_the_cache_works_without_a_network(
    hub: HubServer, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(tmp_path / "columns"))
    ip.push(made.tokenizer, "user/tok")
    ip.push(made.shards, "user/shards")
    expected = ip.load_tokenizer("hf://user/tok").fingerprint
    first = next(ip.open_shards("hf://datasets/user/shards").batches("train", ["codes_zcurve"]))
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ip.load_tokenizer("hf://user/tok").fingerprint == expected
    again = next(ip.open_shards("hf://datasets/user/shards").batches("train", ["codes_zcurve"]))
    assert np.array_equal(first["codes_zcurve"], again["codes_zcurve"])
    with pytest.raises(ip.UserError, match=r"hf://user/other cannot be downloaded \(the client is offline"):
        ip.load_tokenizer("hf://user/other")
    with pytest.raises(ip.UserError, match=r"hf://user/other cannot be written"):
        ip.push(made.tokenizer, "user/other")


def test_what_cannot_be_loaded_has_one_message(
    hub: HubServer, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    ip.push(made.prior, "user/prior", private=True)
    monkeypatch.delenv("HF_TOKEN")
    hub.put("models/user/hostile", {"config.json": b'{"format_version": 1, "model": {"network": "os:system"}}'})
    hub.put("models/user/hostile", {"../../evil": b"1", "model.safetensors": b"1"})
    for where, message in {
        "hf://user/none": "there is no such repository, or it is private",
        "hf://user/prior": "there is no such repository, or it is private",
        "hf://none": "names no repository",
        "hf://datasets/owner/name": "has no config.json",
        "hf://user/hostile": "does not describe a tokenizer|unknown",
    }.items():
        with pytest.raises(ip.UserError, match=message):
            ip.load_tokenizer(where)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    with pytest.raises(ip.UserError, match="describes a prior"):
        ip.load_tokenizer("hf://user/prior")
    assert main(["export-diffusers", "hf://user/none", "vqmodel"]) == 2
    assert capsys.readouterr().err.startswith("imagepriors export-diffusers: hf://user/none cannot be downloaded (")


def test_names_of_the_server_stay_in_the_cache(hub: HubServer, made: SimpleNamespace, tmp_path: Path) -> None:
    files = {name: (made.tokenizer / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hostile = {"../../evil": b"1", "tokenizer/../../../evil": b"1", "/evil": b"1", "run.py": b"raise SystemExit"}
    hub.put("models/user/tok", files | hostile)
    folder = ip.load_tokenizer("hf://user/tok").folder
    assert sorted(path.name for path in folder.rglob("*")) == ["config.json", "model.safetensors"]
    assert not list(tmp_path.rglob("*evil*"))


def test_a_repository_of_another_kind_is_not_changed(hub: HubServer, made: SimpleNamespace, tmp_path: Path) -> None:
    ip.push(made.prior, "user/prior")
    hub.put("models/user/code", {"main.py": b"1"})
    for folder, to, message in (
        (made.tokenizer, "user/prior", "holds no tokenizer but config.json"),
        (made.tokenizer, "user/code", "holds no tokenizer but main.py: nothing was changed"),
        (made.tokenizer, "hf://datasets/user/tok", "push it to hf://user/tok"),
        (made.root, "user/new", "holds no tokenizer, prior or token shards"),
        (tmp_path, "user/new", "holds no tokenizer, prior or token shards"),
    ):
        before = {name: dict(found.branches) for name, found in hub.repositories.items()}
        with pytest.raises(ip.UserError, match=message):
            ip.push(folder, to)
        assert before == {name: dict(found.branches) for name, found in hub.repositories.items()}
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ip.UserError, match="a run that is not finished: resume it"):
        ip.push(tmp_path, "user/new")
    hub.put("models/user/public", {})
    with pytest.raises(ip.UserError, match="is a public repository"):
        ip.push(made.tokenizer, "user/public", private=True)


def test_a_push_replaces_an_earlier_one_but_no_card_of_a_person(hub: HubServer, made: SimpleNamespace) -> None:
    ip.push(made.tokenizer, "user/tok")
    hub.put("models/user/tok", {"README.md": b"my own", "notes.txt": b"mine"})
    ip.push(made.shards / "tokenizer", "user/tok")
    files = hub.files("models/user/tok")
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"]
    assert files["README.md"] == b"my own"
    count = len(hub.repositories["models/user/tok"].commits)
    ip.push(made.shards / "tokenizer", "user/tok")
    assert len(hub.repositories["models/user/tok"].commits) == count


def test_a_push_of_shards_continues_and_is_complete_at_the_last_commit(
    hub: HubServer, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "earlier", rows=20, seed=5)
    ip.push(tmp_path / "earlier", "user/shards")
    monkeypatch.setattr(uploads, "_FILES_PER_COMMIT", 5)
    sent = 0

    def fails(request: str) -> bool:
        nonlocal sent
        sent += request.startswith("POST") and "/commit/" in request
        return sent > 1

    hub.fails, hub.status = fails, "403 Forbidden"
    with pytest.raises(ip.UserError, match=r"cannot be written \(.*403.*is not sent again"):
        ip.push(made.shards, "user/shards")
    assert "dataset.json" not in hub.files("datasets/user/shards")
    hub.status = None
    ip.push(made.shards, "user/shards")
    sent_files = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    assert len(sent_files) == len(set(sent_files))
    assert ShardDataset.from_pretrained("user/shards").fingerprint == ShardDataset.open(made.shards).fingerprint
    expected = {path.relative_to(made.shards).as_posix() for path in made.shards.rglob("*") if path.is_file()}
    assert set(hub.files("datasets/user/shards")) - {".gitattributes"} == {
        name for name in expected if not name.startswith(".")
    }


def test_a_missing_client_is_named() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from imagepriors.cli import main\nraise SystemExit(main(['export-diffusers', 'hf://user/tok', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install huggingface_hub" in done.stderr
