"""Memory and compiled code between measurements, the compiler, and calls that wait for the GPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch

from priorbench.gpu.check import SkipCheckError
from runkit.compiling import check_compiler
from runkit.errors import UserError


def start_afresh() -> None:
    """Drop compiled code and unused memory, and start to measure the peak of the memory.

    Compiled code that meets a second shape is compiled for variable shapes, which takes longer and is slower.
    """
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def require_compiler(device: torch.device) -> None:
    """Skip a check on a machine without a compiler.

    Raises:
        SkipCheckError: No compiler is found.
    """
    try:
        check_compiler(device.type)
    except UserError as error:
        raise SkipCheckError(str(error)) from error


def waits(work: Callable[[], Any]) -> int:
    """Number of calls in `work` that wait for the GPU, of those that torch notices; 0 on a CPU."""
    gpu = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in found)
