"""The tab that draws by class and seed."""

import shlex
import shutil

import numpy as np
import pytest

from imagepriors.cli import main
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, command, draw
from runkit.errors import UserError


def run_job(contents, **values):
    events = []
    last = draw(contents, DrawRequest(**values), lambda done, total, **more: events.append((done, total, more)))
    return last, events


@pytest.mark.parametrize(
    ("prior", "values"),
    [
        ("prior-row_major-class", {}),
        (
            "prior-row_major-class",
            {"conditions": {"class": 2}, "sampling": {"seed": 7, "temperature": 0.5, "top_k": 9}},
        ),
        ("prior-any-class", {"n": 2, "sampling": {"seed": 3, "order": "zcurve", "steps": 4}}),
        ("prior-any-class", {"sampling": {"guidance": 2.0, "guidance_interval": (0.0, 0.5)}}),
        ("prior-row_major-segmentation", {"sampling": {"seed": 5}}),
    ],
)
def test_the_command_draws_the_same_codes(contents, tmp_path, prior, values):
    last, events = run_job(contents, prior=prior, **values)
    assert main([*shlex.split(last["command"])[1:], "--out", str(tmp_path / "out")]) == 0
    stored = np.load(tmp_path / "out/codes.npz")["codes"]
    assert np.array_equal(stored.reshape(len(stored), -1), last["codes"])
    assert events[-1][0] == events[-1][1] == stored.size
    assert [done for done, *_ in events] == sorted(done for done, *_ in events)
    assert any("pictures" in more for *_, more in events)


@pytest.mark.parametrize("prior", ["prior-row_major-segmentation", "prior-row_major-class"])
def test_shards_elsewhere_give_the_conditions(contents, demo_run, tmp_path, prior):
    shutil.copytree(demo_run / prior, tmp_path / "lone" / prior)
    shutil.copytree(demo_run / "shards", tmp_path / "else where/tokens")
    found = Contents.open([tmp_path / "lone" / prior, tmp_path / "else where/tokens"])
    last, _ = run_job(found, prior=prior)
    here, _ = run_job(contents, prior=prior)
    assert (last["codes"], last["hints"]) == (here["codes"], here["hints"])
    assert len(last["hints"]) == ("segmentation" in prior)
    assert f"--shards '{tmp_path}/else where/tokens'" in last["command"]
    assert "--shards" not in here["command"]
    assert main([*shlex.split(last["command"])[1:], "--out", str(tmp_path / "out")]) == 0
    assert np.load(tmp_path / "out/codes.npz")["codes"].reshape(4, -1).tolist() == last["codes"]


def test_the_command_of_a_relative_run_names_no_shards(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run.parent)
    request = DrawRequest(prior="prior-any-class", n=2)
    assert command(Contents.open(["demo"]), request) == "imagepriors sample --prior demo/prior-any-class --n 2"


def test_conditions_without_shards_name_what_to_open(demo_run, tmp_path):
    prior = "prior-row_major-segmentation"
    shutil.copytree(demo_run / prior, tmp_path / prior)
    found = Contents.open([tmp_path / prior, demo_run / "tokenizer"])
    with pytest.raises(UserError, match="come from token shards that are not on this page"):
        run_job(found, prior=prior)


def test_what_does_not_fit_is_refused(contents):
    with pytest.raises(UserError, match="prior-row_major-class"):
        run_job(contents, prior="../prior-row_major-class")
    with pytest.raises(UserError, match="conditioned on 'class'"):
        run_job(contents, prior="prior-row_major-class", conditions={"depth": [0] * 64})
    with pytest.raises(UserError, match="temperature"):
        run_job(contents, prior="prior-row_major-class", sampling={"temperature": 0.0})


def test_pictures_appear_and_the_seed_decides(page):
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_selector("#draw .job[data-state=done]")
    first = page.eval_on_selector_all("#draw .stage > .pictures img", "all => all.map(one => one.src)")
    assert len(first) == len(set(first)) == 4
    page.get_by_role("button", name="Next seed").click()
    page.wait_for_selector("#draw .job[data-state=done]")
    page.wait_for_function("text => document.querySelector('#draw code').textContent.includes(text)", arg="--seed 1")
    second = page.eval_on_selector_all("#draw .stage > .pictures img", "all => all.map(one => one.src)")
    assert first != second
