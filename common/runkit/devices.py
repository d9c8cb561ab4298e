"""The device and the precision of a run. torch is imported when a function is called."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from runkit.configs import check_value
from runkit.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
"""Where to compute; auto: the GPU if one is available."""
Precision = Literal["auto", "float32", "bfloat16"]
"""Type of matrix products and convolutions; auto: bfloat16 where the device computes faster in it."""
Autocast = Literal["float32", "bfloat16"]
"""A precision that is decided."""
_GAIN = 1.2
"""A CPU computes in bfloat16 if that is this many times as fast as float32."""


def pick_device(name: Device, error: type[UserError] = UserError) -> torch.device:
    """Return the device that a config's `device` means on this machine.

    Raises:
        UserError: cuda is requested and no GPU is available, or `name` is no choice.
    """
    import torch

    check_value("device", name, Device, error)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise error("device = 'cuda', but torch finds no GPU: use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def rank_device(name: Device, error: type[UserError] = UserError) -> torch.device:
    """Return :func:`pick_device` for a process of a training run, which requires a GPU of its own.

    Raises:
        UserError: as :func:`pick_device`, or the machine has fewer GPUs than processes.
    """
    import torch

    device, gpus = pick_device(name, error), torch.cuda.device_count()
    if device.type == "cuda" and int(os.environ.get("LOCAL_RANK", "0")) >= gpus:
        raise error(f"this machine has {gpus} GPUs for more processes: start fewer, or use device 'cpu'")
    return device


def pick_precision(
    name: Precision,
    device: torch.device,
    cpu_speed: Callable[[Autocast], float],
    error: type[UserError] = UserError,
) -> Autocast:
    """Return the precision that a config's `precision` means on this machine.

    Args:
        name: The config's value.
        device: Where the run computes.
        cpu_speed: Measures the work of the model on the CPU in a precision, in any unit per second. A CPU's flags are
            not enough: with AVX512-BF16 alone, some CPUs are twice as fast in bfloat16 and others half as fast.
        error: Class of the error.

    Raises:
        UserError: `name` is no choice.
    """
    import torch

    check_value("precision", name, Precision, error)
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_speed("bfloat16") > _GAIN * cpu_speed("float32") else "float32"


def resumed_precision(name: Precision, picked: Autocast, saved: Autocast | None) -> Autocast:
    """Return the precision in which a run continues: the one in which it started, on any machine.

    Args:
        name: The config's value.
        picked: What :func:`pick_precision` returns on this machine.
        saved: What the checkpoint holds; None in checkpoints of earlier versions of stage 1.
    """
    if name != "auto" or saved is None or saved == picked:
        return picked
    log.warning("continuing in %s, as started, although this machine is faster in %s", saved, picked)
    return saved


def make_autocast(device: torch.device, precision: Autocast) -> torch.autocast:
    """Return the context in which a forward pass has this precision."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
