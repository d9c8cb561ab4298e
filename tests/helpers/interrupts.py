"""Interruption of a training at a chosen step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from codeprior.trainer import train_step


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Raise SIGINT before this step of the block, counted from 1."""
    steps: list[int] = []

    def interrupted_step(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return train_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("codeprior.trainer.train_step", interrupted_step)
        yield
