"""Products by oneDNN are torch's own, forward and backward; which one is taken depends on the CPU alone."""

import pytest
import torch
import torch.nn.functional as F

from codeprior import cpu_kernels
from codeprior.cpu_kernels import Linear, linear, with_packed_weights

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    calls = []
    product = cpu_kernels._product
    monkeypatch.setattr(cpu_kernels, "_BY_ONEDNN", True)
    monkeypatch.setattr(cpu_kernels, "_product", lambda *a: calls.append(a) or product(*a))
    return calls


@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48), (1, 1, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs(onednn, shape, bias):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    layer = Linear(48, 80, bias=bias)
    for compute in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        layer.zero_grad()
        x.grad = None
        out = compute(x)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        grads = [out.detach(), x.grad, *(p.grad for p in layer.parameters())]
        if compute is layer:
            ours = grads
    assert len(onednn) == 3  # forward, and both products of the backward pass
    for one, other in zip(ours, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_no_gradient_no_graph(onednn):
    x, weight = torch.randn(4, 16), torch.randn(8, 16, requires_grad=True)
    with torch.no_grad():
        out = linear(x, weight)
    assert len(onednn) == 1
    assert not out.requires_grad
    torch.testing.assert_close(out, x @ weight.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(onednn, dtype):
    x, weight = torch.randn(4, 16, dtype=dtype), torch.randn(8, 16, dtype=dtype)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16
    assert not onednn


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_packed_weights_give_the_same_products_and_share_the_rest(monkeypatch, rows):
    monkeypatch.setattr(cpu_kernels, "_BY_ONEDNN", True)
    model = torch.nn.Sequential(torch.nn.LayerNorm(48), Linear(48, 80), Linear(80, 16, bias=False))
    packed, x = with_packed_weights(model), torch.randn(rows, 1, 48)
    assert packed[1].weight.is_mkldnn
    assert not model[1].weight.is_mkldnn
    assert packed[0].weight is model[0].weight
    assert with_packed_weights(packed) is packed
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)


def test_only_weights_that_onednn_multiplies_are_packed(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_BY_ONEDNN", False)
    model = torch.nn.Sequential(Linear(48, 80))
    assert with_packed_weights(model) is model


@pytest.mark.slow
def test_it_compiles(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_BY_ONEDNN", True)
    layer, x = Linear(48, 80), torch.randn(6, 48)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
