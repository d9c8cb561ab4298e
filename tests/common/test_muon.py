"""Muon: the orthogonalisation, parity with torch's, and what it does with scaled and broken gradients."""

import copy

import pytest
import torch
from torch import nn

from runkit.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 16, 16)])
def test_directions_are_those_of_the_polar_factor(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ found @ right.mT  # diagonal where the singular vectors are kept
    values = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_zeros_stay_zero() -> None:
    assert not orthogonalize(torch.zeros(2, 4, 6)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_a_matrix_follows_torchs_muon() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(12, 30)), nn.Parameter(torch.empty(12, 30))
    theirs.data.copy_(ours)
    options = {"lr": 0.02, "weight_decay": 0.1}
    muon = Muon([{"params": [ours], "orthogonal": True}], precision="bfloat16", **options)
    reference = torch.optim.Muon([theirs], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(5):
        ours.grad = torch.randn(12, 30)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # bfloat16 products


def test_kernels_are_matrices_and_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    kernel, bias = nn.Parameter(torch.randn(6, 2, 3, 3)), nn.Parameter(torch.randn(6))
    matrix, alone = nn.Parameter(kernel.detach().flatten(1).clone()), nn.Parameter(bias.detach().clone())
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    options = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.0}
    both = Muon([{"params": [bias]}, {"params": [kernel], "orthogonal": True}], precision="float32", **options)
    flat = Muon([{"params": [matrix], "orthogonal": True}], precision="float32", **options)
    adam = torch.optim.AdamW([alone], **options)
    for _ in range(3):
        kernel.grad, bias.grad = torch.randn(6, 2, 3, 3), torch.randn(6)
        matrix.grad, alone.grad = kernel.grad.flatten(1), bias.grad.clone()
        for optimizer in (both, flat, adam):
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    torch.testing.assert_close(bias, alone)


def test_grad_scale_divides_and_found_inf_changes_nothing() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    twin = copy.deepcopy(weight)
    scaled, plain = (
        Muon([{"params": [p], "orthogonal": True}], precision="float32", lr=0.1, weight_decay=0.1)
        for p in (weight, twin)
    )
    scaled.grad_scale, scaled.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    for _ in range(2):
        twin.grad = torch.randn(4, 6)
        weight.grad = 8 * twin.grad
        scaled.step()
        plain.step()
    torch.testing.assert_close(weight, twin)
    before = weight.detach().clone()
    weight.grad, scaled.found_inf = torch.full((4, 6), torch.nan), torch.tensor(1.0)
    scaled.step()
    assert torch.equal(weight, before)
