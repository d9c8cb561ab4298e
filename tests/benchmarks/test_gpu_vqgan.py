"""The checks of stage 1 on a GPU find what is broken, and their figures are right; here they run on the CPU."""

import copy
from dataclasses import replace

import pytest
import torch

from priorbench import harness
from priorbench.gpu import correct_vqgan, networks, speed_vqgan, variants
from priorbench.gpu.check import Setup
from priorbench.train_vqgan import random_weights
from vqgan import checkpoint, model, trainer
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.cpu_kernels import GroupNorm
from vqgan.modalities import to_input
from vqgan.networks.vqgan import ResBlock
from vqgan.tokenizer import Tokenizer
from vqgan.trainer import Trainer


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return Setup(torch.device("cpu"), "tiny", tmp_path_factory.mktemp("work"))


def _failed(figures):
    return [figure.what for figure in figures if not figure.within]


def _noisy(network):
    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def test_codes_are_compared(setup):
    figures = list(correct_vqgan.tokenizer_codes(setup))
    assert _failed(figures) == []
    assert {figure.value for figure in figures if "equal to the CPU's" in figure.what} == {1.0}


@pytest.mark.parametrize(
    ("broken", "expected"), [(1, "float32: codes equal to the CPU's"), (2, "bfloat16: codes equal to float32")]
)
def test_wrong_codes_are_found(setup, monkeypatch, broken, expected):
    made, right = [], networks.tokenizer

    def wrong(network, *settings):
        made.append(network)
        return right(_noisy(network) if len(made) == broken + 1 else network, *settings)

    monkeypatch.setattr(correct_vqgan, "_others", lambda setup: [])
    monkeypatch.setattr(networks, "tokenizer", wrong)
    assert any(what.endswith(expected) for what in _failed(correct_vqgan.tokenizer_codes(setup)))


def test_wrong_scales_are_found(setup, monkeypatch):
    monkeypatch.setattr(correct_vqgan, "_others", lambda setup: [])
    right = model.pooled_codes
    monkeypatch.setattr(model, "pooled_codes", lambda *arguments: right(*arguments).flip(1))
    found = _failed(correct_vqgan.tokenizer_codes(setup))
    assert found == ["coarser scales, encoded with the picture: codes equal to the CPU's"]


def test_codes_that_change_are_found(setup, monkeypatch):
    right = Tokenizer.encode_async

    def flaky(self, pictures, *settings):
        codes = right(self, pictures, *settings)()
        codes[0][0, 0, 0] = torch.randint(self.config.codebook_size, ()).item()
        return lambda: codes

    monkeypatch.setattr(Tokenizer, "encode_async", flaky)
    monkeypatch.setattr(correct_vqgan, "_others", lambda setup: [])
    assert sum("again" in what for what in _failed(correct_vqgan.tokenizer_codes(setup))) >= 1
    assert _failed(correct_vqgan.shards_again(setup))[0] == "shards that differ when encoded again"


def test_shards_are_encoded_again_and_settings_of_torch_are_kept(setup):
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    figures = list(correct_vqgan.shards_again(setup))
    assert _failed(figures) == []
    assert figures[0].value == 12
    assert before == (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    assert torch.get_num_threads() == threads


@pytest.fixture
def cheap(monkeypatch):
    """Without LPIPS, whose network takes seconds."""
    made = []

    def our_trainer(work, precision, batch, compiled=False, device="auto"):
        loss = LossConfig(perceptual="none", disc_start=0)
        made.append(Trainer(TrainConfig(
            model=networks.TINY, loss=loss, batch_size=batch, precision=precision, device="cpu", compile=compiled
        )))  # fmt: skip
        made[-1].model.load_state_dict(random_weights(networks.TINY).state_dict())
        return made[-1]

    monkeypatch.setattr(correct_vqgan, "prepare", lambda *_, **__: 0)
    monkeypatch.setattr(correct_vqgan, "our_trainer", our_trainer)
    return made


def test_losses_are_compared(setup, cheap):
    figures = list(correct_vqgan.vqgan_losses(setup))
    assert _failed(figures) == []
    assert [figure.value for figure in figures[:5]] == [0] * 5
    assert all(figure.value > 0 for figure in figures[5:])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("reconstruction_loss", "gradients of the autoencoder"), ("discriminator_loss", "gradients of the discriminator")],
)
def test_wrong_gradients_are_found(setup, cheap, monkeypatch, name, expected):
    right = getattr(trainer, name)
    monkeypatch.setattr(trainer, name, lambda *loss: right(*loss) * (1.05 if len(cheap) == 2 else 1.0))
    assert any(expected in what for what in _failed(correct_vqgan.vqgan_losses(setup)))


