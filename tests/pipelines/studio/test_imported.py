"""A prior that was imported with its tokenizer, in the studio."""

import shlex

import numpy as np
import pytest
from compvis_release import LABELS, ZCURVE, write_release

import imagepriors as ip
from codeshards.format import order
from imagepriors.cli import main
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.pictures import uris
from imagepriors.studio.tokens import EncodeRequest, encode


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The run folder of an imported prior of 8×8 codes and six classes."""
    folder = tmp_path_factory.mktemp("released")
    permuter = {"target": ZCURVE}
    write_release(folder, order("zcurve", 8, 8), cond_stage_config=LABELS, permuter_config=permuter)
    files = [str(folder / name) for name in ("last.ckpt", "project.yaml")]
    assert main(["import-prior", *files, str(folder / "runs/imported")]) == 0
    return folder / "runs/imported"


@pytest.mark.parametrize("place", ["", "/.."], ids=["prior", "run"])
def test_it_opens_draws_and_completes(released, tmp_path, place):
    found = Contents.open([f"{released}{place}"])
    assert (list(found.priors), list(found.tokenizers)) == (["imported"], ["imported/tokenizer"])
    assert found.problems == ()
    (shown,) = found.described["priors"]
    assert (shown["tokenizer"], shown["shards"], shown["order"]) == ("imported/tokenizer", None, "order zcurve")

    last = draw(found, DrawRequest(prior="imported", n=2, conditions={"class": 5}), lambda *_, **__: None)
    assert len(last["pictures"]) == 2
    assert main([*shlex.split(last["command"])[1:], "--out", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out/codes.npz")["codes"].reshape(2, -1).tolist() == last["codes"]

    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    codes = encode(found, EncodeRequest(tokenizer="imported/tokenizer", picture=uris(picture, exact=True)[0]))["codes"]
    assert codes == ip.load_tokenizer(released / "tokenizer").encode(picture).reshape(-1).tolist()
    upper_left = [8 * row + column for row in range(4) for column in range(4)]  # the first quarter of a Z-curve
    request = DrawRequest(prior="imported", n=2, conditions={"class": 5}, codes=codes, known=upper_left)
    completed = np.array(draw(found, request, lambda *_, **__: None)["codes"])
    assert (completed[:, upper_left] == np.array(codes)[upper_left]).all()
    assert (completed != codes).any()
