"""Guards of the layout: what must stay true for everything else to work."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "common": "runkit",
    "stage1": "vqgan",
    "tokenize": "codeshards",
    "stage2": "codeprior",
    "pipelines": "imagepriors",
}


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_tokenize_stays_the_standard_librarys_from_the_repo_root():
    code = "import tokenize, inspect; print(tokenize.__file__); tokenize.generate_tokens; inspect.getsource(inspect)"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "tokenize")


@pytest.mark.parametrize(("container", "package"), PACKAGES.items())
def test_each_container_holds_exactly_one_package(container, package):
    found = {path.name for path in (ROOT / container).iterdir() if not path.name.startswith((".", "__pycache__"))}
    assert found == {package}


def test_import_contracts_hold():
    done = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_contracts_can_fail(tmp_path):
    """The contracts would see a forbidden import: run them over a copy with one added."""
    import shutil

    for container, package in PACKAGES.items():
        shutil.copytree(ROOT / container / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "codeprior" / "model.py").open("a") as file:
        file.write("\nimport PIL\n")
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert "the prior never sees a pixel BROKEN" in done.stdout


def test_cli_modules_import_no_heavy_library():
    """`imagepriors --help` must answer at once: configs and CLI import neither torch nor ray nor pandas."""
    code = "import sys, imagepriors.cli; print([m for m in ('torch', 'ray', 'matplotlib', 'PIL') if m in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_wheel_holds_exactly_the_five_packages_and_its_cli_runs(tmp_path):
    done = run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES.values())
    assert {"imagepriors/presets/demo.toml", "imagepriors/reports/templates/page.css"} <= set(names)
    # A clean environment with our wheel alone; its dependencies (gigabytes) are lent by a path entry.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel)
    assert done.returncode == 0, done.stderr
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "lent.pth").write_text(f"import sys; sys.path.append({lent!r})\n")
    code = "import imagepriors.cli as c, sys; print(c.__file__); sys.exit(c.main(['--help']))"
    done = run(tmp_path / "venv" / "bin" / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "train-prior" in done.stdout


@pytest.mark.parametrize("name", ["docs/benchmarks.md"])
def test_documents_show_the_tables_as_they_were_measured(name):
    """`make readme` puts them there."""
    from priorbench.readme import with_tables

    text = (ROOT / name).read_text()
    assert text.count("<!-- table ") + text.count("<!-- claims ") == text.count("<!-- end -->") > 0
    assert with_tables(text) == text
    assert with_tables(text.replace("<!-- end -->", "typed by hand\n<!-- end -->")) == text
