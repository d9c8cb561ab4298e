"""Presets and folders that follow from the data, where the caller names none."""

import logging
import os
from pathlib import Path

from codeshards.format import ShardError, open_store
from codeshards.format.manifest import MANIFEST_FILE
from codeshards.format.plan import plan_settings
from runkit.errors import UserError
from runkit.hub import HubAddress, download_folder, is_hub, pinned, source_of
from runkit.places import as_typed, url_of
from runkit.web import WEB_FILES

PathLike = str | os.PathLike[str]
log = logging.getLogger(__name__)
RUNS = Path("runs")
DEMO_DATA = Path("data/demo")
MODEL_FILES = ("config.json", "model.safetensors", "summary.json", "evaluation.json", "figures.json")
"""Files of a tokenizer or a prior that is on the Hub. The config comes first and the rest are figures."""
TOKENIZER_OF_PRIOR = ("tokenizer/config.json", "tokenizer/model.safetensors")
"""Files of the tokenizer that is stored with a prior."""
_SAMPLED = 64
"""Pictures whose sizes decide the preset."""
_PRESETS = ((48, "cifar10"), (128, "photos-64"))
"""Shorter side of the pictures, in pixels, up to which a preset is chosen; larger pictures are cropped to 256×256."""
_LARGE = "imagenet-small"


def as_path(path: PathLike) -> Path:
    """A path with the user's home folder in place of "~".

    Raises:
        UserError: It is not a path, or there is no such user.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r} is a {type(path).__name__}: pass a path, or what the function before this returned")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} begins with the home of a user that this machine does not know") from error


def model_folder(path: PathLike) -> Path:
    """The local folder of a tokenizer or a prior; what an hf:// address names is downloaded to the client's cache.

    Raises:
        UserError: It is no path, or cannot be downloaded.
    """
    path = as_path(path)
    return download_folder(path, MODEL_FILES + TOKENIZER_OF_PRIOR) if is_hub(path) else path


def pretrained(name: PathLike, revision: str | None) -> PathLike:
    """A local folder, or the hf:// address of what is no folder.

    Raises:
        UserError: It is no path, or a folder with a revision.
    """
    path = as_path(name)
    if is_hub(path) or not path.is_dir():
        return str(HubAddress.parse(path, revision=revision))
    if revision:
        raise UserError(f"{path} is a folder, which has no revisions: leave out revision, or write hf://{path}")
    return path


def shards_folder(path: PathLike) -> Path:
    """The folder or URL of token shards; an hf:// address gets the commit that its revision means now.

    Raises:
        UserError: It is no path, or the repository cannot be read.
    """
    path = as_path(path)
    return Path(pinned(path, MANIFEST_FILE)) if is_hub(path) else path


def results_folder(model: Path) -> Path:
    """The folder for results of a model: its own; `runs/` and its name, if it is on the Hub or of another package."""
    from vqgan.plugin_tokenizer import plugin_name

    if name := plugin_name(model):
        return RUNS / name.replace(":", "-")
    address = str(model) if is_hub(model) else source_of(model)
    return RUNS / HubAddress.parse(address).repo_id.partition("/")[2] if address else model


def run_folder(data: Path) -> Path:
    """Folder of the runs on a dataset: `runs/` and the name of the data's folder; of files of a web server, theirs."""
    url = url_of(data)
    if url is None:
        return RUNS / data.resolve().name
    parts = url.partition("?")[0].strip("/").split("/")
    while len(parts) > 1 and ("{" in parts[-1] or parts[-1].endswith((".txt", *WEB_FILES))):
        parts.pop()
    return RUNS / parts[-1].partition("@")[0]


def preset_for_data(dataset: str, data: Path) -> str:
    """Choose the preset for a dataset, and log it: "demo" for the demo scenes, otherwise by the size of the pictures.

    Raises:
        InputError: The dataset cannot be opened, or none of the sampled pictures can be read.
    """
    from vqgan.data import open_splits, resolve, spread
    from vqgan.errors import InputError

    name = resolve(dataset, data)
    if name == "demo":
        return _chosen("demo", "because these are the demo scenes")
    train, sides = open_splits(name, data)["train"], []
    for index in spread(len(train), _SAMPLED):
        try:
            sides.append(min(train.image_size(index)))
        except InputError as error:
            problem = error
    if not sides:
        raise InputError(f"none of {_SAMPLED} images of {as_typed(data)} can be read (the last: {problem})")
    side = sorted(sides)[len(sides) // 2]
    return _chosen(_by_side(side), f"because the shorter side of its pictures is {side} pixels (median)")


def preset_for_shards(shards: Path) -> str:
    """Choose the preset for a prior on token shards by the pictures they were made from, and log it."""
    try:
        settings = plan_settings(shards_folder(shards))
    except ShardError:  # shards of other programs have no plan
        settings = {}
        store = open_store(shards)
        if store.local is not None and not store.local.is_dir():
            return _LARGE  # the command reports that they are missing
    if settings.get("dataset") == "demo":
        return _chosen("demo", "because these are the demo scenes")
    side = settings.get("resolution")
    if not isinstance(side, int):
        return _chosen(_LARGE, "because the shards do not record the size of their pictures")
    return _chosen(_by_side(side), f"because the pictures were encoded at {side}×{side} pixels")


def _by_side(side: int) -> str:
    return next((preset for most, preset in _PRESETS if side <= most), _LARGE)


def _chosen(preset: str, why: str) -> str:
    log.info("preset %s, %s; set preset to choose another", preset, why)
    return preset


def beside(shards: Path) -> Path:
    """The run folder of shards: the folder that holds them, or for an object store `runs/` and that folder's name.

    For the Hub it is `runs/` and the name of the repository.
    """
    if is_hub(shards):
        return results_folder(shards)
    store = open_store(shards)
    folder = Path(str(shards)).parent
    return folder if store.local is not None else RUNS / folder.name
