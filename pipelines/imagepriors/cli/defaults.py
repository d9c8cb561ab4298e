"""Defaults of the flags: what `--preset` names, or what follows from the data.

The parser's defaults depend on some flags, which are therefore read ahead of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codeprior.config import TrainConfig as PriorConfig
from codeprior.sample_config import SampleConfig
from codeshards.config import TokenizeConfig
from imagepriors.api.defaults import DEMO_DATA, results_folder
from imagepriors.api.settings import stage_1_table, stage_2_table
from imagepriors.cli.common import weighted
from imagepriors.presets import load_preset
from runkit.configs import from_dict
from vqgan.config import TrainConfig as TokenizerConfig

CONFIGS: dict[str, tuple[type[Any], str]] = {
    "train-vqgan": (TokenizerConfig, "vqgan"),
    "tokenize": (TokenizeConfig, "tokenize"),
    "train-prior": (PriorConfig, "prior"),
    "sample": (SampleConfig, "sample"),
}
"""Command → config class and the table of a preset that fills it."""
HELP_PRESET = "demo"
"""Preset whose values `--help` shows."""


def read_ahead(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that decide the parser's defaults."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--dataset", "--data", "--prior", "--init", "--freeze"):
        ahead.add_argument(flag, nargs="?")
    ahead.add_argument("--shards", nargs="*")
    ahead.add_argument("--help", "-h", action="store_true")
    found = ahead.parse_known_args(argv)[0]
    found.preset = found.preset or "auto"
    return found


def default_config(command: str, argv: Sequence[str]) -> Any:
    """The config of a command where no flag changes it."""
    cls, table = CONFIGS[command]
    given = read_ahead(argv)
    if given.help and given.preset == "auto":
        given.preset = HELP_PRESET
    if given.help:
        fields = load_preset(given.preset, table)
    elif command in ("train-vqgan", "tokenize"):
        data = Path(given.data or DEMO_DATA)
        start = {"init": given.init, "freeze": given.freeze}
        fields = stage_1_table(given.preset, table, given.dataset or "auto", data, **start)
    else:
        beside_prior = command == "sample" and not given.shards
        prior = results_folder(Path(given.prior or "runs/demo/prior"))
        named = weighted(given.shards or ["runs/demo/shards"])
        shards = prior.parent / "shards" if beside_prior else next(iter(named)) if isinstance(named, dict) else named
        fields = stage_2_table(given.preset, table, shards)
    return from_dict(cls, fields)