def test_run_that_is_resumed_continues(setup):
    assert _failed(correct_vqgan.vqgan_resume(setup)) == []


def test_state_that_is_lost_is_found(setup, monkeypatch):
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert "tensors of the state that differ" in _failed(correct_vqgan.vqgan_resume(setup))


def test_moments_in_another_layout_are_found(setup, monkeypatch):
    def careless(prefix, optimizer, tensors):
        state = {}
        for key, value in tensors.items():
            if key.startswith(f"{prefix}."):
                state.setdefault(int(key.split(".")[1]), {})[key.split(".")[2]] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    monkeypatch.setattr(trainer, "training_layout", lambda device: torch.channels_last)
    monkeypatch.setattr(checkpoint, "restore_optimizer", careless)
    assert "moments in another layout than their weights" in _failed(correct_vqgan.vqgan_resume(setup))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("norm", [variants.LowNorm, variants.PlainNorm])
def test_other_norms_give_the_same_in_their_type_and_layout(norm, layout):
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=layout) + 1
    usual = GroupNorm(4, 16, eps=1e-6)
    torch.nn.init.normal_(usual.weight)
    other = variants.replaced(copy.deepcopy(usual), GroupNorm, norm)
    torch.testing.assert_close(other(x), usual(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = other(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.float(), usual(x), rtol=0.05, atol=0.05)


def test_block_of_compiled_norms_gives_the_same(monkeypatch):
    monkeypatch.setattr(variants, "_compiled", lambda: variants._norm_swish)
    block, x = ResBlock(16, 32), torch.randn(2, 16, 8, 8)
    expected = block(x)
    torch.testing.assert_close(variants.replaced(block, ResBlock, variants.FusedBlock)(x), expected)


def test_each_way_to_encode_gives_nearly_the_same_codes(setup):
    network, pictures = networks.network(setup), networks.pictures(setup, 4)
    codes = networks.tokenizer(network, setup.device).encode(pictures)
    x = to_input(pictures, network.config)
    for variant in variants.VARIANTS.values():
        assert networks.share(variants.encoder(network, variant, setup.device)(x).numpy(), codes) > 0.9


def test_speed_is_computed_from_time_and_operations(setup, monkeypatch):
    monkeypatch.setattr(speed_vqgan, "_median_seconds", lambda work: 0.5)
    monkeypatch.setattr(speed_vqgan, "peak_flops", lambda device, precision: 1e9)
    monkeypatch.setattr(harness, "peak_gib", lambda: 2.0)
    found = {figure.what: figure.value for figure in speed_vqgan.encode(setup)}
    flops = networks.encoder_flops(networks.config(setup))
    batch = "a tiny network, bfloat16, batch 4"
    assert found[batch] == 16  # two batches in half a second
    assert found[f"{batch}: operations"] == pytest.approx(16 * flops / 1e12)
    assert found[f"{batch}: share of the peak"] == pytest.approx(16 * flops / 1e9)
    assert found["a tiny network, bfloat16: the best batch"] == 32  # of batch 8


def test_operations_of_the_encoder_are_counted_once(setup):
    config = replace(networks.TINY, ch_mult=(1,), halvings=1)
    network = random_weights(config)
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    used = [m for name, m in convolutions.items() if name.startswith(("encoder", "quant_conv"))]
    seen = []
    for module in used:
        module.register_forward_hook(lambda m, _, y: seen.append(2 * m.weight[0].numel() * y.numel()))
    network.encode(torch.rand(1, 3, config.resolution, config.resolution))
    found = networks.encoder_flops(config)
    tokens, width, codes = 256, 16, 64
    attention, distances = 2 * 2 * tokens**2 * width, 2 * tokens * width * codes
    assert found == sum(seen) + attention + distances


def test_networks_of_full_size_are_the_published_one(tmp_path):
    assert networks.config(Setup(torch.device("cpu"), "full", tmp_path)) == ModelConfig()
