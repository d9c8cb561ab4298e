"""Writing the page as a folder that docker builds, and that a Space of Hugging Face serves."""

import importlib.metadata
import importlib.util
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from codeprior.checkpoint import SCALARS, prior_folder
from codeshards.format import ShardDataset
from codeshards.tools.convert import convert
from imagepriors.api.defaults import MODEL_FILES
from imagepriors.studio.contents import Contents
from imagepriors.studio.search import short_names
from runkit.errors import UserError
from runkit.folders import check_apart
from runkit.names import plain_path
from runkit.places import absolute
from vqgan.plugin_tokenizer import plugin_name

log = logging.getLogger(__name__)
_PACKAGES = ("runkit", "vqgan", "codeshards", "codeprior", "imagepriors")
_REQUIRED = (
    "dacite", "jinja2", "matplotlib", "numpy", "packaging", "pillow", "pyarrow", "safetensors", "starlette", "tqdm",
    "tyro", "uvicorn",
)  # fmt: skip
"""Dependencies of the page beside torch. Those of training, Ray and evaluation are left out."""
_PORT = 7860
_SPLIT = "val"
"""Split whose rows are exported. Those of training stay where they are."""
_NAMES = ("Dockerfile", "README.md", "requirements.txt", ".gitattributes", "packages", "model")
_MARK = "# The studio of imagepriors"
_DOCKERFILE = """\
{mark}: docker build -t studio . && docker run --rm -p {port}:{port} studio
FROM python:{python}-slim

# Builds for CPUs. For a GPU pass --build-arg TORCH_INDEX= of pytorch.org/get-started, and docker run --gpus all.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" torch=={torch}
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt

# Spaces run containers as user 1000.
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/studio
ENV PYTHONPATH=/home/user/studio/packages PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
COPY --chown=user packages packages
COPY --chown=user model model

EXPOSE {port}
HEALTHCHECK --start-period=60s --timeout=10s \\
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=5)"]
CMD {command}
"""
_README = """\
---
title: {title}
colorFrom: indigo
colorTo: blue
sdk: docker
app_port: {port}
pinned: false
---

# {name}

A page on which to draw with these priors, and to look into their tokens:

{parts}

On this machine, at http://127.0.0.1:{port}/:

```
docker build -t studio .
docker run --rm -p {port}:{port} studio
```

As a Space: create one of the type Docker at https://huggingface.co/new-space, and upload this folder:

```
hf upload OWNER/NAME . . --repo-type space
```

Everyone who reaches the page can draw and see the token shards; a private Space decides who does. Made by imagepriors
{version}.
"""
_GIT = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("parquet", "safetensors", "tar"))


def export_studio(places: Sequence[Path], out: Path) -> str:
    """Write a folder with the page, its models and the validation rows of its shards; returns how to use it.

    A folder of an earlier export is replaced, at the end and at once.

    Args:
        places: What the page shows, see :meth:`.Contents.open`.
        out: The folder.

    Raises:
        UserError: A place cannot be exported, or `out` holds something else.
    """
    check_apart(out, places=[place for place in places if not plugin_name(place)])
    _check_replaceable(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.absolute().name}-", dir=out.absolute().parent) as temp:
        made = Path(temp, "new")
        parts, folders = [], []
        for place, short in zip(places, short_names(places), strict=True):
            folder = f"model/{plain_path(short, 'the folder')}"
            parts += _copy_models(Contents.open([place]), made / folder)
            folders.append(folder)
        _copy_packages(made / "packages")
        for name, text in _texts(", ".join(short_names(places)), folders, parts).items():
            (made / name).write_text(text, encoding="utf-8")
        if out.exists():
            out.rename(Path(temp, "old"))
        made.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return (
        f"{out} holds the studio ({size / 1e6:,.0f} MB)\n"
        f"  here:       docker build -t studio {out} && docker run --rm -p {_PORT}:{_PORT} studio\n"
        f"  as a Space: hf upload OWNER/NAME {out} . --repo-type space"
    )


