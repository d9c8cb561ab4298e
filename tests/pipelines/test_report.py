"""The page about a run: what it says of whole and partial runs, and how a browser shows it."""

import html
import json
import re
import shlex
import shutil
from itertools import pairwise

import pytest
from tiny_job import write_images, write_tokenizer

from imagepriors.cli import main
from imagepriors.reports.charts import line_chart
from imagepriors.reports.run import write_report
from runkit.errors import UserError

WIDTHS = (360, 768, 1440)
TINY = ["--model.ch-mult", "1", "1", "1", "1", "--model.resolution", "32", "--loss.disc-start", "2"]
SHORT = ["--steps", "3", "--batch-size", "4"]


@pytest.fixture(scope="module")
def run(local_ray_cores, tmp_path_factory):
    """Demo scenes and a whole run on them: masks, and priors without a condition, with classes and with masks."""
    root = tmp_path_factory.mktemp("report")
    data, out = str(root / "data"), root / "run"
    short = [*SHORT, "--eval-images", "4", "--data", data, *TINY]
    assert main(["demo-data", data, "--n-train", "16", "--n-val", "6", "--size", "32"]) == 0
    assert main(["train-vqgan", *short, "--out", str(out / "tokenizer")]) == 0
    masks = str(out / "tokenizer-segmentation")
    assert main(["train-vqgan", "--preset", "demo-segmentation", *short, "--out", masks]) == 0
    shards = str(out / "shards")
    tokenizers = ["--tokenizer", str(out / "tokenizer"), "--condition", masks]
    assert main(["tokenize", "--data", data, *tokenizers, "--out", shards, "--shard-rows", "10"]) == 0
    for order, condition in (("zcurve", "class"), ("row_major", "segmentation"), ("subsample", "none")):
        flags = [*SHORT, "--model.n-layer", "1", "--condition", condition, "--order", order, "--shards", shards]
        assert main(["train-prior", *flags, "--out", str(out / f"prior-{order}-{condition}")]) == 0
    return root / "data", out


@pytest.fixture(scope="module")
def page(run):
    data, out = run
    return write_report(out, data, "auto")


def sections(page):
    return re.findall(r'<section id="(\w+)">', page.read_text())


def copy_of(run, tmp_path, *without):
    data, out = run
    shutil.copytree(out, tmp_path / "run", ignore=lambda _, names: [name for name in names if name in without])
    return data, tmp_path / "run"


def test_a_whole_run_has_all_sections_and_its_own_figures(run, page):
    assert sections(page) == ["figures", "data", "tokenizer", "orders", "samples", "next", "commands"]
    text = page.read_text()
    summary = json.loads((run[1] / "prior-zcurve-class" / "summary.json").read_text())
    assert f"{summary['val_nll_nats']:.2f} <small>nats per code" in text
    assert f"{json.loads((run[1] / 'tokenizer' / 'summary.json').read_text())['val_psnr_db']:.1f} <small>dB" in text
    for name in ("row_major", "spiral_out", "zcurve", "subsample", "alternate"):
        assert f"Path of {name} over 4×4 codes" in text
    for name in ("beach", "desert", "dusk", "meadow", "night", "snow"):
        assert f'<h4 title="{name}">' in text
    assert text.count("real picture of segmentation") == 6
    assert page.stat().st_size < 6e6


def test_a_run_without_priors_has_no_samples(run, tmp_path):
    data, out = copy_of(run, tmp_path, "prior-zcurve-class", "prior-row_major-segmentation", "prior-subsample-none")
    page = write_report(out, data, "auto")
    assert sections(page) == ["figures", "data", "tokenizer", "orders", "next", "commands"]
    assert "No prior is trained" in page.read_text()


def test_a_tokenizer_alone_gives_a_page(tmp_path):
    """A folder of pictures without classes, and an imported tokenizer: no summary, no curves."""
    photos = write_images(tmp_path / "photos", train=3, val=3)
    write_tokenizer(tmp_path / "run" / "tokenizer")
    page = write_report(tmp_path / "run", photos, "folder")
    assert sections(page) == ["figures", "data", "tokenizer", "orders", "next", "commands"]
    text = page.read_text()
    assert "not encoded" in text
    for absent in ("Codebook usage", "How long each part took", 'class="plot"', "Shards</h2>", "Samples"):
        assert absent not in text


def test_the_curves_of_an_unfinished_prior_wait_for_its_end(run, tmp_path):
    data, out = copy_of(run, tmp_path)
    (out / "prior-zcurve-class" / "summary.json").unlink()
    assert "zcurve-class" not in write_report(out, data, "auto").read_text()


def test_a_blend_is_named_with_the_command_that_trains_it(run, tmp_path):
    data, out = copy_of(run, tmp_path)
    path = out / "prior-zcurve-class" / "summary.json"
    parts = [{"shards": name, "weight": weight, "proportion": weight / 10} for name, weight in (("a", 7), ("b c", 3))]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"blend": parts}))
    text = re.sub(r"</?span>", "", html.unescape(write_report(out, data, "auto").read_text()))
    assert "Trained on a blend of 70.00% a, 30.00% b c." in text
    assert "train-prior --shards a=7 'b c=3' --order zcurve" in text


def test_an_empty_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="no finished tokenizer and no shards"):
        write_report(tmp_path, run[0], "auto")


