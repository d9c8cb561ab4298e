"""A released CompVis transformer is imported as a prior with its tokenizer, and samples pictures."""

import json

import numpy as np
import pytest
import torch
from compvis_release import LABELS, TRANSFORMER, ZCURVE, write_release
from PIL import Image

from codeprior.checkpoint import load_prior
from codeshards.format import order
from imagepriors.cli import main


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
