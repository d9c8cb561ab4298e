"""The tab on which masks, depth maps and poses are painted."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imagepriors as ip
from imagepriors.studio import painting, pictures
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.painting import (
    CanvasRequest,
    MapRequest,
    MapsRequest,
    ScriptRequest,
    UploadRequest,
    canvas,
    encode_map,
    read_upload,
    script,
    validation_maps,
)
from runkit.errors import UserError
from vqgan.data.conditions import read_map
from vqgan.data.poses import draw_pose

SIDE = 32
MASK = {"prior": "prior-row_major-segmentation", "condition": "segmentation"}
DEPTH = {"prior": "prior-row_major-depth", "condition": "depth"}
POSE = {"prior": "prior-row_major-pose", "condition": "pose"}


@pytest.fixture(scope="module")
def both(demo_run, tmp_path_factory) -> Contents:
    """A prior that is conditioned on the class and on segmentation."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "shards").symlink_to(demo_run / "shards")
    tiny = {"steps": 3, "batch_size": 4, "model": {"n_layer": 1}}
    ip.train_prior(folder / "shards", out=folder / "prior-both", condition="class+segmentation", **tiny)
    return Contents.open([folder])


def uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def pixels(found: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))))


def base64_of(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def values_of(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(SIDE, SIDE)


def scene() -> np.ndarray:
    """A mask of sky, ground, and a tree in front."""
    mask = np.full((SIDE, SIDE), 1)
    mask[16:] = 2
    mask[8:24, 20:28] = 6
    return mask


def painted(contents, where) -> dict:
    if where["condition"] == "pose":
        return {"joints": canvas(contents, CanvasRequest(**where))["standing"]}
    return {"values": base64_of(scene() if where["condition"] == "segmentation" else np.arange(SIDE * SIDE) // 4 % 256)}


def run(contents, **values):
    return draw(contents, DrawRequest(**values), lambda *_, **__: None)


@pytest.mark.parametrize("where", [MASK, DEPTH, POSE], ids=lambda where: where["condition"])
def test_the_script_draws_the_same_from_the_saved_map(contents, tmp_path, monkeypatch, where):
    name = where["condition"]
    found = encode_map(contents, MapRequest(**where, **painted(contents, where)))
    request = DrawRequest(
        prior=where["prior"], conditions={name: found["codes"]}, n=3, sampling={"seed": 5, "temperature": 0.8}
    )
    last = draw(contents, request, lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.png").write_bytes(base64.b64decode(found["file"].partition(",")[2]))
    text = script(contents, ScriptRequest(draw=request, painted=[name]))["script"]
    names: dict = {}
    exec(text, names)
    assert names[name].reshape(-1).tolist() == found["codes"]
    assert names["samples"].codes.reshape(3, -1).tolist() == last["codes"]
    assert Path("sample.png").exists()
    as_is = script(contents, ScriptRequest(draw=request, painted=[]))["script"]
    assert "encode" not in as_is
    exec(as_is, names)
    assert names["samples"].codes.reshape(3, -1).tolist() == last["codes"]


def test_the_script_names_shards_that_are_elsewhere(demo_run, tmp_path, monkeypatch):
    prior = "prior-row_major-segmentation"
    shutil.copytree(demo_run / prior, tmp_path / prior)
    found = Contents.open([tmp_path / prior, demo_run / "shards"])
    (grid,) = [part for part in found.described["priors"][0]["conditions"] if part["name"] == "segmentation"]
    codes = [0] * (grid["grid"][0] * grid["grid"][1])
    request = DrawRequest(prior=prior, conditions={"segmentation": codes})
    monkeypatch.chdir(tmp_path)
    exec(script(found, ScriptRequest(draw=request, painted=[]))["script"], {})
    assert Path("sample.png").exists()


def test_class_and_mask_mix(both, monkeypatch, tmp_path):
    where = {"prior": "prior-both", "condition": "segmentation"}
    codes = encode_map(both, MapRequest(**where, **painted(both, where)))["codes"]
    prior = both.prior("prior-both")
    for classes in (2, [0, 1, 2, 3]):
        given = {"segmentation": codes} | ({"class": classes} if classes == 2 else {})
        last = run(both, prior="prior-both", conditions=given)
        expected = prior.sample(4, condition={"class": classes, "segmentation": np.stack([codes] * 4)})
        assert last["codes"] == expected.codes.reshape(4, -1).tolist()
        assert not last["hints"]
        text = script(both, ScriptRequest(draw=DrawRequest(prior="prior-both", conditions=given), painted=[]))["script"]
        monkeypatch.chdir(tmp_path)
        names: dict = {}
        exec(text, names)
        assert names["samples"].codes.reshape(4, -1).tolist() == last["codes"]
    alone = run(both, prior="prior-both", conditions={"class": 2})
    assert alone["classes"] == [2] * 4
    assert len(alone["hints"]) == 1
    rows = run(both, prior="prior-both")
    assert len(rows["classes"]) == 4
    assert len(rows["hints"]) == 1
    request = ScriptRequest(draw=DrawRequest(prior="prior-both"), painted=[])
    assert script(both, request)["script"] == ""


@pytest.mark.parametrize("where", [MASK, DEPTH], ids=lambda where: where["condition"])
def test_the_colours_are_those_of_the_validation_maps(contents, where):
    colors = np.array(canvas(contents, CanvasRequest(**where))["colors"])
    found = validation_maps(contents, MapsRequest(**where, count=4))
    assert found["pages"] == 2
    assert len(found["maps"]) == 3
    for one in found["maps"]:
        away = np.abs(colors[values_of(one["values"])] - pixels(one["picture"]))
        assert away.max() <= (0 if where is MASK else 8)  # depth is rounded to levels
    assert (sum(found["counts"]) == 3 * SIDE * SIDE) == (where is MASK)


def test_a_pose_is_drawn_as_the_dataset_draws_it(contents):
    joints = canvas(contents, CanvasRequest(**POSE))["standing"]
    joints[4] = [-1, -1]
    found = encode_map(contents, MapRequest(**POSE, joints=joints))
    assert np.array_equal(pixels(found["file"]), draw_pose(np.array(joints, np.float32), (0, 0, SIDE, SIDE), SIDE))
    maps = validation_maps(contents, MapsRequest(**POSE))["maps"]
    assert maps[0]["values"] is None
    assert len(maps[0]["codes"]) == 16


def test_maps_of_other_sizes_are_read_as_in_a_dataset(contents, monkeypatch):
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 3
    found = read_upload(contents, UploadRequest(**MASK, picture=uri(Image.fromarray(mask))))
    assert np.array_equal(values_of(found["values"]), np.tile(np.repeat([0, 3], SIDE // 2), (SIDE, 1)))
    depth = np.repeat(np.arange(1000, 1000 + SIDE, dtype=np.uint16), SIDE).reshape(SIDE, SIDE)
    monkeypatch.setattr(
        painting, "read_map", lambda *args: read_map(*args) if pictures.decoding.locked() else pytest.fail("not locked")
    )
    levels = values_of(read_upload(contents, UploadRequest(**DEPTH, picture=uri(Image.fromarray(depth))))["values"])
    assert levels[0, 0] == 0
    assert levels[-1, -1] == 255
    assert (np.diff(levels[:, 0].astype(int)) > 0).all()


@pytest.mark.parametrize(
    ("where", "picture", "message"),
    [
        (MASK, uri(Image.new("L", (8, 8), 200)), "label 200"),
        (MASK, uri(Image.new("RGB", (8, 8))), "one 8-bit label"),
        (MASK, "data:image/png;base64,AAAA", "cannot be read"),
        (MASK, uri(Image.new("1", (7000, 7000))), "megapixels"),
        (DEPTH, uri(Image.new("L", (8, 8), 9)), "constant"),
        (POSE, uri(Image.new("RGB", (8, 8))), "joints"),
    ],
)
def test_uploads_that_are_no_maps_are_refused(contents, where, picture, message):
    with pytest.raises(UserError, match=message):
        read_upload(contents, UploadRequest(**where, picture=picture))


def test_maps_that_do_not_fit_are_refused(contents):
    with pytest.raises(UserError, match="32×32"):
        encode_map(contents, MapRequest(**MASK, values=base64_of(np.zeros(9))))
    with pytest.raises(UserError, match="label"):
        encode_map(contents, MapRequest(**MASK, values=base64_of(np.full((SIDE, SIDE), 99))))
    with pytest.raises(UserError, match="18 with x and y"):
        encode_map(contents, MapRequest(**POSE, joints=[[1.0, 2.0]]))
    with pytest.raises(UserError, match="32×32"):
        encode_map(contents, MapRequest(**POSE, joints=[[40.0, 2.0]] * 18))
    with pytest.raises(UserError, match="not conditioned on 'depth'"):
        canvas(contents, CanvasRequest(prior=MASK["prior"], condition="depth"))


# In a browser


def open_tab(page, where):
    page.get_by_role("tab", name="Paint").click()
    page.locator("#paint").get_by_label("Prior").select_option(where["prior"])
    page.wait_for_selector("#paint .easel")


def saved(page, name) -> np.ndarray:
    """What "Save map" saves."""
    with page.expect_download() as found:
        page.get_by_role("button", name="Save map").click()
    assert found.value.suggested_filename == f"{name}.png"
    return np.array(Image.open(found.value.path()))


def finished(page):
    page.locator("#paint .job", has_text="all 4 done").wait_for()


def drag(page, start, end):
    box = page.locator("#paint .easel").bounding_box()
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=4)
    page.mouse.up()


def test_a_mask_is_painted_and_drawn_from(page):
    open_tab(page, MASK)
    tab = page.locator("#paint")
    tab.get_by_role("button", name="Clear").click()
    tab.locator(".label[data-label='2']").click()
    drag(page, (0.1, 0.75), (0.9, 0.75))
    finished(page)
    sources = tab.locator(".drawn > .pictures img").evaluate_all("all => all.map(one => one.src)")
    assert len(set(sources)) == 4
    assert re.search(r"begun after [\d.]+ s; all 4 done after [\d.]+ s", tab.locator(".job").inner_text())
    tab.locator(".script code", has_text="np.stack([segmentation] * 4)").wait_for()
    stroke = saved(page, "segmentation")
    assert stroke[24, 16] == 2
    assert stroke[2, 16] == 0
    assert set(np.unique(stroke)) == {0, 2}
    tab.locator("canvas").focus()
    page.keyboard.press("Control+z")
    assert not saved(page, "segmentation").any()
    tab.locator("canvas").focus()
    page.keyboard.press("Control+Shift+Z")
    assert np.array_equal(saved(page, "segmentation"), stroke)
    tab.get_by_label("Prior").select_option(DEPTH["prior"])  # the pictures are those of the old one
    assert tab.locator(".drawn > .pictures img").count() == 0
    assert not tab.locator(".script").is_visible()


def test_a_mask_is_painted_by_keyboard(page):
    open_tab(page, MASK)
    tab = page.locator("#paint")
    tab.get_by_label("Draw after each stroke").uncheck()
    assert tab.get_by_role("button", name="Undo").is_disabled()
    tab.get_by_role("button", name="Clear").click()
    tab.locator("canvas").focus()
    for key in ("[", "[", "[", "1", "ArrowLeft", "Shift+ArrowUp"):
        page.keyboard.press(key)
    first = int(tab.locator(".label").first.get_attribute("data-label"))
    page.keyboard.press("Space")
    one = saved(page, "segmentation")
    assert one.sum() == one[8, 15] == first
    tab.locator("canvas").focus()
    page.keyboard.press("2")
    page.keyboard.press("f")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    filled = saved(page, "segmentation")
    assert (filled == first).sum() == 1
    assert len(np.unique(filled)) == 2
    tab.locator("canvas").focus()
    page.keyboard.press("i")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    assert tab.locator(f".label[data-label='{first}']").get_attribute("aria-pressed") == "true"
    assert not tab.locator(".job").is_visible()


def test_a_mask_is_opened(page, tmp_path):
    open_tab(page, MASK)
    Image.fromarray(scene().astype(np.uint8)).save(tmp_path / "mask.png")
    page.locator("#paint").get_by_label("Map to open").set_input_files(tmp_path / "mask.png")
    finished(page)
    assert np.array_equal(saved(page, "segmentation"), scene())


def test_depth_is_graded(page):
    open_tab(page, DEPTH)
    page.locator("#paint").get_by_role("button", name="Gradient").click()
    drag(page, (0.5, 0.95), (0.5, 0.4))
    column = saved(page, "depth")[:, 5].astype(int)
    assert column[0] == 255
    assert column[-1] == 26
    assert (np.diff(column) <= 0).all()
    page.locator("#paint canvas").focus()
    for key in ("i", "ArrowDown", "Space", "Shift+ArrowLeft", "Shift+ArrowUp", "Space"):  # what is picked is painted
        page.keyboard.press(key)
    assert saved(page, "depth")[5, 8] == column[13]
    finished(page)


def test_joints_are_dragged_moved_and_removed(page):
    open_tab(page, POSE)
    tab = page.locator("#paint")
    start = saved(page, "pose")
    wrist = tab.locator("[data-joint=left_wrist]")
    at = wrist.evaluate("one => [parseFloat(one.style.left) / 100, parseFloat(one.style.top) / 100]")
    drag(page, at, (0.9, 0.1))
    assert saved(page, "pose")[2:6, 26:31].any()
    assert not start[2:6, 26:31].any()
    finished(page)
    wrist.focus()
    page.keyboard.press("ArrowDown")
    assert re.match(r"left wrist, x 2[89], y [34]", wrist.get_attribute("aria-label"))
    page.keyboard.press("Delete")
    assert not wrist.is_visible()
    assert not saved(page, "pose")[2:6, 26:31].any()
    tab.get_by_role("button", name="left wrist").click()
    assert np.array_equal(saved(page, "pose"), start)
    tab.locator(".choice").first.click()
    tab.locator(".asis").wait_for()
    assert tab.get_by_role("button", name="Save map").is_disabled()
    tab.locator(".script code", has_text="np.array([").wait_for()
