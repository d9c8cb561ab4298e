"""Every config of every package refuses what is no choice, also where it is built from Python."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from runkit.configs import check_value, from_dict
from runkit.devices import Device, Precision, pick_device
from runkit.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = {("ColumnSpec", "name"): "codes_zcurve"}
"""Values of required fields of which not any text is allowed."""


def configs() -> list[type[Any]]:
    """All dataclasses whose names end in Config or Spec, wherever they are defined."""
    found = []
    for path in sorted(ROOT.glob("*/*/**/*.py")):
        container, *names = path.relative_to(ROOT).with_suffix("").parts
        if container not in ("common", "stage1", "tokenize", "stage2", "pipelines") or "benchmarks" in names:
            continue
        for name in re.findall(r"@dataclass\([^)]*\)\nclass (\w+(?:Config|Spec))\b", path.read_text()):
            found.append(getattr(importlib.import_module(".".join(names)), name))
    return found


def build(cls: type[Any], **given: Any) -> Any:
    """An instance whose other required fields have some value of their types."""
    kinds = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in given or field.default is not dataclasses.MISSING:
            continue
        kind = kinds[field.name]
        if field.default_factory is dataclasses.MISSING:
            some = {str: EXAMPLES.get((cls.__name__, field.name), "x"), int: 4}
            choice = get_args(kind)[0] if get_origin(kind) is Literal else None
            given[field.name] = choice or (build(kind) if dataclasses.is_dataclass(kind) else some[kind])
    return cls(**given)


def choices(kind: Any, wrap: Any = lambda value: value) -> Iterator[Any]:
    """A wrong value for each Literal in an annotation."""
    if get_origin(kind) is Literal:
        yield from (wrap("hing"), wrap(None), wrap(float("nan")))
        return
    for part in get_args(kind):
        yield from choices(part, (lambda value: (value,)) if get_origin(kind) is tuple else wrap)


CASES = [
    pytest.param(cls, name, value, id=f"{cls.__module__}.{cls.__name__}.{name}-{value}")
    for cls in configs()
    for name, kind in get_type_hints(cls).items()
    for value in choices(kind)
]


def test_the_walk_finds_the_configs_that_are_known() -> None:
    names = {cls.__name__ for cls in configs()}
    assert {"ModelConfig", "LossConfig", "TrainConfig", "SampleConfig", "TokenizeConfig", "RunConfig"} <= names
    assert {"EvaluateConfig", "EvaluatePriorConfig", "ExperimentConfig", "AnnotateConfig", "GridSpec"} <= names
    assert len(CASES) > 60


@pytest.mark.parametrize("cls", configs(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_they_are_frozen_and_can_be_built(cls: type[Any]) -> None:
    config = build(cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, None)


@pytest.mark.parametrize(("cls", "name", "value"), CASES)
def test_what_is_no_choice_is_refused_by_name(cls: type[Any], name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name.rstrip("s")):
        build(cls, **{name: value})


@pytest.mark.parametrize("value", ["bf16", "gpu", None, 1])
def test_arguments_are_checked_like_fields(value: Any) -> None:
    from vqgan.cpu_kernels import resolve_precision
    from vqgan.errors import InputError

    check_value("device", "cpu", Device)
    for name, kind in (("device", Device), ("precision", Precision)):
        with pytest.raises(UserError, match=rf"^{name} is {value!r}: choose one of auto, "):
            check_value(name, value, kind)
    with pytest.raises(InputError, match="precision is"):
        resolve_precision(value, pick_device("cpu"))
    with pytest.raises(InputError, match="device is"):
        pick_device(value, InputError)


def test_plain_values_become_a_config() -> None:
    from codeprior.config import PriorError, TrainConfig

    config = from_dict(TrainConfig, {"learning_rate": 1, "betas": [0, 0.5], "model": {"n_layer": 2}})
    assert (config.learning_rate, config.betas, config.model.n_layer) == (1.0, (0, 0.5), 2)
    for values, words in (
        ({"stepz": 1}, r"codeprior.config.TrainConfig: unknown field stepz = 1: did you mean steps\?"),
        ({"learning_rate": "1"}, "learning_rate"),
        ({"learning_rate": True}, "learning_rate"),
        ({"model": {"n_layer": 0}}, "n_layer is 0"),
    ):
        with pytest.raises(PriorError, match=words):
            from_dict(TrainConfig, values, PriorError)
