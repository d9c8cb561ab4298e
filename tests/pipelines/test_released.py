"""A released CompVis transformer is imported as a prior with its tokenizer, and samples pictures."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from codeprior.checkpoint import load_prior
from codeshards.format import order
from imagepriors.cli import main
from vqgan.config import ModelConfig
from vqgan.model import VQGAN

DDCONFIG = {
    "double_z": False, "z_channels": 16, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
FIRST_STAGE = {"params": {"embed_dim": 16, "n_embed": 32, "ddconfig": DDCONFIG}}
TRANSFORMER = {"vocab_size": 32, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 16}
LABELS = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 6}}
ZCURVE = "taming.modules.transformer.permuter.ZCurve"


def write_release(folder, permutation, **params):
    """Write last.ckpt and project.yaml as Net2NetTransformer has them."""
    torch.manual_seed(0)
    tokenizer = VQGAN(
        ModelConfig(
            resolution=16, ch=128, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=16,
            embed_dim=16, codebook_size=32,
        )
    )  # fmt: skip
    width = TRANSFORMER["n_embd"]
    shapes = {"tok_emb.weight": (32, width), "pos_emb": (1, 64, width), "head.weight": (32, width)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for block in ("blocks.0", "blocks.1"):
        for name in ("attn.key", "attn.query", "attn.value", "attn.proj"):
            shapes |= {f"{block}.{name}.weight": (width, width), f"{block}.{name}.bias": (width,)}
        shapes |= {f"{block}.mlp.0.weight": (64, width), f"{block}.mlp.0.bias": (64,)}
        shapes |= {f"{block}.mlp.2.weight": (width, 64), f"{block}.mlp.2.bias": (width,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    state = {f"first_stage_model.{name}": value for name, value in tokenizer.state_dict().items()}
    state |= {f"transformer.{name}": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    state |= {"permuter.forward_shuffle_idx": torch.from_numpy(permutation.copy())}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    params = {"transformer_config": {"params": TRANSFORMER}, "first_stage_config": FIRST_STAGE, **params}
    (folder / "project.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    return state


@pytest.mark.parametrize("stage", [LABELS, "__is_unconditional__"], ids=["class", "none"])
def test_an_imported_prior_samples_with_its_own_tokenizer(tmp_path, capsys, stage):
    params = {"cond_stage_config": stage, "permuter_config": {"target": ZCURVE}, "sos_token": 9}
    state = write_release(tmp_path, order("zcurve", 8, 8), **params)
    out = tmp_path / "prior"
    assert main(["import-prior", str(tmp_path / "last.ckpt"), str(tmp_path / "project.yaml"), str(out)]) == 0
    assert "8×8 codes of 32 in order zcurve" in capsys.readouterr().out
    assert main(["import-prior", str(tmp_path / "last.ckpt"), str(tmp_path / "project.yaml"), str(out)]) == 2
    assert f"{out} already holds a run" in capsys.readouterr().err
    prior = load_prior(out)
    rows = state["transformer.tok_emb.weight"][:6] if stage is LABELS else state["transformer.tok_emb.weight"][9:10]
    found = next(iter(prior.condition_embeddings.values())).weight
    assert torch.equal(found[: len(rows)], rows)
    words = [
        "sample",
        "--prior",
        str(out),
        "--shards",
        "nowhere",
        "--n",
        "6",
        "--out",
        str(tmp_path / "samples"),
        "--frames",
    ]
    assert main(words) == 0
    with Image.open(tmp_path / "samples" / "samples" / "0001.png") as picture:
        assert picture.size == (16, 16)
    metadata = json.loads((tmp_path / "samples" / "metadata.json").read_text())
    assert metadata["samples"][1] == {"file": "samples/0001.png", "seed": [0, 1]}
    if stage is LABELS:
        assert main([*words, "--guidance", "2.0"]) == 2
        assert "knows no null condition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cond_stage_config": {"target": "taming.models.vqgan.VQModel"}}, "cond_stage 'taming.models.vqgan.VQModel'"),
        ({"permuter_config": {"target": "taming.modules.transformer.permuter.SpiralIn"}}, "permuter 'SpiralIn'"),
        ({"permuter_config": {"target": ZCURVE}}, "its permutation is not zcurve"),
        ({"transformer_config": {"params": {**TRANSFORMER, "n_unmasked": 3}}}, "n_unmasked = 3"),
        ({"transformer_config": {}}, "is not the yaml of a transformer"),
    ],
)
def test_models_that_do_not_map_are_refused_by_name(tmp_path, capsys, params, message):
    write_release(tmp_path, np.arange(64), **{"cond_stage_config": LABELS, **params})
    assert main(["import-prior", str(tmp_path / "last.ckpt"), str(tmp_path / "project.yaml"), str(tmp_path / "p")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cls_embedding.embedding_table.weight", "prior of LlamaGen: rows and columns rotate"),
        ("adaln_before_head.adaLN_modulation.1.weight", "prior of RAR: the class scales and shifts the features"),
        ("head.weight", "pass the yaml that came with a CompVis checkpoint"),
    ],
)
def test_priors_of_other_projects_are_refused_by_what_does_not_map(tmp_path, capsys, name, message):
    torch.save({"model": {name: torch.zeros(2, 2)}}, tmp_path / "prior.pt")
    assert main(["import-prior", str(tmp_path / "prior.pt"), str(tmp_path / "p")]) == 2
    assert message in capsys.readouterr().err
    assert main(["import-prior", str(tmp_path / "prior.pt")]) == 2
    assert "1 paths were given: pass CHECKPOINT OUT" in capsys.readouterr().err
