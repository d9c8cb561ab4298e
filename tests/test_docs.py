"""The documentation stays true: commands parse, variables and files exist, links lead somewhere."""

import functools
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tyro

from imagepriors.cli import COMMANDS
from imagepriors.cli.defaults import CONFIGS
from imagepriors.cli.shards import SHARDS
from imagepriors.presets import load_preset
from runkit.configs import from_dict

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULT = "imagenet-small"
"""Preset of a command that names none: what the commands would choose requires their data."""
BLOCK = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def lines_of(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined."""
    blocks = [found[2].replace("\\\n", " ") for found in BLOCK.finditer(page.read_text())]
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


def commands() -> list[tuple[str, str]]:
    """(page, command line from `imagepriors` on) of all pages."""
    found = []
    for page in PAGES:
        for line in lines_of(page):
            start = re.search(r"(?:^|-- |^\w+=\S+ |\.sbatch +|\$\(which )imagepriors\)? (?!\S+: )", line)
            if start:
                words = line[start.start() :]
                found.append((page.relative_to(ROOT).as_posix(), words[words.index("imagepriors") :]))
    return found


def parse(argv: list[str]) -> None:
    """Parse a command line with the program's own parser, without running the command."""
    name, *rest = argv
    functions = getattr(SHARDS, "commands", SHARDS) if name == "shards" else COMMANDS
    name, rest = (rest[0], rest[1:]) if name == "shards" else (name, rest)

    @functools.wraps(functions[name])
    def stub(*args: object, **kwargs: object) -> str:
        return ""

    function = stub
    if name in CONFIGS and functions is COMMANDS:
        preset = rest[rest.index("--preset") + 1] if "--preset" in rest else DEFAULT
        cls, table = CONFIGS[name]
        fields = load_preset(DEFAULT if preset.endswith(".toml") else preset, table)
        if "--freeze" in rest:  # these follow from the tokenizer of --init, which the page does not have
            fields = {**fields, "restart_every": 0, "loss": {**fields["loss"], "codebook_decay": 0.0}}
        config = from_dict(cls, fields)
        function = functools.partial(stub, config=config)
    tyro.cli(function, args=rest)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_parse(page, line, capsys):
    words = shlex.split(line.replace("imagepriors)", "imagepriors"), comments=True)[1:]
    flags = {number for number, word in enumerate(words) if word.startswith("--")}
    # An ellipsis stands for further flags, or for the value of the flag before it.
    argv = [word for number, word in enumerate(words) if word != "…" or number - 1 in flags]
    if "…" in words and argv[0] in ("evaluate-tokenizer", "tokenize") and "--data" not in argv:
        argv += ["--data", "data"]
    try:
        parse(argv)
    except SystemExit:
        pytest.fail(f"{page}: {line}\n{''.join(capsys.readouterr())}")


def test_some_commands_are_found():
    assert len(commands()) > 40
    assert {name for _, line in commands() for name in line.split()[1:2]} >= {
        "train-vqgan",
        "tokenize",
        "sample",
        "shards",
    }


def test_commands_that_do_not_parse_are_noticed(capsys):
    for argv in (["sample", "--no-such-flag"], ["train-prior", "--order", "diagonal"], ["shards", "merge"]):
        with pytest.raises(SystemExit) as stop:
            parse(argv)
        assert stop.value.code == 2
    with pytest.raises(KeyError):
        parse(["no-such-command"])


def test_commands_in_sentences_exist():
    for page in PAGES:
        for name in re.findall(r"`imagepriors ([a-z][a-z-]*)", page.read_text()):
            assert name in COMMANDS, f"{page}: imagepriors {name}"


def test_make_targets_and_variables_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = {*re.findall(r"^(?:export )?([A-Z]+) *[?:]?=", makefile, re.MULTILINE), "RAY_ADDRESS", "SEED"}
    for page in PAGES:
        text = page.read_text()
        lines = [line for line in lines_of(page) if line.startswith("make ")]
        lines += [line for line in re.findall(r"`(make [^`\n]+)`", text) if "VARIABLE" not in line]
        for line in lines:
            for word in shlex.split(line, comments=True)[1:]:
                name, is_variable, _ = word.partition("=")
                assert name in (variables if is_variable else {*targets, "…"}), f"{page}: {line}"
        if page.name == "make.md":
            listed = set(re.findall(r"`([A-Z_]+)`", " ".join(re.findall(r"^\| (`[A-Z].*?) \|", text, re.MULTILINE))))
            assert listed <= variables
            assert listed >= set(re.findall(r"\b([A-Z]+)\b(?==[$'])", makefile.partition("Variables (now)")[2][:500]))


def test_links_lead_to_files_and_headings():
    """What mkdocs checks inside of the site, for the pages as GitHub shows them too."""
    generated = {f"docs/notebooks/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        for target in LINK.findall(text):
            parts = urlsplit(target)
            if parts.scheme:
                assert parts.scheme == "https", f"{page}: {target}"
                assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc), f"{page}: {target}"
                continue
            file = (page.parent / parts.path).resolve() if parts.path else page
            if file.relative_to(ROOT).as_posix() in generated:
                continue
            assert file.exists(), f"{page}: {target}"
            if parts.fragment:
                slugs = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings(file)}
                assert parts.fragment in slugs, f"{page}: {target}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[2:]:
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in text


def test_pictures_of_pages_are_small():
    for path in [*(ROOT / "docs").rglob("*.png"), *(ROOT / "docs").rglob("*.jpg")]:
        assert path.stat().st_size < 600_000, path


def test_the_readme_is_a_face():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
