"""Released CompVis transformers (Net2Net of taming-transformers) as a prior with its tokenizer.

Class-conditional and unconditional models are read. Models that are conditioned on pictures, coordinates or an
unmasked prefix are refused by name, because they require the codes of a second tokenizer; so are priors of LlamaGen
and RAR, which have parts that ours do not have.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from codeprior.checkpoint import CONFIG, SUMMARY, WEIGHTS, RunConfig
from codeprior.compat import prior_from_mingpt
from codeprior.config import ConditionSpec, SequenceSpec, TrainConfig
from codeshards.format import ORDER_NAMES, OrderName, order
from codeshards.format.files import atomic_write_json
from runkit.folders import check_apart
from runkit.tensors import save_tensors
from runkit.weights import load_weights
from vqgan.checkpoint import fingerprint
from vqgan.compat.tokenizers import import_tokenizer
from vqgan.errors import InputError

_PERMUTERS: dict[str, OrderName] = {
    "Identity": "row_major",
    "SpiralOut": "spiral_out",
    "ZCurve": "zcurve",
    "Subsample": "subsample",
    "AlternateParsing": "alternate",
}

_FOREIGN = {
    "cls_embedding.": "LlamaGen: rows and columns rotate queries and keys, and those of the class are zero",
    "adaln_before_head.": "RAR: the class scales and shifts the features of every block (adaLN)",
}
"""Beginning of a tensor's name → the project of such priors, and what of it does not map."""


def import_prior(checkpoint: Path, project: Path | None, out: Path) -> SequenceSpec:
    """Convert a released checkpoint and its yaml to the folder of a prior, with the tokenizer in `out`/tokenizer.

    Args:
        checkpoint: The `.ckpt` file; nothing in it is executed.
        project: The project's `.yaml`; None is refused, after the kind of the checkpoint is known.
        out: Folder to write.

    Returns:
        The specification of the prior's sequences.

    Raises:
        InputError, ShardError: `out` holds a run, or the checkpoint or the yaml is of another kind of model; the
            message says what does not map.
    """
    check_apart(out, checkpoint=checkpoint, project=project)
    if any((out / name).exists() for name in (SUMMARY, CONFIG, WEIGHTS, "checkpoints")):
        raise InputError(f"{out} already holds a run: choose another folder, or remove it")
    state = load_weights(checkpoint, InputError)
    for start, reason in _FOREIGN.items():
        if any(name.startswith(start) for name in state):
            raise InputError(
                f"{checkpoint} is a prior of {reason}, which has no equivalent here: import its tokenizer, tokenize "
                "pictures with it, and train a prior on them"
            )
    if project is None:
        raise InputError(f"{checkpoint} has no sizes of a prior: pass the yaml that came with a CompVis checkpoint")
    params, transformer = _read_project(project)
    if int(transformer.get("n_unmasked", 0)):
        raise InputError(f"{project}: n_unmasked = {transformer['n_unmasked']}: a causal prior has no unmasked prefix")
    classes, start_token = _condition(params, project)
    order_name = _order(params, project)
    tokenizer = import_tokenizer(checkpoint, out / "tokenizer", project=project, part="first_stage")["config"]
    _check_permuter(state, order_name, tokenizer.grid, checkpoint)
    parts = [ConditionSpec(name="class", height=1, width=1, vocabulary=classes, fingerprint="")] if classes else []
    sequence = SequenceSpec(
        height=tokenizer.grid[0],
        width=tokenizer.grid[1],
        codebook_size=tokenizer.codebook_size,
        order=order_name,
        fingerprint=fingerprint(out / "tokenizer"),
        conditions=tuple(parts),
    )
    prefix = "transformer."
    prior = prior_from_mingpt(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)},
        n_head=int(transformer["n_head"]),
        sequence=sequence,
        condition_tokens=range(classes) if classes else [start_token],
    )
    train = TrainConfig(model=prior.config, order=order_name, condition=sequence.condition)
    save_tensors(out / WEIGHTS, prior.state_dict())
    atomic_write_json(
        out / CONFIG, asdict(RunConfig(train=train, sequence=sequence, data=f"imported: {checkpoint.name}"))
    )
    atomic_write_json(out / SUMMARY, {"imported": checkpoint.name, "parameters": prior.parameter_count})
    return sequence


def _read_project(project: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import yaml

    try:
        params = yaml.safe_load(project.read_text())["model"]["params"]
        transformer = dict(params["transformer_config"]["params"])
        transformer["n_head"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{project} is not the yaml of a transformer (model.params.transformer_config …): {error!r}"
        ) from error
    return dict(params), transformer


def _condition(params: dict[str, Any], project: Path) -> tuple[int, int]:
    """(number of classes, 0) of a class-conditional model, (0, start token) of an unconditional one."""
    stage = params.get("cond_stage_config")
    if params.get("unconditional") or stage == "__is_unconditional__":
        return 0, int(params.get("sos_token", 0))
    target = stage.get("target", "") if isinstance(stage, dict) else str(stage)
    if not target.endswith(".Labelator"):
        raise InputError(
            f"{project}: cond_stage {target!r} does not map: class-conditional (Labelator) and unconditional models "
            "can be imported. For others tokenize your pictures and train a prior"
        )
    return int(cast(dict[str, Any], stage)["params"]["n_classes"]), 0


def _order(params: dict[str, Any], project: Path) -> OrderName:
    target = (params.get("permuter_config") or {}).get("target", "Identity").rsplit(".", 1)[-1]
    if target not in _PERMUTERS:
        raise InputError(
            f"{project}: permuter {target!r} is not one of {', '.join(_PERMUTERS)} ({', '.join(ORDER_NAMES)})"
        )
    return _PERMUTERS[target]


def _check_permuter(state: dict[str, Tensor], name: OrderName, grid: tuple[int, int], checkpoint: Path) -> None:
    """Refuse a checkpoint whose stored permutation is not that of the order."""
    found = state.get("permuter.forward_shuffle_idx")
    if found is not None and not np.array_equal(found.numpy().ravel(), order(name, *grid)):
        raise InputError(
            f"{checkpoint}: its permutation is not {name} on {grid[0]}×{grid[1]}: use the yaml of this checkpoint"
        )
