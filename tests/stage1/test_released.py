"""Released checkpoints: reading them without running their code, and exact agreement with the published network."""

import json
import sys
import types

import numpy as np
import pytest
import torch
import yaml

from runkit.weights import load_weights
from vqgan.checkpoint import fingerprint, load_model, save_model
from vqgan.compat.diffusers import export_diffusers, import_diffusers
from vqgan.compat.tokenizers import import_tokenizer
from vqgan.config import ModelConfig, TrainConfig
from vqgan.errors import InputError
from vqgan.model import VQGAN

DDCONFIG = {
    "double_z": False, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
PARAMS = {"embed_dim": 16, "n_embed": 32, "ddconfig": DDCONFIG}
SMALL = ModelConfig(
    resolution=64, ch=128, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(16,), z_channels=16, embed_dim=16,
    codebook_size=32,
)  # fmt: skip


def write_release(folder, state, model):
    """A checkpoint as Lightning wrote it: weights beside callbacks that are instances of its own classes."""
    module = types.ModuleType("pytorch_lightning")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    sys.modules["pytorch_lightning"] = module
    try:
        instance = callback()
        instance.monitor = "val/rec_loss"
        torch.save({"epoch": 3, "callbacks": {callback: instance}, "state_dict": state}, folder / "last.ckpt")
    finally:
        del sys.modules["pytorch_lightning"]
    (folder / "project.yaml").write_text(yaml.safe_dump({"model": model}))


def random_model(config=SMALL):
    torch.manual_seed(0)
    model = VQGAN(config).eval()
    if config.quantizer == "vq":
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def test_a_lightning_checkpoint_is_imported_without_lightning(tmp_path):
    model = random_model()
    state = {**model.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(1)}
    write_release(tmp_path, state, {"target": "taming.models.vqgan.VQModel", "params": PARAMS})
    report = import_tokenizer(tmp_path / "last.ckpt", tmp_path / "out", project=tmp_path / "project.yaml")
    assert report["dropped"] == ["loss.discriminator.main.0.weight"]
    config, loaded = load_model(tmp_path / "out")
    assert config.model == SMALL
    assert config.loss.swap_beta
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_transformers_tokenizers_are_found_by_their_prefix(tmp_path):
    segmentation = {**DDCONFIG, "in_channels": 5, "out_ch": 5}
    with_labels = ModelConfig(
        **{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"modality": "segmentation", "n_labels": 5}
    )
    first, second = random_model(), random_model(with_labels)
    state = {f"first_stage_model.{key}": value for key, value in first.state_dict().items()}
    state |= {f"cond_stage_model.{key}": value for key, value in second.state_dict().items()}
    state["transformer.head.weight"] = torch.zeros(1)
    params = {
        "first_stage_config": {"params": PARAMS},
        "cond_stage_config": {"params": {**PARAMS, "ddconfig": segmentation}},
    }
    write_release(tmp_path, state, {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params})
    checkpoint, project = tmp_path / "last.ckpt", tmp_path / "project.yaml"
    import_tokenizer(checkpoint, tmp_path / "image", project=project)
    import_tokenizer(checkpoint, tmp_path / "masks", project=project, part="cond_stage")
    assert load_model(tmp_path / "image")[0].model == SMALL
    assert load_model(tmp_path / "masks")[0].model == with_labels


def test_a_gumbel_checkpoint_encodes_by_argmax_and_does_not_train(tmp_path):
    from vqgan.trainer import Trainer

    config = ModelConfig(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"quantizer": "gumbel"})
    model = random_model(config)
    write_release(tmp_path, model.state_dict(), {"target": "taming.models.vqgan.GumbelVQ", "params": PARAMS})
    import_tokenizer(tmp_path / "last.ckpt", tmp_path / "out", project=tmp_path / "project.yaml")
    loaded, model = load_model(tmp_path / "out")
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        logits = model.quantize.proj(model.latent(x))
        assert torch.equal(model.encode(x), logits.argmax(1))
        assert model.decode(model.encode(x)).shape == x.shape
    with pytest.raises(InputError, match="cannot be trained: choose another one"):
        Trainer(loaded)


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch hostile-code-ran",)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callbacks": Hostile()}, tmp_path / "zip.ckpt")
    torch.save({"callbacks": Hostile()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="system, which no weights need"):
        load_weights(tmp_path / "zip.ckpt", InputError)
    with pytest.raises(InputError, match=r"cannot be read as plain weights: it names .*system"):
        load_weights(tmp_path / "old.ckpt", InputError)
    assert not (tmp_path / "hostile-code-ran").exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"a\.ckpt cannot be read"):
        load_weights(tmp_path / "a.ckpt", InputError)
    with pytest.raises(InputError, match="does not exist"):
        load_weights(tmp_path / "b.ckpt", InputError)
    torch.save({"state_dict": {}}, tmp_path / "c.ckpt")
    with pytest.raises(InputError, match="holds no state_dict"):
        load_weights(tmp_path / "c.ckpt", InputError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("quant_conv.bias"), "quant_conv.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra has no place"),
        (lambda state: state.update({"quant_conv.bias": torch.zeros(3)}), r"quant_conv.bias is \(3,\), not \(16,\)"),
    ],
)
def test_every_key_is_used_or_the_import_fails(tmp_path, change, words):
    state = dict(random_model().state_dict())
    change(state)
    write_release(tmp_path, state, {"target": "taming.models.vqgan.VQModel", "params": PARAMS})
    with pytest.raises(InputError, match=words):
        import_tokenizer(tmp_path / "last.ckpt", tmp_path / "out", project=tmp_path / "project.yaml")
    assert not (tmp_path / "out").exists()


