"""The tab that completes pictures, and the chooser of pictures."""

import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import imagepriors as ip
from imagepriors.cli import main
from imagepriors.decode.rows import read_codes, read_rows, select_rows
from imagepriors.studio.completing import RegionsRequest, RowConditionsRequest, regions, row_conditions
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, draw
from imagepriors.studio.pictures import read_picture
from runkit.errors import UserError


def run_draw(contents, **values):
    """The last event, and how many codes were to be drawn."""
    steps = []
    last = draw(contents, DrawRequest(**values), lambda done, total, **more: steps.append((done, total)))
    done, totals = zip(*steps, strict=True)
    assert 0 < done[0] < done[-1] == totals[0] == totals[-1]
    assert list(done) == sorted(done)
    return last, totals[0]


def row_codes(contents, index=0):
    return read_codes(contents.dataset("shards"), "val", np.array([index]))[0][0]


def test_regions_are_those_that_the_prior_can_keep(contents):
    any_order = regions(contents, RegionsRequest(prior="prior-any-class"))["regions"]
    assert sorted(any_order) == ["centre", "checkerboard", "corner", "left", "upper"]
    height, width = contents.prior("prior-any-class").sequence.height, contents.prior("prior-any-class").sequence.width
    assert any_order["corner"] == [row * width + column for row in range(height // 2) for column in range(width // 2)]
    ordered = regions(contents, RegionsRequest(prior="prior-row_major-class"))["regions"]
    assert ordered == {"upper": any_order["upper"]}


def test_a_row_is_completed_with_its_own_condition(contents):
    name = "prior-row_major-segmentation"
    found = row_conditions(contents, RowConditionsRequest(prior=name, shards="shards", split="val", index=3))
    stored = read_rows(contents.dataset("shards"), "val", ["cond_segmentation"], np.array([3]))["cond_segmentation"][0]
    assert found["conditions"] == {"segmentation": stored.tolist()}
    codes = row_codes(contents, 3).reshape(-1)
    request = {"prior": name, "n": 2, "codes": codes.tolist(), "known": list(range(6)), "sampling": {"batch_size": 1}}
    last, total = run_draw(contents, **request, conditions=found["conditions"])
    assert np.array_equal(np.array(last["codes"])[:, :6], [codes[:6]] * 2)
    assert total == 2 * (codes.size - 6)
    assert (last["command"], last["hints"]) == ("", [])
    with pytest.raises(UserError, match="this picture does not have"):
        run_draw(contents, **request)
    with pytest.raises(UserError, match="no row 99"):
        row_conditions(contents, RowConditionsRequest(prior=name, shards="shards", split="val", index=99))


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_kept_codes_are_in_the_codebook(contents, wrong):
    codes = row_codes(contents).reshape(-1).tolist()
    with pytest.raises(UserError, match=f"code {wrong} is not in the codebook"):
        run_draw(contents, prior="prior-any-class", codes=[wrong, *codes[1:]], known=[0, 1])
    with pytest.raises(UserError, match="3 codes: a picture"):
        run_draw(contents, prior="prior-any-class", codes=codes[:3], known=[0, 1])
    with pytest.raises(UserError, match="cells from 0 to"):
        run_draw(contents, prior="prior-any-class", codes=codes, known=[len(codes)])


def test_first_scales_are_kept(demo_run, tmp_path):
    shards = tmp_path / "run/shards"
    shutil.copytree(demo_run / "shards", shards)
    ip.add_codes(shards, scales=(1, 2))
    options = {"steps": 1, "batch_size": 4, "model": {"n_layer": 1}}
    ip.train_prior(shards, out=tmp_path / "run/prior-scales", multiscale=True, **options)
    contents = Contents.open([tmp_path / "run"])
    config = contents.sampling("prior-scales")
    expected = contents.prior("prior-scales").sample(1, given="scales-2", config=config)  # of the stored scales
    codes = row_codes(contents, select_rows(contents.dataset("shards"), "val", 1)[0])
    last, total = run_draw(contents, prior="prior-scales", n=1, codes=codes.reshape(-1).tolist(), scales=2)
    assert np.array_equal(expected.codes.reshape(1, -1), last["codes"])
    assert last["command"] == ""
    assert total == codes.size
    with pytest.raises(UserError, match="not in the codebook"):
        run_draw(contents, prior="prior-scales", codes=[10**6] * codes.size, scales=1)
    for wrong in ({"scales": 3}, {"scales": 0}, {"known": [0]}):
        with pytest.raises(UserError, match="scales"):
            run_draw(contents, prior="prior-scales", codes=codes.reshape(-1).tolist(), **wrong)


@pytest.fixture
def tab(page):
    page.get_by_role("tab", name="Complete").click()
    page.locator("#complete .choice[aria-pressed=true]").wait_for()
    return page.locator("#complete")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((90, 60)).save(path)
    return path


def kept(tab):
    cells = tab.locator("[role=gridcell]").evaluate_all("all => all.map(one => one.ariaSelected === 'true')")
    return np.array(cells).reshape(round(len(cells) ** 0.5), -1)


def complete(tab):
    """Press the button, and return the completions [N, H, W, 3]."""
    tab.get_by_role("button", name="Complete", exact=True).click()
    tab.locator(".job[data-state=done]").wait_for()
    tab.locator(".results > div:last-child").wait_for()
    sources = tab.get_by_alt_text("Completion").evaluate_all("all => all.map(one => one.src)")
    return np.stack([np.asarray(read_picture(source)) for source in sources])


@pytest.mark.parametrize(
    ("prior", "label", "keep"),
    [("prior-any-class", "1", "Checkerboard"), ("prior-any-class", "", "Corner"), ("prior-row_major-class", "0", "")],
)
def test_the_copied_command_draws_the_same_codes(contents, page, tab, photo, tmp_path, monkeypatch, prior, label, keep):
    tab.get_by_label("Prior").select_option(prior)
    tab.locator("input[type=file]").set_input_files(photo)
    tab.get_by_text("photo.png is chosen").wait_for()
    tab.get_by_label("Class").select_option(label)
    tab.get_by_label("Seed").fill("5")
    if keep:
        tab.get_by_role("button", name=keep).click()
    else:
        tab.get_by_text("which the line shows").wait_for()
        tab.locator("[role=gridcell]").nth(9).click()
        assert kept(tab).sum() == 10
    pictures = complete(tab)
    for name in ("picture.png", "mask.png"):
        with page.expect_download() as saved:
            tab.get_by_role("button", name=f"Save {name}").click()
        saved.value.save_as(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    command = tab.locator(".command code").inner_text()
    assert main([*shlex.split(command)[1:], "--out", "out"]) == 0
    drawn = [np.asarray(Image.open(f"out/samples/{index:04d}.png")) for index in range(4)]
    assert np.array_equal(pictures, drawn)
    stored, known = np.load("out/codes.npz")["codes"], kept(tab)
    assert (stored[:, known] == contents.image_tokenizer(prior).encode("picture.png")[known]).all()


def middle(page, tab, row, column):
    """The pixel in the middle of a cell."""
    box = tab.get_by_role("grid").bounding_box()
    height, width = kept(tab).shape
    return box["x"] + (column + 0.5) * box["width"] / width, box["y"] + (row + 0.5) * box["height"] / height


def drag(page, tab, *cells):
    page.mouse.move(*middle(page, tab, *cells[0]))
    page.mouse.down()
    for cell in cells[1:]:
        page.mouse.move(*middle(page, tab, *cell))
    page.mouse.up()


def test_cells_are_erased_with_brush_rectangle_and_keys(page, tab):
    tab.get_by_label("Prior").select_option("prior-any-class")
    tab.get_by_role("button", name="Everything").click()
    expected = kept(tab)
    assert expected.all()
    tab.get_by_role("grid").scroll_into_view_if_needed()
    drag(page, tab, (0, 0), (0, 2), (2, 2))  # the pointer skips cells
    expected[0, :3] = expected[:3, 2] = False
    assert (kept(tab) == expected).all()
    tab.get_by_role("button", name="Rectangle").click()
    drag(page, tab, (3, 1), (0, 0), (2, 3))  # it was dragged too far first
    erased = expected.copy()
    erased[2:, 1:] = False
    assert (kept(tab) == erased).all()
    tab.get_by_role("button", name="Undo").click()
    assert (kept(tab) == expected).all()
    tab.get_by_role("gridcell", name="Row 1, column 1").press(" ")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    extended = expected.copy()
    extended[:2, :2] = True
    assert (kept(tab) == extended).all()
    assert page.evaluate("document.activeElement.ariaLabel") == "Row 2, column 2"
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert (kept(tab) == expected).all()
    tab.get_by_role("button", name="Invert").click()
    assert (kept(tab) == ~expected).all()
    assert tab.get_by_text(f"{(~expected).sum()} of 16 codes are kept").is_visible()
    assert complete(tab).shape[0] == 4
    outlines = tab.locator(".results .outline")
    assert outlines.count() == 5
    tab.get_by_label("Outline the kept cells").uncheck()
    assert not outlines.first.is_visible()
    tab.get_by_role("button", name="Everything").click()
    tab.get_by_role("button", name="Complete", exact=True).click()
    tab.get_by_text("erase a part of the picture first").wait_for()


def test_a_prior_of_one_order_keeps_its_first_codes(page, tab, photo):
    tab.get_by_label("Prior").select_option("prior-row_major-segmentation")
    tab.get_by_text("which the line shows").wait_for()
    tab.get_by_role("slider", name="Codes to keep").fill("3")
    assert kept(tab).ravel().tolist() == [True] * 3 + [False] * 13
    tab.get_by_role("gridcell", name="Row 2, column 2, code 6").press("ArrowRight")
    page.keyboard.press(" ")
    assert tab.get_by_role("slider", name="Codes to keep").input_value() == "7"
    assert kept(tab).ravel().tolist() == [True] * 7 + [False] * 9
    complete(tab)
    assert tab.get_by_text("Only this page draws this").is_visible()
    tab.locator("input[type=file]").set_input_files(photo)
    tab.get_by_text("photo.png is chosen").wait_for()
    tab.get_by_role("button", name="Complete", exact=True).click()
    tab.get_by_text("which this picture does not have").wait_for()


SEND = """([kind, name, type, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(content)], name, { type }));
  const picker = document.querySelector('#complete .picker');
  const options = { bubbles: true, cancelable: true };
  if (kind === 'paste') document.dispatchEvent(new ClipboardEvent('paste', { ...options, clipboardData: data }));
  else picker.dispatchEvent(new DragEvent(kind, { ...options, dataTransfer: data }));
}"""


def test_pictures_are_chosen_with_keys_dropped_and_pasted(page, tab, photo):
    choices = tab.locator(".choice")
    choices.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert choices.evaluate_all("all => all.findIndex(one => one.ariaPressed === 'true')") == 1
    assert tab.locator(".erase > img").get_attribute("src") == choices.nth(1).locator("img").get_attribute("src")
    tab.get_by_label("Pictures of", exact=True).select_option(label="shards, train")
    tab.get_by_role("button", name="Next pictures").click()
    tab.get_by_text("13 to 24 of 24").wait_for()
    assert tab.get_by_role("button", name="Next pictures").is_disabled()
    content = list(photo.read_bytes())
    page.evaluate(SEND, ["dragover", "a.png", "image/png", content])
    assert "over" in tab.locator(".picker").get_attribute("class")
    page.evaluate(SEND, ["drop", "a.png", "image/png", content])
    tab.get_by_text("a.png is chosen").wait_for()
    assert "over" not in tab.locator(".picker").get_attribute("class")
    assert tab.locator(".choice[aria-pressed=true]").count() == 0
    page.evaluate(SEND, ["paste", "b.png", "image/png", content])
    tab.get_by_text("b.png is chosen").wait_for()
    page.evaluate(SEND, ["drop", "a.txt", "text/plain", [65]])
    tab.get_by_text("This is no picture").wait_for()
    page.evaluate(SEND, ["drop", "c.png", "image/png", {"length": 13 << 20}])
    tab.get_by_text("c.png has 13.0 MiB: use a picture of at most 12.0 MiB").wait_for()
