"""What the page finds in places, and the networks that it keeps in memory."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
from plugin_package import install
from safetensors.numpy import load_file, save_file

import imagepriors as ip
from imagepriors.demo.scenes import SEGMENTATION_NAMES
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.jobs import message_of, plain
from imagepriors.studio.networks import Networks, StudioPrior, StudioTokenizer
from imagepriors.studio.rows import RowsRequest, rows
from runkit.errors import UserError
from vqgan.checkpoint import fingerprint


def copy_of(run, folder, *names):
    for name in names:
        shutil.copytree(run / name, folder / name)
    return folder


def drawn(contents, prior):
    return draw(contents, DrawRequest(prior=prior, n=1), lambda *_, **__: None)["codes"]


def test_all_parts_of_a_run_are_found(contents):
    assert set(contents.priors) == {
        "prior-any-class", *(f"prior-row_major-{name}" for name in ("class", "segmentation", "depth", "pose"))
    }  # fmt: skip
    assert set(contents.tokenizers) == {"tokenizer", "tokenizer-segmentation", "tokenizer-depth", "tokenizer-pose"}
    assert list(contents.shards) == ["shards"]
    assert contents.described["problems"] == []
    assert contents.condition_tokenizer("prior-row_major-depth", "depth").config.modality == "depth"


def test_the_fingerprint_of_a_stored_tokenizer_is_not_computed(demo_run, monkeypatch):
    from imagepriors.studio import search

    monkeypatch.setattr(search, "fingerprint", lambda *_: pytest.fail("computed"))
    found = Contents.open([demo_run])
    assert found.image_tokenizer("prior-any-class") is found.tokenizers["tokenizer"]
    assert not any("loaded" in part.__dict__ for part in (*found.priors.values(), *found.tokenizers.values()))


def test_single_parts_and_several_places(demo_run, tmp_path):
    alone = Contents.open([demo_run / "prior-any-class"])
    assert (list(alone.priors), list(alone.shards)) == (["prior-any-class"], ["shards"])
    assert drawn(alone, "prior-any-class")
    lonely = copy_of(demo_run, tmp_path / "lonely", "prior-any-class")
    without = Contents.open([lonely / "prior-any-class"])
    (problem,) = without.problems
    assert problem.startswith("prior-any-class cannot draw: the tokenizer is not on this page")
    with pytest.raises(UserError, match="open the studio with its folder, too"):
        without.image_tokenizer("prior-any-class")
    both = Contents.open([lonely / "prior-any-class", demo_run / "tokenizer"])
    assert drawn(both, "prior-any-class") == drawn(alone, "prior-any-class")

    other = copy_of(demo_run, tmp_path / "other/demo", "prior-any-class", "shards")
    two = Contents.open([demo_run, other])
    assert two.title == "demo, demo-2"
    assert {"demo/prior-any-class", "demo-2/prior-any-class"} <= set(two.priors)
    assert two.shards_of("demo-2/prior-any-class") == "demo/shards"  # equal shards: the first that fit


def test_damaged_and_unfinished_parts_do_not_keep_the_rest_from_opening(demo_run, tmp_path):
    run = copy_of(demo_run, tmp_path / "demo", *(path.name for path in demo_run.iterdir() if path.is_dir()))
    (run / "prior-row_major-depth/config.json").write_text("{")
    config = run / "prior-row_major-pose/config.json"
    config.write_text(config.read_text().replace('"n_layer": 1', '"n_layer": "one"'))
    for name in ("config.json", "model.safetensors", "summary.json"):
        (run / "prior-any-class" / name).unlink()  # as before the end of its training
    (run / "tokenizer-depth/model.safetensors").write_bytes(b"broken")
    half = copy_of(demo_run / "shards", run / "more", "val")
    shutil.copy(demo_run / "shards/plan.json", half)

    found = Contents.open([run])
    problems = found.described["problems"]
    assert set(found.priors) == {"prior-row_major-class", "prior-row_major-segmentation", "prior-any-class"}
    for name, word in (
        ("prior-row_major-depth", "config.json"), ("prior-row_major-pose", "n_layer"), ("more", "not finished"),
        ("prior-any-class", "after 3 steps"),
    ):  # fmt: skip
        assert sum(problem.startswith(name) and word in problem for problem in problems) == 1, (name, problems)
    assert str(tmp_path) not in str(problems)
    assert drawn(found, "prior-any-class")

    shutil.rmtree(run / "shards")
    for prior in run.glob("prior-*"):
        shutil.rmtree(prior)
    for tokenizer in run.glob("tokenizer*"):
        (tokenizer / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"that can be shown: .*not finished"):
        Contents.open([run])


def test_places_on_the_hub(demo_run, hub):
    def files(folder, prefix=""):
        paths = (path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
        return {f"{prefix}{path.relative_to(folder)}": path.read_bytes() for path in paths}

    hub.put("datasets/owner/shards", files(demo_run / "shards"))
    model = files(demo_run / "prior-any-class") | files(demo_run / "shards/tokenizer", "tokenizer/")
    hub.put("models/owner/prior", model)
    found = Contents.open(["hf://owner/prior", "hf://datasets/owner/shards"])
    (prior,) = found.priors
    assert found.typed[prior] == "hf://owner/prior"
    assert drawn(found, prior)
    (shards,) = found.shards
    assert rows(found, RowsRequest(shards=shards, split="val", count=2))["rows"][0]["picture"]


def test_tokenizers_of_other_packages(tmp_path, monkeypatch):
    code = (
        "import numpy as np\n"
        "class Grey:\n"
        "    resolution, grid, codebook_size, fingerprint = 8, (2, 2), 4, 'grey'\n"
        "    def encode(self, pictures): return (pictures[:, ::4, ::4, 0] // 64).astype(np.int64)\n"
        "    def decode(self, codes): return np.kron(codes[..., None], np.ones((1, 4, 4, 3))).astype(np.uint8) * 64\n"
        "def make(): return Grey()\n"
    )
    install(tmp_path, "grey-tokenizer", "grey_tokenizer", code, {})
    monkeypatch.syspath_prepend(tmp_path)
    found = Contents.open(["grey_tokenizer:make"])
    assert found.described["tokenizers"][0]["codebook_size"] == 4
    with pytest.raises(UserError, match="not on this page"):
        found.tokenizer("os:getcwd")


def test_a_network_is_loaded_once(demo_run, monkeypatch):
    from codeprior import checkpoint

    loads, load = [], checkpoint.load_prior
    monkeypatch.setattr(checkpoint, "load_prior", lambda *args, **more: loads.append(args) or load(*args, **more))
    prior, start, seen = StudioPrior(demo_run / "prior-any-class", Networks()), threading.Barrier(4), []

    def use():
        start.wait()
        seen.append(prior.loaded)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert all(one is seen[0] for one in seen)


def test_a_loaded_network_does_not_wait_for_another(demo_run):
    networks, begins, continues, seen = Networks(), threading.Event(), threading.Event(), []
    loaded, other = (StudioTokenizer(demo_run / "tokenizer", networks) for _ in range(2))
    expected = loaded.loaded

    def load():
        begins.set()
        continues.wait(30)
        return "slow"

    slow = threading.Thread(target=lambda: seen.append(networks.get(other, load)))
    slow.start()
    begins.wait(30)
    quick = threading.Thread(target=lambda: seen.append(loaded.loaded))
    quick.start()
    quick.join(5)
    continues.set()
    slow.join(30)
    assert seen == [expected, "slow"]


def test_the_least_recently_used_network_is_dropped(demo_run):
    size = (demo_run / "tokenizer/model.safetensors").stat().st_size
    networks = Networks(most_bytes=2 * size)
    a, b, c = (StudioTokenizer(demo_run / "tokenizer", networks) for _ in range(3))
    kept = a.loaded
    _ = b.loaded
    assert a.loaded is kept
    _ = c.loaded  # in place of b
    assert [("loaded" in one.__dict__) for one in (a, b, c)] == [True, False, True]
    codes = np.zeros((1, *a.config.grid), np.int64)
    assert np.array_equal(b.loaded.decode(codes), kept.decode(codes))


def test_networks_compute_the_same_in_several_threads(contents):
    tokenizer = contents.tokenizers["tokenizer"].loaded
    size = tokenizer.config.codebook_size
    grids = np.random.default_rng(0).integers(0, size, (8, 2, *tokenizer.config.grid))
    expected = [tokenizer.decode(codes) for codes in grids]
    found = [None] * len(grids)
    threads = [
        threading.Thread(target=lambda i=i, codes=codes: found.__setitem__(i, tokenizer.decode(codes)))
        for i, codes in enumerate(grids)
    ]
    for thread in threads:
        thread.start()
    codes = drawn(contents, "prior-any-class")
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert codes == drawn(contents, "prior-any-class")


def test_shards_bring_the_names_of_the_labels_of_masks(contents: Contents) -> None:
    (shards,) = contents.described["shards"]
    assert shards["label_names"] == ["unlabelled", *SEGMENTATION_NAMES]
    assert shards["conditions"].keys() == {"segmentation", "depth", "pose"}


def damaged_copy(demo_run, folder):
    """The shards and two priors of the run."""
    return copy_of(demo_run, folder, "shards", "prior-any-class", "prior-row_major-depth")


def test_a_damaged_stored_tokenizer_is_named_and_the_rest_shown(demo_run, tmp_path):
    run = damaged_copy(demo_run, tmp_path / "demo")
    (run / "shards/tokenizer/config.json").write_text("{broken")
    (run / "shards/tokenizer-depth/config.json").write_text("[]")
    copy_of(demo_run / "shards", run / "prior-any-class", "tokenizer")
    found = Contents.open([run])
    shown = found.described
    assert [one["name"] for one in shown["tokenizers"]] == [
        "tokenizer-pose", "tokenizer-segmentation", "prior-any-class/tokenizer",
    ]  # fmt: skip
    for name in ("shards/tokenizer", "shards/tokenizer-depth"):
        assert sum(problem.startswith(f"{name} cannot be shown: ") for problem in shown["problems"]) == 1
    assert drawn(found, "prior-any-class")
    (run / "prior-any-class/tokenizer/config.json").write_text("{")
    assert any(problem.startswith("prior-any-class/tokenizer") for problem in Contents.open([run]).problems)


def retrained(tokenizer):
    """Change the weights of a tokenizer."""
    path = tokenizer / "model.safetensors"
    save_file({name: values + 1 if "decoder" in name else values for name, values in load_file(path).items()}, path)


def test_a_tokenizer_is_hidden_by_an_equal_one_only(demo_run, tmp_path, contents):
    run = copy_of(demo_run, tmp_path / "demo", "tokenizer", "tokenizer-depth", "shards", "prior-any-class")
    equal = load_file(run / "tokenizer-depth/model.safetensors")
    save_file(equal, run / "tokenizer-depth/model.safetensors", {"made": "again"})
    assert set(Contents.open([run]).tokenizers) == set(contents.tokenizers)
    retrained(run / "tokenizer")
    found = Contents.open([run])
    assert {"shards/tokenizer", *contents.tokenizers} == set(found.tokenizers)
    assert found.typed["shards/tokenizer"] == f"{run}/shards/tokenizer"
    assert found.fingerprints[found.shards["shards"].spec.image.fingerprint] == "shards/tokenizer"
    assert found.tokenizers["tokenizer"].fingerprint != contents.tokenizers["tokenizer"].fingerprint
    assert drawn(found, "prior-any-class") == drawn(contents, "prior-any-class")


def test_several_shards_of_a_run_keep_their_tokenizers(demo_run, tmp_path):
    run = copy_of(demo_run, tmp_path / "demo", "shards", "prior-any-class", "prior-row_major-class")
    retrained(shutil.copytree(demo_run / "tokenizer", tmp_path / "other"))
    old, new = (fingerprint(place) for place in (demo_run / "tokenizer", tmp_path / "other"))
    cells = ip.load_tokenizer(tmp_path / "other").config.grid[0] ** 2
    (tmp_path / "tokens.jsonl").write_text(f'{{"class_id": 0, "tokens": {[1] * cells}}}\n' * 4)
    ip.import_shards(
        tmp_path / "tokens.jsonl", run / "shards-2", tokenizer=tmp_path / "other", lines=1, val_every=2, shard_rows=2
    )
    config = run / "prior-any-class/config.json"
    config.write_text(config.read_text().replace(old, new))
    found = Contents.open([run])
    assert [name for name in found.tokenizers if name.endswith("/tokenizer")] == ["shards-2/tokenizer"]
    assert found.fingerprints == found.fingerprints | {old: "tokenizer", new: "shards-2/tokenizer"}
    assert rows(found, RowsRequest(shards="shards-2", split="val", count=1))["rows"][0]["picture"]
    assert found.image_tokenizer("prior-any-class") is found.tokenizers["shards-2/tokenizer"]
    assert drawn(found, "prior-any-class")
    assert drawn(found, "prior-row_major-class")


def test_a_stored_tokenizer_of_other_codes_is_refused_when_it_is_loaded(demo_run, tmp_path):
    run = copy_of(demo_run, tmp_path / "demo", "shards", "prior-any-class")
    retrained(run / "shards/tokenizer")
    found = Contents.open([run])
    for _ in range(2):
        with pytest.raises(UserError, match="the codes were made by"):
            drawn(found, "prior-any-class")
    copy_of(demo_run, run, "tokenizer")
    assert drawn(Contents.open([run]), "prior-any-class")  # that of the run made them


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("~nosuch/x", "home of a user"),
        ("x" * 5000, "File name too long"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x does not exist"),
        (__file__, f"{__file__} is a file"),
    ],
    ids=["user", "long", "web", "file"],
)
def test_places_that_cannot_be_opened_are_named(place, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Contents.open([place])


def test_pages_for_others_show_no_folder_of_this_machine(demo_run, tmp_path):
    run = copy_of(demo_run, tmp_path / "Jane Doe (private)/demo", "shards", "prior-any-class")
    copy_of(demo_run, run.parent / "more", "prior-row_major-class")
    places = [run, run.parent / "more/prior-row_major-class", run / "prior-any-class"]
    found = Contents.open(places, for_others=True)
    assert found.typed["demo/tokenizer"] == "demo/shards/tokenizer"
    assert found.typed["prior-row_major-class"] == "prior-row_major-class"
    last = draw(found, DrawRequest(prior="demo/prior-any-class", n=1), lambda *_, **__: None)
    assert "--prior demo/prior-any-class" in last["command"]
    assert "Jane" not in json.dumps([found.described, last])
    assert Contents.open([run]).typed["prior-any-class"] == f"{run}/prior-any-class"


@pytest.mark.parametrize("folder", ["Jane Doe (private)", "a [b]", "plain"])
def test_messages_name_no_folder_of_this_machine(demo_run, tmp_path, monkeypatch, folder):
    run = copy_of(demo_run, tmp_path / folder / "demo", "shards", "prior-any-class")
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    monkeypatch.chdir(run.parent)
    found = Contents.open([run])
    (run / "shards/tokenizer/model.safetensors").unlink()
    with pytest.raises(UserError) as missing:
        drawn(found, "prior-any-class")
    for error in (
        missing.value,
        UserError(f"{run.parent}/other/x.json is damaged"),
        UserError(f"see '{run}/prior-any-class/y.json' and {tmp_path}/my home/.cache/z"),
        UserError(f"in {tmp_path}/{folder}: not found"),
    ):
        message = message_of(error, found.places)
        assert "Jane Doe" not in message.replace("in Jane Doe (private): not", "")
        assert str(tmp_path) not in message
    assert plain(f"{run}/prior-any-class/y.json", found.places) == "prior-any-class/y.json"
