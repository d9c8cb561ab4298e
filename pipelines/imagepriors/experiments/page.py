"""One HTML page about all experiments of a run folder."""

from pathlib import Path
from typing import Any

from codeshards.format.files import read_json
from imagepriors.experiments import EXPERIMENTS
from imagepriors.reports.page import render_page
from runkit.folders import publish_file
from runkit.names import plain_name


def read_results(run: Path, name: str) -> dict[str, Any]:
    """The results.json of an experiment."""
    return read_json(run / "experiments" / name / "results.json")


def write_page(run: Path) -> Path:
    """Write RUN/experiments/index.html about each experiment that has results there, and return its path."""
    home = run / "experiments"
    sections, facts = [], []
    for name, description in EXPERIMENTS.items():
        if not (home / name / "results.json").is_file():
            continue
        found = read_results(run, name)
        names = [plain_name(f"{picture}.png", home / name / "results.json") for picture in found["pictures"]]
        files = {picture: (home / name / picture).read_bytes() for picture in names}
        sections.append({"title": f"{found['title']}: {description}", "text": found["text"], "files": files})
        facts.append((name, f"preset {found['preset']}, dataset {found['dataset']}"))
    page = render_page(f"The paper's experiments on {run.name}", facts, sections)
    publish_file(home / "index.html", page, "experiment")
    return home / "index.html"
