"""FLOPs of a training step, and FLOP/s of the device: for the utilisation (MFU) and the choice of the precision."""

from __future__ import annotations

import functools
import re
import time

import torch
from torch import nn

from codeprior.config import PriorError
from codeprior.cpu_kernels import linear
from codeprior.model import Prior
from runkit.devices import Autocast, Precision, pick_precision

PEAK_TFLOPS_BFLOAT16 = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "A800": 312,
    "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "A40": 150, "A30": 165, "RTX 4090": 165,
    "RTX 3090": 71,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s of the data sheets, by part of the device's name; the first match counts."""


def step_flops_per_sequence(prior: Prior) -> float:
    """Return the floating-point operations of the forward and backward pass of one sequence, without recomputation.

    Two per weight of a matrix product and token, and 4 · width · tokens per token and block for attention, whose causal
    half is not discounted; three times as many with the backward pass (PaLM, appendix B).
    """
    sequence, width = prior.sequence, prior.config.n_embd
    tokens = sequence.condition_length + sequence.length - 1
    weights = sum(module.weight.numel() for module in prior.blocks.modules() if isinstance(module, nn.Linear))
    attention = prior.config.n_layer * 4 * width * tokens
    head = 2 * width * sequence.codebook_size * sequence.length
    return float(3 * (tokens * (2 * weights + attention) + head))


def peak_flops(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of matrix products on this device: of the table for known GPUs in bfloat16, else measured."""
    if device.type == "cuda" and precision == "bfloat16":
        name = torch.cuda.get_device_name(device)
        for part, tflops in PEAK_TFLOPS_BFLOAT16.items():
            if re.search(rf"\b{part}\b", name):  # an RTX A1000 is not an A100
                return tflops * 1e12
    return measured_flops(device.type, precision)


@functools.cache
def measured_flops(device: str, precision: str) -> float:
    """Return the FLOP/s of a large linear layer on this device in this precision: the best of four runs."""
    side = 8192 if device == "cuda" else 1024
    # Random, because a GPU multiplies equal numbers faster: they take less power.
    generator = torch.Generator(device).manual_seed(0)  # of its own, so that a run draws the same numbers as before
    matrix = torch.randn(side, side, generator=generator, device=device, dtype=getattr(torch, precision))
    best_s = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        product = linear(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - start)
    del product
    return 2 * side**3 / best_s


def resolve_precision(name: Precision, device: torch.device) -> Autocast:
    """Return the precision that a config's `precision` means on this device."""
    return pick_precision(name, device, lambda precision: measured_flops("cpu", precision), PriorError)