def _check_replaceable(out: Path) -> None:
    """Refuse a folder that is no earlier export, or to which something was added, such as a git repository."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is no folder: choose another name")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = sorted(found - set(_NAMES))
    if found and not others and not (out / "Dockerfile").is_file():
        others = sorted(found)
    if not others and found and not (out / "Dockerfile").read_text(encoding="utf-8").startswith(_MARK):
        others = ["Dockerfile"]
    if others:
        raise UserError(f"{out} holds {others[0]}, which is not of an exported studio: choose another folder")


def _copy_models(contents: Contents, folder: Path) -> list[str]:
    """Copy what the page shows, and return a line about each part."""
    lines = []
    for name, prior in contents.priors.items():
        _copy_files(prior.folder, prior_folder(prior.folder), folder / plain_path(name, "the folder"))
        sequence = prior.sequence
        lines.append(f"- {name}: a prior over {sequence.height}×{sequence.width} codes in {sequence.order_text}")
    shown = {name: dataset for name, dataset in contents.shards.items() if _has_rows(dataset)}
    if not (shown or contents.priors or contents.tokenizers):
        raise UserError(f"{contents.title} has no validation rows, and training rows are not exported: leave it out")
    stored = [str(absolute(dataset.path)) for dataset in shown.values()]
    for name, tokenizer in contents.tokenizers.items():
        if plugin_name(tokenizer.folder):
            raise UserError(f"{name} is a tokenizer of another package, which cannot be exported: leave it out")
        net = tokenizer.config
        lines.append(f"- {name}: a tokenizer of {net.resolution}×{net.resolution} {net.modality}")
        if not any(str(tokenizer.folder).startswith(f"{place}/") for place in stored):
            _copy_files(tokenizer.folder, tokenizer.folder, folder / plain_path(name, "the folder"))
    for name, dataset in shown.items():
        _copy_shards(dataset, folder / plain_path(name, "the folder"))
        lines.append(f"- {name}: {dataset.rows(_SPLIT):,} validation rows")
    for name in contents.shards.keys() - shown:
        log.warning("%s are left out: they have no validation rows, and training rows are not exported", name)
    return lines


def _copy_files(run: Path, weights: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in (*MODEL_FILES, SCALARS):
        source = next((place / name for place in (weights, run) if (place / name).is_file()), None)
        if source is not None and (name != SCALARS or weights != run):
            shutil.copyfile(source, out / name)


def _has_rows(dataset: ShardDataset) -> bool:
    return _SPLIT in dataset.splits and dataset.rows(_SPLIT) > 0


def _copy_shards(dataset: ShardDataset, out: Path) -> None:
    """Write the validation rows of shards."""
    convert(dataset.path, out, dataset.manifest.formats[:1], splits=[_SPLIT])
    for path in out.glob(".*.lock"):
        path.unlink()


def _copy_packages(out: Path) -> None:
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, out / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    package = importlib.metadata.distribution("imagepriors")
    info = out / f"imagepriors-{package.version}.dist-info"
    info.mkdir()
    for name in ("METADATA", "licenses/LICENSE"):
        if (text := package.read_text(name)) is not None:
            (info / Path(name).name).write_text(text)


def _texts(title: str, folders: list[str], parts: list[str]) -> dict[str, str]:
    """The other files: name → content."""
    command = ["python", "-m", "imagepriors", "studio", *folders, "--port", str(_PORT), "--public"]
    torch, heading = _version("torch"), json.dumps(f"{title}: imagepriors studio", ensure_ascii=False)
    about = {
        "mark": _MARK, "port": _PORT, "python": f"{sys.version_info.major}.{sys.version_info.minor}", "torch": torch,
        "command": json.dumps(command, ensure_ascii=False), "name": title, "title": heading,
        "parts": "\n".join(parts), "version": importlib.metadata.version("imagepriors"),
    }  # fmt: skip
    pins = [f"{name}=={_version(name)}" for name in sorted(_closure(_REQUIRED))]
    return {
        "Dockerfile": _DOCKERFILE.format(**about),
        "README.md": _README.format(**about),
        "requirements.txt": "\n".join([*pins, f"torch=={torch}", ""]),
        ".gitattributes": _GIT,
    }


def _closure(names: Sequence[str]) -> set[str]:
    """Distributions and what they require, as they are installed here."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += _requires(name)
    return found


def _requires(name: str) -> Iterator[NormalizedName]:
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def _version(name: str) -> str:
    """The installed version, without what names a build, such as +cpu."""
    return importlib.metadata.version(name).partition("+")[0]