def test_a_yaml_of_another_network_is_refused(tmp_path):
    params = {**PARAMS, "ddconfig": {**DDCONFIG, "double_z": True}}
    write_release(tmp_path, dict(random_model().state_dict()), {"params": params})
    with pytest.raises(InputError, match="double_z True"):
        import_tokenizer(tmp_path / "last.ckpt", tmp_path / "out", project=tmp_path / "project.yaml")


@pytest.fixture
def taming(monkeypatch):
    """The published package, with stand-ins for what has left its dependencies since."""
    pytest.importorskip("taming", reason="pip install --no-deps taming-transformers-rom1504==0.0.6")
    from priorbench import peers

    for name in ("pytorch_lightning", "taming.main"):
        monkeypatch.setitem(sys.modules, name, None)  # put back what was there when the test is over
    return peers.taming()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VQModel", "GumbelVQ"])
def test_codes_equal_the_published_networks(tmp_path, taming, kind):
    """The paper's f16/1024 geometry (a Gumbel quantiser in its place for the other), random weights, float32."""
    net = {**DDCONFIG, "z_channels": 256, "resolution": 256, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2}
    params = {"ddconfig": net, "n_embed": 1024, "embed_dim": 256}
    torch.manual_seed(0)
    extra = {"kl_weight": 1e-8} if kind == "GumbelVQ" else {}
    scheduler = {"temperature_scheduler_config": {}} if kind == "GumbelVQ" else {}
    theirs = getattr(taming, kind)(**params, **extra, **scheduler, lossconfig={}).eval()
    if kind == "VQModel":
        torch.nn.init.normal_(theirs.quantize.embedding.weight)
    write_release(
        tmp_path, theirs.state_dict(), {"target": f"taming.models.vqgan.{kind}", "params": {**params, **extra}}
    )
    import_tokenizer(tmp_path / "last.ckpt", tmp_path / "out", project=tmp_path / "project.yaml")
    _, ours = load_model(tmp_path / "out")
    x = torch.from_numpy(np.random.default_rng(0).random((2, 3, 256, 256), np.float32)) * 2 - 1
    with torch.inference_mode():
        if kind == "VQModel":
            _, _, (_, _, indices) = theirs.encode(x)
            codes = indices.view(2, 16, 16)
            decoded = theirs.decode(theirs.quantize.get_codebook_entry(indices, (2, 16, 16, 256)))
        else:
            codes = theirs.quantize.proj(theirs.quant_conv(theirs.encoder(x))).argmax(1)
            decoded = theirs.decode(theirs.quantize.embed(codes).permute(0, 3, 1, 2))
        assert torch.equal(ours.encode(x), codes)
        torch.testing.assert_close(ours.decode(codes), decoded, rtol=1e-4, atol=1e-4)


def test_a_diffusers_folder_comes_back_bit_for_bit(tmp_path):
    save_model(tmp_path / "a", TrainConfig(model=SMALL), random_model())
    export_diffusers(tmp_path / "a", tmp_path / "theirs")
    import_diffusers(tmp_path / "theirs", tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    with pytest.raises(InputError, match="no saved diffusers VQModel"):
        import_diffusers(tmp_path / "a", tmp_path / "c")
    about = json.loads((tmp_path / "theirs" / "config.json").read_text())
    change = {"scaling_factor": 0.18215}  # diffusers' default, which its VQModel does not use
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**about, **change}))
    assert fingerprint(import_diffusers(tmp_path / "theirs", tmp_path / "d")) == fingerprint(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path / "a")


def test_narrow_models_keep_their_groups_and_are_refused_if_these_differ(tmp_path):
    sizes = {"resolution": 32, "ch": 32, "num_res_blocks": 1, "z_channels": 8, "embed_dim": 8}
    narrow = ModelConfig(**sizes, ch_mult=(1, 2), norm_groups=32)
    save_model(tmp_path / "narrow", TrainConfig(model=narrow), VQGAN(narrow))
    export_diffusers(tmp_path / "narrow", tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["norm_num_groups"] == 32
    import_diffusers(tmp_path / "theirs", tmp_path / "back")
    assert fingerprint(tmp_path / "back") == fingerprint(tmp_path / "narrow")
    mixed = ModelConfig(**sizes, ch_mult=(1, 2))
    save_model(tmp_path / "mixed", TrainConfig(model=mixed), VQGAN(mixed))
    with pytest.raises(InputError, match=r"GroupNorms of \[8, 16\] groups"):
        export_diffusers(tmp_path / "mixed", tmp_path / "out")
    folded = ModelConfig(**sizes, ch_mult=(1, 2), norm_groups=32, patch=2)
    save_model(tmp_path / "folded", TrainConfig(model=folded), VQGAN(folded))
    with pytest.raises(InputError, match="has patch 2, halvings 0: diffusers' VQModel has neither"):
        export_diffusers(tmp_path / "folded", tmp_path / "out")


@pytest.mark.slow
def test_diffusers_loads_the_export_and_finds_the_same_codes(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = random_model()
    save_model(tmp_path / "a", TrainConfig(model=SMALL), model)
    theirs = diffusers.VQModel.from_pretrained(export_diffusers(tmp_path / "a", tmp_path / "b"))
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        z = theirs.encode(x).latents
        _, _, (_, _, indices) = theirs.quantize(z)
        codes = model.encode(x)
        assert torch.equal(indices.view_as(codes), codes)
        torch.testing.assert_close(theirs.decode(z).sample, model.decode(codes), rtol=1e-4, atol=1e-4)
