"""Checkpoints of a training run: written atomically, checked before use, and renamed if they are damaged.

RUN/checkpoints/step-00000500/
    config.json          what is trained
    model.safetensors    the weights
    state.safetensors    all other tensors that determine later steps
    state.json           the step and other plain values, with their sha256 and that of config.json

This module imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from runkit.errors import UserError
from runkit.files import TEMP_MARK, fsync_path, pretty_json, remove_made, set_aside, temp_beside, write_file, writing
from runkit.jsonfiles import parse_object
from runkit.retries import is_passing, patient
from runkit.tensors import check_finite, first_non_finite, load_tensors, save_tensors

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, TENSORS, SCALARS = "config.json", "model.safetensors", "state.safetensors", "state.json"
SUMMARY = "summary.json"
FOLDER = "checkpoints"
UNFINISHED = f".*{TEMP_MARK}*"
"""Temporary files of killed processes."""
FILES = (CONFIG, WEIGHTS, TENSORS, SCALARS, UNFINISHED)
_SEAL, _CONFIG_SEAL = "sha256", "config_sha256"


class DamagedError(UserError):
    """A file of a run that is missing or differs from what was written."""


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoints, oldest first."""
    found = (path for path in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def damaged_checkpoints(run: Path) -> list[Path]:
    """Return the damaged checkpoints that :func:`newest_intact` has renamed."""
    return sorted((run / FOLDER).glob("damaged-step-*"))


def save_checkpoint(
    run: Path,
    step: int,
    *,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write RUN/checkpoints/step-NNNNNNNN atomically, then remove all but the last `keep`.

    Raises:
        UserError: It cannot be written, or a tensor is not finite.
    """
    for what in (weights, tensors):
        if (name := first_non_finite(what)) is not None:
            raise UserError(
                f"{name} has values that are NaN or infinite after step {step}: nothing was saved, earlier "
                "checkpoints are kept. Lower learning_rate or use precision 'float32', in another output folder"
            )
    final = run / FOLDER / f"step-{step:08d}"
    with new_folder(final, FILES) as temp:
        text = pretty_json(config)
        write_file(temp / CONFIG, text)
        save_tensors(temp / WEIGHTS, weights)
        save_tensors(temp / TENSORS, tensors)
        write_file(temp / SCALARS, _sealed({"step": step, **scalars, _CONFIG_SEAL: hashlib.sha256(text).hexdigest()}))
    remove_old(run, keep)
    return final


def remove_old(run: Path, keep: int) -> None:
    """Remove all checkpoints but the last `keep`."""
    for old in checkpoints(run)[:-keep]:
        remove_made(old, FILES)


@contextmanager
def new_folder(final: Path, files: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder that replaces `final` when the block succeeds.

    Args:
        final: The folder.
        files: Names (glob patterns) of the files that an earlier one may hold; others are kept beside it.

    Raises:
        UserError: It cannot be written.
    """
    temp = temp_beside(final)
    with writing(final):
        temp.mkdir(parents=True)
        try:
            yield temp
            fsync_path(temp)
            remove_made(final, files)
            temp.rename(final)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        fsync_path(final.parent)


def read_values(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config and the plain values of a checkpoint.

    Raises:
        DamagedError: A file is missing or damaged.
    """
    config_text, text = (_content(checkpoint / name) for name in (CONFIG, SCALARS))
    config = parse_object(config_text, checkpoint / CONFIG, DamagedError)
    values = parse_object(text, checkpoint / SCALARS, DamagedError)
    seal, config_seal = values.pop(_SEAL, None), values.get(_CONFIG_SEAL)  # earlier versions wrote none
    if seal is not None and _sealed(values) != text:
        raise DamagedError(f"{checkpoint / SCALARS} is damaged: its content and its own sha256 differ")
    if config_seal is not None and config_seal != hashlib.sha256(config_text).hexdigest():
        raise DamagedError(f"{checkpoint / CONFIG} is damaged: its content and its sha256 in {SCALARS} differ")
    if not isinstance(values.get("step"), int):
        raise DamagedError(f"{checkpoint / SCALARS} is damaged: it has no step")
    return config, values


def read_tensors(checkpoint: Path, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the other tensors of a checkpoint.

    Args:
        checkpoint: Its folder.
        verify: Compare them with their sha256, and refuse values that are not finite.

    Raises:
        DamagedError: A file is missing, damaged or not finite.
    """
    weights, tensors = (load_tensors(checkpoint / name, DamagedError, verify=verify) for name in (WEIGHTS, TENSORS))
    if verify:
        check_finite(weights, checkpoint / WEIGHTS, DamagedError)
        check_finite(tensors, checkpoint / TENSORS, DamagedError)
    return weights, tensors


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of a checkpoint's file if an expected one is missing or has another shape.

    Raises:
        DamagedError: A tensor does not fit; the message names the first.
    """
    for name, tensor in sorted(expected.items()):
        if name not in found:
            raise DamagedError(f"{path} lacks {name}")
        if found[name].shape != tensor.shape:
            raise DamagedError(f"{path}: {name} is {list(found[name].shape)}, expected {list(tensor.shape)}")


def newest_intact(run: Path, check: Callable[[Path], None]) -> Path | None:
    """Return the newest checkpoint from which a run can continue; None if it has no checkpoint.

    Damaged ones are renamed to `damaged-step-NNNNNNNN`, with a warning.

    Args:
        run: The run's folder.
        check: Raises DamagedError for a damaged checkpoint, and other errors for other reasons.

    Raises:
        UserError: Another error of the check; or all checkpoints are damaged.
    """
    for path in reversed(checkpoints(run)):
        try:
            check(path)
            return path
        except DamagedError as error:
            if is_passing(error):
                raise  # it may be intact
            aside = set_aside(path, f"damaged-{path.name}")
            log.warning("%s; %s was renamed to %s, and the one before it is used", error, path, aside.name)
    if damaged := damaged_checkpoints(run):
        raise UserError(
            f"{run} has no intact checkpoint to continue from: {', '.join(path.name for path in damaged)} in "
            f"{run / FOLDER} cannot be read. Train again in another output folder"
        )
    return None


def read_finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the summary and the config of a complete run; None if it is not complete, or a file is damaged."""
    if not (run / SUMMARY).exists():
        return None
    try:
        summary, config = read_object(run / SUMMARY), read_object(run / CONFIG)
        load_tensors(run / WEIGHTS, DamagedError)
    except DamagedError as error:
        log.warning("%s: the run is finished again from its last checkpoint", error)
        return None
    return summary, config


def remove_unfinished(run: Path, files: Collection[str], folders: Mapping[str, Collection[str]]) -> None:
    """Remove the temporary files of killed processes. Call it only from the process that holds the run.

    Args:
        run: The run's folder.
        files: Names of the files that the run writes.
        folders: Name of each folder that it replaces atomically → names of the files in it.
    """
    for name in files:
        for temp in run.glob(f".{name}{TEMP_MARK}*"):
            if temp.is_file():
                temp.unlink()
    # The second patterns are those of earlier versions.
    for pattern in (f".step-*{TEMP_MARK}*", ".tmp-step-*"):
        for temp in (run / FOLDER).glob(pattern):
            remove_made(temp, FILES)
    for name, names in folders.items():
        for pattern in (f".{name}{TEMP_MARK}*", f".tmp-{name}"):
            for temp in run.glob(pattern):
                remove_made(temp, (*names, UNFINISHED))


@patient
def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object that a run has written.

    Raises:
        DamagedError: The file is missing, or is not a JSON object.
    """
    return parse_object(_content(path), path, DamagedError)


def _sealed(values: Mapping[str, Any]) -> bytes:
    """Return JSON that includes the sha256 of its other values."""
    try:
        return pretty_json({**values, _SEAL: hashlib.sha256(pretty_json(values)).hexdigest()})
    except ValueError:  # 1e999 is read as JSON, but cannot be written
        return b""
