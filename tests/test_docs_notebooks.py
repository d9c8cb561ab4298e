"""The notebooks of examples/, executed cell by cell on a pipeline of seconds."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def execute(name: str, parameters: str) -> list[Any]:
    """Run the cells of a notebook, with other parameters; returns what the cells show."""
    values: dict[str, Any] = {}
    shown = []
    for cell in json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            continue
        source = parameters if "parameters" in cell["metadata"].get("tags", ()) else "".join(cell["source"])
        code = ast.parse(source)
        last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
        exec(compile(code, name, "exec"), values)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), values))
    return shown


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    """A copy of the run, because a page adds codes to its shards."""
    root = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(demo_run.parents[1], root, dirs_exist_ok=True)
    return root / "runs/demo"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    value = json.loads(path.read_text())
    assert (value["nbformat"], value["nbformat_minor"]) == (4, 5)
    for cell in value["cells"]:
        assert not cell.get("outputs"), path
        assert cell.get("execution_count") is None
    assert path.stat().st_size < 10_000


def test_photos(local_ray_cores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        Image.linear_gradient("L").rotate(15 * number).convert("RGB").resize((48, 40)).save(f"pictures/{number}.png")
    shown = execute("photos", 'PHOTOS = "pictures"\nSTEPS = 2')
    assert len(shown[-1].grid().getbands()) == 3
    assert len(shown[-1]) == 16


def test_shards(run):
    shown = execute("shards", f"SHARDS = {str(run / 'shards')!r}")
    assert shown[1]["pictures"].sum() == 24
    assert shown[-1].size == (32, 32)


def test_conditions(run):
    shown = execute("conditions", f"RUN = {str(run)!r}")
    assert [len(one) for one in shown if hasattr(one, "codes")] == [4] * 4
    assert "cond_dropout" in shown[-1]


def test_the_page_about_python(run, monkeypatch):
    """Its blocks run where the quickstart has run, with a prior of any order and a photo."""
    monkeypatch.chdir(run.parents[1])
    Image.linear_gradient("L").convert("RGB").save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), {})


def test_pipeline_figure(run, tmp_path, monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("pipeline_figure", EXAMPLES / "pipeline_figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MASKS", (0, 1, 2, 3))
    figure = module.draw(run, run.parents[1] / "data")
    assert [axes.get_title() for axes in figure.axes[:8]] == module.TOP
    assert all(axes.images for axes in figure.axes)