def test_distances_are_shown_only_with_their_scale(run, tmp_path):
    data, out = copy_of(run, tmp_path)
    figures = {"rfid": 12.5, "rfid, real": 3.25, "frechet_alone": 99.0}
    (out / "tokenizer" / "evaluation.json").write_text(json.dumps({"figures": figures}))
    text = write_report(out, data, "auto").read_text()
    assert "<td>rfid</td><td>12.5</td><td>3.25</td>" in text
    assert "frechet_alone" not in text


def test_names_and_paths_are_escaped(tmp_path):
    photos = write_images(tmp_path / "a & b", train=3, val=3)
    for split in ("train", "val"):
        (photos / split / "class0").rename(photos / split / '<b onload="x">')
    out = tmp_path / "<i>run"
    write_tokenizer(out / "tokenizer")
    text = write_report(out, photos, "folder").read_text()
    assert "<b onload" not in text
    assert "<i>run" not in text
    assert "&lt;b onload=&#34;x&#34;&gt;" in text
    assert "<span>&amp;</span>" in text  # of the folder's name, in the commands


def test_commands_of_the_page_are_accepted(run, page, capsys):
    """Each command has one fault, an option that was added to it."""
    text = page.read_text().replace("path/to/photos", str(run[0]))
    lines = re.findall(r"<dd><code>(.*?)</code>", text)
    assert len(lines) == 7 + 3
    for line in lines:
        program, *argv = shlex.split(html.unescape(re.sub(r"</?span>", "", line)))
        assert program == "imagepriors"
        with pytest.raises(SystemExit):
            main([*argv, "--not-an-option"])
        message = capsys.readouterr().err
        assert re.findall(r"--[a-z][\w.-]*", message)[:1] == ["--not-an-option"], message


def test_a_chart_places_points_between_its_ticks():
    chart = line_chart("loss", {"a": ([0, 50, 100], [4.0, 2.0, 1.0]), "b": ([], [])}, marks={"top": 5.0})
    assert [line.name for line in chart.lines] == ["a", "top"]
    assert [text for _, text in chart.y_ticks] == ["1", "2", "3", "4", "5"]
    assert chart.lines[0].path.startswith("M0.0 ")
    assert chart.lines[0].path.endswith("L1000.0 1000.0")
    assert line_chart("loss", {"a": ([1], [float("nan")])}) is None


LEVELS = "[...document.querySelectorAll('h1,h2,h3,h4')].map((heading) => Number(heading.tagName[1]))"
NOW = "Number(player.style.getPropertyValue('--now'))"
BROKEN = "[...document.images].filter((image) => !image.complete || !image.naturalWidth || !image.alt).length"
CONTRASTS = """
(() => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const below = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? below(element.parentElement) : colour;
  };
  const texts = "p, h1, h2, h3, h4, figcaption, dt, code, button, a, li, td, output";
  return [...document.querySelectorAll(texts)].map((element) => {
    const pair = [light(getComputedStyle(element).color), light(below(element))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  });
})()
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_screen_without_network(open_page, page, width, theme):
    screen = {"viewport": {"width": width, "height": 900}, "is_mobile": width < 600, "color_scheme": theme}
    shown, requests = open_page("about:blank", **screen), []
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert shown.evaluate(BROKEN) == 0
    assert shown.evaluate("document.images.length") > 50
    assert min(shown.evaluate(CONTRASTS)) >= 4.5
    levels = shown.evaluate(LEVELS)
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


def test_the_controls_move_the_animations(open_page, page):
    shown = open_page(page.as_uri(), reduced_motion="reduce")
    players = shown.locator(".player").all()
    assert len(players) == 4  # the orders, and three priors
    for player in players:
        element = player.element_handle()
        assert player.get_attribute("data-state") == "paused"
        player.locator(".play").click()
        assert player.get_attribute("data-state") == "playing"
        shown.wait_for_function(f"player => {NOW} >= 2", arg=element)
        player.locator(".play").click()
        assert player.get_attribute("data-state") == "paused"
        player.locator("input").fill("4")
        assert player.evaluate(f"player => {NOW}") == 4
        assert player.locator("output").text_content() == "4 of 16 codes"
    covered = "(cell) => getComputedStyle(cell).opacity === '1'"
    assert shown.evaluate(f"[...document.querySelectorAll('svg.path .cover')].filter({covered}).length") == 5 * 12


def test_an_animation_starts_in_view_unless_motion_is_reduced(open_page, page):
    for motion in ("reduce", "no-preference"):
        shown = open_page(page.as_uri(), reduced_motion=motion)
        shown.evaluate("document.querySelector('.player').scrollIntoView({block: 'center', behavior: 'instant'})")
        if motion == "reduce":
            shown.wait_for_timeout(300)
            assert shown.locator(".player").first.get_attribute("data-state") == "paused"
        else:
            shown.locator(".player[data-state=playing]").first.wait_for()


def test_the_theme_button_changes_the_theme(open_page, page):
    shown = open_page(page.as_uri())
    colour = "getComputedStyle(document.body).backgroundColor"
    before = shown.evaluate(colour)
    shown.locator(".theme").click()
    assert shown.evaluate(colour) != before


def test_without_scripts_the_page_shows_finished_pictures(open_page, page):
    shown = open_page(page.as_uri(), java_script_enabled=False)
    assert shown.evaluate("[...document.querySelectorAll('.controls, .theme, .copy')].every((one) => one.hidden)")
    assert shown.evaluate("getComputedStyle(document.querySelector('.cover')).opacity") == "0"
    assert shown.evaluate("getComputedStyle(document.querySelector('.strip')).objectPosition") == "0px 100%"
