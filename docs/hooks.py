"""What mkdocs cannot write by itself: pages that are generated from the packages, notebooks, and files beside `docs/`.

A line `<!-- name of a generator: arguments -->` in a page is replaced by what the generator returns.
"""

import contextlib
import importlib
import io
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"\]\(\.\./((?!\.\.)[^)#]+\.(?:png|jpg|jpeg))\)")
"""Links to pictures of the repository that are not in `docs/`."""
_ROLE = re.compile(r":(?:meth|func|class|attr|data|mod):")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def names(package: str) -> str:
    """References of the public names of a package: functions, then classes."""
    listed = sorted(importlib.import_module(package).__all__, key=lambda name: (name[0].isupper(), name))
    return "\n\n".join(f"::: {package}.{name}" for name in listed)


def modules(package: str, *chosen: str) -> str:
    """References of modules of a package."""
    options = "\n    options: {heading_level: 2, members_order: source}"
    return "\n\n".join(f"::: {package}.{name}{options}" for name in chosen)


def commands() -> str:
    """What `--help` prints, for every command."""
    from imagepriors.cli import COMMANDS
    from imagepriors.cli.shards import SHARDS

    subcommands = getattr(SHARDS, "commands", SHARDS)
    listed = [[name] for name in COMMANDS if name != "shards"] + [["shards", name] for name in subcommands]
    return "\n\n".join(f"## {' '.join(words)}\n\n```text\n{_help(words)}\n```" for words in listed)


def presets() -> str:
    """The files of all presets."""
    from imagepriors.presets import preset_names

    texts = {name: (resources("imagepriors.presets") / f"{name}.toml").read_text() for name in preset_names()}
    return "\n\n".join(f"## {name}\n\n```toml\n{text.strip()}\n```" for name, text in texts.items())


def contributing() -> str:
    """`CONTRIBUTING.md`, with its links as seen from `docs/`."""
    return (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")


def code(path: str) -> str:
    """A Python file of the repository."""
    return f"```python\n{(ROOT / path).read_text().strip()}\n```"


GENERATORS: dict[str, Callable[..., str]] = {
    "names": names, "modules": modules, "commands": commands, "presets": presets, "contributing": contributing,
    "code": code,
}  # fmt: skip
_MARK = re.compile(rf"^<!-- ({'|'.join(GENERATORS)}): ?(.*?) ?-->$", re.MULTILINE)


def _help(words: list[str]) -> str:
    from imagepriors.cli import main

    os.environ["COLUMNS"] = "100"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return _ANSI.sub("", out.getvalue()).strip()


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks as pages, and the pictures outside `docs/` that pages show."""
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=notebook_page(notebook)))
    for page in [file for file in files.documentation_pages() if file.abs_src_path]:
        for path in _OUTSIDE.findall(Path(page.abs_src_path).read_text()):
            files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def notebook_page(path: Path) -> str:
    """A notebook as Markdown; its code is fenced, and outputs are left out."""
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    parts = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    ]
    return "\n\n".join([*parts, f"The notebook is `examples/{path.name}`; a test executes it."])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and redirect links of pages that are files of the repository."""
    markdown = _MARK.sub(lambda found: GENERATORS[found[1]](*found[2].split()), markdown)
    return _OUTSIDE.sub(r"](repository/\1)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of docstrings, which mkdocstrings leaves as text."""
    return _ROLE.sub("", html)


class _Loaded(HTMLParser):
    """Collects addresses that a browser loads when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get("href") if tag == "link" and values.get("rel") != "canonical" else values.get("src")
        if re.match(r"(?:https?:)?//", address or ""):
            self.found.append(str(address))


def on_post_build(config: Any) -> None:
    """Refuse a site that loads anything from another host."""
    for path in Path(config["site_dir"]).rglob("*.html"):
        page = _Loaded()
        page.feed(path.read_text())
        if page.found:
            raise PluginError(f"{path} loads {', '.join(page.found)}: the site must work without a network")
    for path in Path(config["site_dir"]).rglob("*.css"):
        if found := re.findall(r"url\(['\"]?(https?:[^)]+)", path.read_text()):
            raise PluginError(f"{path} loads {', '.join(found)}: the site must work without a network")
