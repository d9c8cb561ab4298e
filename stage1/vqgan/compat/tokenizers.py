"""Import of released tokenizers: the kind is recognised, every tensor is used or named, and nothing is executed."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from runkit.configs import check_value
from runkit.folders import check_apart
from runkit.tensors import check_finite
from runkit.weights import load_weights
from vqgan.checkpoint import check_model_folder, publish_model
from vqgan.compat import compvis, cosmos, llamagen, maskgit, seed_voken
from vqgan.compat.kinds import Kind, Part
from vqgan.compat.released import Released, Weights
from vqgan.errors import InputError
from vqgan.model import VQGAN

_COMMAND = "import-tokenizer"
_PARTS = ("first_stage_model.", "cond_stage_model.", "")
_MARKS: dict[str, str] = {
    "cosmos": cosmos.MARK, "llamagen": llamagen.MARK, "maskgit": maskgit.MARK, "magvit2": seed_voken.MAGVIT2_MARK,
    "ibq": compvis.MARK, "compvis": compvis.MARK,
}  # fmt: skip
"""Pattern of a name that each kind has. The names of ibq are those of compvis, and part of those of cosmos."""
_CONVERTERS: dict[str, Callable[[Weights], Released]] = {
    "cosmos": cosmos.convert, "llamagen": llamagen.convert, "maskgit": maskgit.convert,
    "magvit2": seed_voken.convert_magvit2, "ibq": seed_voken.convert_ibq, "compvis": compvis.convert,
}  # fmt: skip


def import_tokenizer(
    checkpoint: Path,
    out: Path,
    *,
    project: Path | None = None,
    kind: Kind = "auto",
    part: Part | None = None,
    resolution: int | None = None,
) -> dict[str, Any]:
    """Convert a released checkpoint to a tokenizer; return what was used and dropped.

    Args:
        checkpoint: The file of weights.
        out: Folder to write.
        project: The project's `.yaml`, of CompVis checkpoints.
        kind: Project that published it; auto: recognised by the names of the tensors.
        part: Tokenizer of a transformer's checkpoint. None: its first stage, or a whole checkpoint.
        resolution: Side of the pictures that it will encode. None: that on which it was trained, or 256.

    Raises:
        InputError: The file cannot be read; or it is of another kind; or a key is missing, unknown or of another shape.
    """
    check_value("kind", kind, Kind, InputError)
    check_apart(out, checkpoint=checkpoint, **({"project": project} if project else {}))
    check_model_folder(out, _COMMAND)
    state = load_weights(checkpoint, InputError)
    prefix = f"{part}_model." if part else next(p for p in _PARTS if any(key.startswith(p) for key in state))
    mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not mine:
        raise InputError(f"{checkpoint} has no {prefix}* weights: it holds {_beginnings(state)}")
    found = _recognised(mine, checkpoint, "compvis" if project and kind == "auto" else kind)
    if project and found != "compvis":
        raise InputError(f"{checkpoint} is a {found} tokenizer, whose sizes are in its tensors: leave {project} out")
    try:
        released = compvis.convert(mine, project, prefix) if found == "compvis" else _CONVERTERS[found](mine)
    except InputError as error:
        if project:
            raise
        raise InputError(f"{checkpoint} is no {found} tokenizer that can be imported: {error}") from error
    if resolution is not None:
        released = replace(released, config=released.config.at_resolution(resolution))
    used = _publish(released, checkpoint, project or found, out)
    return {
        "kind": found,
        "config": released.config,
        "tensors": used,
        "dropped": released.dropped,
        "other_parts": len(state) - len(mine),
    }


def _beginnings(weights: Weights) -> str:
    names = sorted({key.split(".")[0] for key in weights})
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")


def _recognised(weights: Weights, checkpoint: Path, kind: str) -> str:
    """Return the kind of a checkpoint; `kind` is the one that is asked for."""
    found = [name for name, mark in _MARKS.items() if any(re.match(mark, key) for key in weights)]
    if kind in found:
        return kind
    if not found:
        kinds = ", ".join(sorted(_MARKS))
        raise InputError(f"{checkpoint} is of no known kind ({kinds}): its tensors are {_beginnings(weights)}")
    if kind != "auto":
        raise InputError(f"{checkpoint} is no {kind} tokenizer, but a {' or '.join(found)} one: choose that kind")
    if found[0] == "ibq" and not any(key.startswith(seed_voken.EMA) for key in weights):
        raise InputError(
            f"{checkpoint} may be of ibq or compvis, whose tensors have the same names: name the kind, or pass "
            "the yaml that came with a CompVis checkpoint"
        )
    return found[0]


def _publish(released: Released, checkpoint: Path, origin: object, out: Path) -> int:
    """Write a tokenizer whose tensors are exactly those of its config; return their number."""
    kept = {key: value.float() for key, value in released.weights.items()}
    model = VQGAN(released.config)
    wanted = model.state_dict()
    wrong = [f"{key} is missing" for key in wanted.keys() - kept.keys()]
    wrong += [f"{key} has no place" for key in kept.keys() - wanted.keys()]
    wrong += [
        f"{key} is {tuple(kept[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in kept and kept[key].shape != value.shape
    ]
    if wrong:
        raise InputError(f"{checkpoint} does not fit {origin} in {len(wrong)} keys: {'; '.join(sorted(wrong)[:3])} …")
    check_finite(kept, checkpoint, InputError)
    model.load_state_dict(kept)
    publish_model(out, released.config, model, _COMMAND, released.loss)
    return len(kept)
