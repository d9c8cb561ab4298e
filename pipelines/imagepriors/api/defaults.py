"""Presets and folders that follow from the data, where a command is not given them."""

import logging
from pathlib import Path

from codeshards.format import ShardError, open_store, plan_settings

log = logging.getLogger(__name__)
RUNS = Path("runs")
DEMO_DATA = Path("data/demo")
_LOOKED_AT = 64
"""Pictures whose sizes decide a preset."""
_PRESETS = ((48, "cifar10"), (128, "photos-64"))
"""Shorter side of the pictures up to which a preset is taken, in pixels; larger ones are cut to 256×256."""
_LARGE = "imagenet-small"


def run_folder(data: Path) -> Path:
    """Where the runs on a dataset are: `runs/` and the name of its folder."""
    return RUNS / data.resolve().name


def preset_for_data(dataset: str, data: Path) -> str:
    """Preset for a dataset: the demo's for the demo alone, otherwise by the size of its pictures; it is logged.

    Raises:
        InputError: the dataset cannot be opened, or none of the pictures that are looked at can be read.
    """
    from vqgan.data import open_splits, resolve, spread
    from vqgan.errors import InputError

    name = resolve(dataset, data)
    if name == "demo":
        return _chosen("demo", "of the demo scenes")
    train, sides = open_splits(name, data)["train"], []
    for index in spread(len(train), _LOOKED_AT):
        try:
            sides.append(min(train.image_size(index)))
        except InputError as error:
            problem = error
    if not sides:
        raise InputError(f"none of {_LOOKED_AT} images of {data} can be read (the last: {problem})")
    side = sorted(sides)[len(sides) // 2]
    return _chosen(_by_side(side), f"because the shorter side of its pictures is {side} pixels (median)")


def preset_for_shards(shards: Path) -> str:
    """Preset for priors on token shards, by what they were made of; it is logged."""
    try:
        settings = plan_settings(shards)
    except ShardError:  # shards from elsewhere need no plan
        settings = {}
    if settings.get("dataset") == "demo":
        return _chosen("demo", "of the demo scenes")
    side = settings.get("resolution")
    if not isinstance(side, int):
        return _chosen(_LARGE, "because the shards do not tell of what pictures they are")
    return _chosen(_by_side(side), f"because the pictures were encoded at {side}×{side} pixels")


def _by_side(side: int) -> str:
    return next((preset for most, preset in _PRESETS if side <= most), _LARGE)


def _chosen(preset: str, why: str) -> str:
    log.info("preset %s, %s; --preset chooses another", preset, why)
    return preset


def beside(shards: Path) -> Path:
    """The run folder of shards: the folder in which they are, of shards in an object store `runs/` and its name."""
    store = open_store(shards)
    folder = Path(str(shards)).parent
    return folder if store.local is not None else RUNS / folder.name
