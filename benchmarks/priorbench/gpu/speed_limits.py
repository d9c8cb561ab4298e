"""The limits of the card, which other speeds are shares of."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from codeprior.speed import measured_flops, peak_flops
from priorbench import harness
from priorbench.gpu.check import Figure, Setup


def peaks(setup: Setup) -> Iterator[Figure]:
    """Measure matrix products, reads of memory and copies to the device."""
    gpu = setup.device.type == "cuda"
    for precision in ("float32", "bfloat16"):
        yield Figure(f"matrix product, {precision}", measured_flops(setup.device.type, precision) / 1e12, "TFLOP/s")
    if gpu:
        yield Figure("its data sheet, bfloat16", peak_flops(setup.device, "bfloat16") / 1e12, "TFLOP/s")
    yield Figure("reading memory", harness.read_floor() / 1e9, "GB/s")
    source = torch.ones(setup.pick(2**28, 2**20), dtype=torch.uint8)
    if gpu:
        source = source.pin_memory()
    best_s = min(harness.seconds(lambda: source.to(setup.device, copy=True)) for _ in range(4))
    yield Figure("copies to the device", source.nbytes / best_s / 1e9, "GB/s")
