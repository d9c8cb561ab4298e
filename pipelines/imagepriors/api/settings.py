"""Configs from a preset and keyword arguments, with names checked before any work starts."""

import dataclasses
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from imagepriors.api.defaults import model_folder, preset_for_data, preset_for_shards
from imagepriors.presets import load_preset, merged
from runkit.configs import check_table, from_dict
from runkit.errors import UserError
from vqgan.config import dataset_geometry

Config = TypeVar("Config")


def build_config(
    cls: type[Config],
    fields: Mapping[str, Any],
    *,
    config: Config | None = None,
    base: Mapping[str, Any] | None = None,
    function: Callable[..., Any] | None = None,
) -> Config:
    """Build a config from a base and the fields that a caller overrides.

    Args:
        cls: The config class.
        fields: Fields to override; those of a nested config as a mapping, such as ``model={"ch": 32}``.
        config: A complete config to start from.
        base: Fields to start from where no config is given, such as the table of a preset.
        function: The public function, whose parameters are suggested for misspelt names as well.

    Raises:
        UserError: A field does not exist, or has a value that is not allowed.
    """
    if config is not None and not isinstance(config, cls):
        raise UserError(f"config is a {type(config).__name__}: pass a {cls.__module__}.{cls.__name__}")
    plain = _as_table(fields)
    parameters = [name for name in signature(function).parameters if name != "fields"] if function else []
    check_table(cls, plain, parameters)
    if config is not None and not plain:
        return config
    start = _as_table(dataclasses.asdict(config)) if config is not None else dict(base or {})  # type: ignore[call-overload]
    return from_dict(cls, merged(start, plain))  # type: ignore[no-any-return]


def stage_1_table(preset: str, table: str, dataset: str, data: Path, **start: Any) -> dict[str, Any]:
    """The table of a preset for work on pictures; the preset "auto" follows from the dataset.

    Args:
        preset: Name or TOML file of the preset.
        table: Its table.
        dataset: Layout of the data.
        data: Folder of the data.
        **start: Fields that a caller sets and on which others depend: `init`, the folder or hf:// address of the
            tokenizer that gives the architecture, and `freeze`.
    """
    fields = load_preset(preset_for_data(dataset, data) if preset == "auto" else preset, table)
    if table == "vqgan" and isinstance(fields.get("model", {}), dict):
        from vqgan.data import resolve

        fields["model"] = {"geometry": dataset_geometry(resolve(dataset, data)), **fields.get("model", {})}
    if init := str(start.get("init") or fields.get("init", "")):
        from vqgan.finetune import initial_fields

        fields = initial_fields(model_folder(init), fields, start.get("freeze") or fields.get("freeze", "none"))
    return fields


def stage_2_table(preset: str, table: str, shards: Path) -> dict[str, Any]:
    """The table of a preset for work on shards; the preset "auto" follows from the shards."""
    return load_preset(preset_for_shards(shards) if preset == "auto" else preset, table)


def _as_table(value: Any) -> Any:
    """Nested configs and mappings as dicts, paths and numpy's numbers as Python's: values that TOML has as well."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _as_table(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value
