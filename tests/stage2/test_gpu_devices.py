"""The code of a GPU on a pretended one: no operation mixes devices, no step waits, results are those of a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretend_gpu import GPU, pretend_gpu
from torch import Tensor, nn

from codeprior import checkpoint as ckpt
from codeprior import chunked_loss, model, sample
from codeprior.attention import attend_sdpa
from codeprior.blend import Blend
from codeprior.config import ConditionSpec, ModelConfig, SequenceSpec, TrainConfig
from codeprior.data import Batch, CodeData
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeprior.plan import plan_training
from codeprior.sample import sample_sequences
from codeprior.sample_config import SampleConfig
from codeprior.train import Run, evaluate
from codeprior.trainer import Trainer
from codeprior.window import sample_larger
from codeshards.format import ShardDataset
from runkit.checkpoints import save_checkpoint
from runkit.devices import make_autocast

TINY = ModelConfig(n_layer=1, n_head=2, n_embd=16)
RUN = TrainConfig(model=TINY, batch_size=4, steps=8, warmup_steps=1, precision="float32", optimizer="adamw")
ROTARY = replace(TINY, position="rotary", target_positions=True, qk_norm=True, norm="rmsnorm", mlp="swiglu")
RUNS = {
    "ordered": replace(RUN, accumulate=2, grad_clip=0.5, ema_decay=0.9),
    "conditions, drop, bfloat16": replace(
        RUN, condition="class+segmentation", cond_dropout=0.5, pkeep=0.5, grad_clip=0.0, precision="bfloat16",
        model=replace(TINY, dropout=0.1, tie_head=True),
    ),
    "muon, recomputed": replace(
        RUN, optimizer="muon", checkpoint_activations=True, model=replace(TINY, position="learned", n_layer=2)
    ),
    "scales": replace(RUN, multiscale=True),
    "random order": replace(RUN, random_order=True, model=ROTARY),
    "any order": replace(RUN, objective="any_order", model=replace(TINY, target_positions=True, attention="math")),
    "masked, bfloat16": replace(RUN, objective="masked", precision="bfloat16"),
}  # fmt: skip


def updated(config: TrainConfig, shards: Path, out: Path, steps: int = 3) -> tuple[Trainer, list[str], list[float]]:
    """Return a trainer after a few steps, the waits of the steps, and their losses and norms."""
    blend = Blend.open(shards)
    run = ckpt.RunConfig(train=config, sequence=blend.sequence(config), data=blend.fingerprint)
    with pretend_gpu(config.device == "cuda") as waits:
        trainer = Trainer(run, blend, out)
        trainer.prior.train()
        waits.clear()
        found = [trainer.advance() for _ in range(steps)]
        waited = [*waits]
        return trainer, waited, [float(x) for pair in found for x in pair]


@pytest.mark.parametrize("name", RUNS)
def test_steps_do_not_wait_for_the_gpu(name: str, make_dataset: Any, tmp_path: Path) -> None:
    config = RUNS[name]
    shards = make_dataset(scales=(1, 2) if config.multiscale else ()).path
    trainer, waits, found = updated(replace(config, device="cuda"), shards, tmp_path / "gpu")
    assert trainer.device.type == "cuda"
    assert all(p.device == GPU for p in trainer.shipped.parameters())
    assert waits == []
    _, _, expected = updated(replace(config, device="cpu"), shards, tmp_path / "cpu")
    if config.model.dropout == 0:
        np.testing.assert_allclose(found, expected, rtol=2e-2 if config.precision == "bfloat16" else 1e-3)


def test_steps_of_a_large_codebook_do_not_wait(
    dataset: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "LARGE_CODEBOOK", 8)
    monkeypatch.setattr(chunked_loss, "CHUNK", 6)
    config = replace(RUN, device="cuda", precision="bfloat16")
    _, waits, found = updated(config, dataset.path, tmp_path / "gpu")
    assert waits == []
    _, _, expected = updated(replace(config, device="cpu"), dataset.path, tmp_path / "cpu")
    np.testing.assert_allclose(found, expected, rtol=2e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_on_a_gpu_resumes_from_its_checkpoint(optimizer: Any, dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(RUN, device="cuda", optimizer=optimizer, ema_decay=0.9, precision="bfloat16")
    with pretend_gpu() as waits:
        trainer, _, expected = updated(config, dataset.path, tmp_path / "a", steps=4)
        first, _, _ = updated(config, dataset.path, tmp_path / "b", steps=2)
        loop = Run(first, Blend.open(dataset.path))
        loop.recent = [first.advance()]
        loop._timed_steps, loop._interval_s = 1, 1.0
        assert loop.metrics()[0]["train_nll_nats"] == pytest.approx(expected[4])
        save_checkpoint(tmp_path / "b", first.step, keep=1, **loop.state())
        second = Run(Trainer(first.run, Blend.open(dataset.path), tmp_path / "b"), Blend.open(dataset.path))
        saved = next((tmp_path / "b" / "checkpoints").iterdir())
        second.check(saved)
        second.load(saved)
        second.trainer.prior.train()
        waits.clear()
        nll, norm = second.trainer.advance()
        assert waits == []
        assert [float(nll), float(norm)] == pytest.approx(expected[6:])
        assert trainer.step == second.trainer.step == 4


@pytest.mark.parametrize("objective", ["ordered", "any_order", "masked"])
def test_evaluation_waits_for_its_result_only(objective: Any, dataset: ShardDataset) -> None:
    prior = random_prior(objective, dataset=dataset)
    data = CodeData.open(dataset, "val", prior.sequence)
    order = "zcurve" if objective == "any_order" else None
    cpu, gpu = (make_autocast(device, "float32") for device in (torch.device("cpu"), GPU))
    expected = evaluate(prior, data, batch_size=20, autocast=cpu, order=order)
    with pretend_gpu() as waits:
        prior = prior.to(GPU)
        waits.clear()
        found = evaluate(prior, data, batch_size=20, autocast=gpu, order=order)
        moved = ["copy to the GPU"] if order else []
        assert [wait.split(": ")[1].split(" (")[0] for wait in waits] == [*moved, "copy to the CPU"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_plan_tries_steps_on_the_gpu(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(RUNS["conditions, drop, bfloat16"], device="cuda", optimizer="muon", ema_decay=0.9)
    with pretend_gpu():
        plan = plan_training(config, dataset.path, tmp_path / "run")
    assert plan.figures["device"] == "cuda"
    assert plan.figures["time_s"] > 0


def random_prior(
    objective: Any = "ordered", dataset: ShardDataset | None = None, scales: tuple[int, ...] = (), **options: Any
) -> Prior:
    """Return a prior with random weights, large enough that its codes depend on what it reads."""
    torch.manual_seed(0)
    label = ConditionSpec(name="class", height=1, width=1, vocabulary=4, fingerprint="")
    sequence = SequenceSpec(
        height=4, width=4, codebook_size=16, order="row_major", fingerprint="image-tokenizer",
        conditions=() if dataset else (label,), scales=scales, objective=objective,
    )  # fmt: skip
    prior = make_prior(replace(TINY, target_positions=True, **options), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


GUIDED = SampleConfig(top_k=8, guidance=2.0, drafts=0)
SAMPLES: dict[str, tuple[Any, SampleConfig]] = {
    "plain": ("ordered", replace(GUIDED, guidance=1.0)),
    "linear guidance": ("ordered", replace(GUIDED, guidance_schedule="linear", temperature_end=0.5, top_p=0.9)),
    "guidance in an interval": (
        "ordered", replace(GUIDED, guidance_schedule="power_cosine", guidance_interval=(0.2, 0.8), min_p=0.05)
    ),
    "static cache": ("ordered", replace(GUIDED, compile=True)),
    "static cache, own order": ("any_order", replace(GUIDED, compile=True, order="row_major")),
    "random order": ("any_order", replace(GUIDED, drafts=None, guidance_schedule="linear")),
    "another order": ("any_order", replace(GUIDED, drafts=None, order="zcurve", steps=4, guidance_interval=(0.2, 0.8))),
    "by confidence": ("any_order", replace(GUIDED, drafts=None, order="confidence", steps=5, temperature_end=0.5)),
    "masked": ("masked", replace(GUIDED, drafts=None, steps=5, guidance_schedule="power_cosine")),
    "masked, by confidence": ("masked", replace(GUIDED, drafts=None, order="confidence", steps=5, top_p=0.9)),
}  # fmt: skip


@pytest.mark.parametrize("position", ["grid", "rotary"])
@pytest.mark.parametrize("name", SAMPLES)
def test_codes_are_drawn_without_waiting(name: str, position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, config = SAMPLES[name]
    prior, labels = random_prior(objective, position=position), torch.arange(3)
    given_NT = torch.full((3, 16), -1)
    given_NT[:, :3] = torch.arange(9).view(3, 3)
    expected = sample_sequences(prior, 3, condition=labels, config=replace(config, compile=False), given_NT=given_NT)
    monkeypatch.setattr(sample, "_compiled", lambda _: sample._step)
    monkeypatch.setattr(sample, "check_compiler", lambda *_: None)
    counts, allowed = [], []
    monkeypatch.setattr(sample, "allow_cuda_graphs", lambda: allowed.append(True))
    with pretend_gpu() as waits:
        on_gpu = prior.to(GPU)
        waits.clear()

        def watch(first: int, codes_BT: Tensor) -> None:
            assert codes_BT.device == GPU
            counts.append(len(waits))

        found = sample_sequences(on_gpu, 3, condition=labels, config=config, given_NT=given_NT, watch=watch)
        # The condition, the keys, the known codes and the order are copied before the first code.
        assert counts[0] <= 4
        assert len(counts) > 3
        assert len(set(counts)) == 1, waits
        assert len(waits) == counts[0] + 1
        assert bool(allowed) == config.compile  # once per batch, in the thread that draws it
    assert torch.equal(found, expected)


def test_cudnn_does_not_plan_the_attention_of_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled, attend = [], F.scaled_dot_product_attention

    def watched(*arguments: Tensor, **options: Any) -> Tensor:
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with pretend_gpu():
        x_BHSE = torch.randn(1, 2, 4, 8, device=GPU, requires_grad=True)
        attend_sdpa(x_BHSE, x_BHSE, x_BHSE)
        with torch.inference_mode():
            attend_sdpa(x_BHSE[:, :, -1:], x_BHSE, x_BHSE)
    assert enabled == [True, False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_scales_and_larger_grids_are_drawn_on_a_gpu() -> None:
    labels, config = torch.arange(2), replace(GUIDED, precision="bfloat16")
    scaled, plain = random_prior(scales=(1, 2)), random_prior()
    expected = sample_sequences(scaled, 2, condition=labels, config=config)
    larger = sample_larger(plain, 2, 5, 6, condition=labels, config=GUIDED)
    with pretend_gpu():
        found = sample_sequences(scaled.to(GPU), 2, condition=labels, config=config)
        assert torch.equal(sample_larger(plain.to(GPU), 2, 5, 6, condition=labels, config=GUIDED), larger)
    assert (found == expected).float().mean() > 0.8  # bfloat16 rounds each path differently


def test_the_pretended_gpu_refuses_and_counts_what_a_gpu_does() -> None:
    with pretend_gpu() as waits:
        on_gpu, on_cpu = torch.arange(4.0, device="cuda"), torch.arange(4.0)
        assert on_gpu.device == on_gpu[1:].device == (2 * on_gpu + torch.tensor(1.0)).device == GPU
        for mix in (lambda: on_gpu + on_cpu, lambda: torch.cat((on_gpu, on_cpu)), lambda: on_cpu[on_gpu.long()]):
            with pytest.raises(RuntimeError):
                mix()
        with pytest.raises(TypeError):
            on_gpu.numpy()
        on_cpu.pin_memory().to("cuda", non_blocking=True)
        assert waits == []
        for wait in (
            lambda: on_cpu.to("cuda", non_blocking=True), lambda: on_gpu.cpu(), on_gpu.tolist, on_gpu.sum().item,
            on_gpu.nonzero, lambda: on_gpu[on_gpu > 1], lambda: on_gpu.new_tensor([1, 2]), lambda: bool(on_gpu[0] > 0),
            lambda: torch.tensor(1.0, device=GPU), lambda: on_gpu[torch.tensor([1, 2])], torch.cuda.synchronize,
        ):  # fmt: skip
            waits.clear()
            wait()
            assert len(waits) == 1
        late = (on_gpu + 1).to("cpu", non_blocking=True)
        assert late.tolist() != [1, 2, 3, 4]
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        assert late.tolist() == [1, 2, 3, 4]


def test_a_batch_is_copied_asynchronously() -> None:
    batch = Batch(condition_BC=torch.zeros(2, 1), codes_BT=torch.zeros(2, 4), inputs_BT=torch.ones(2, 4))
    with pretend_gpu() as waits:
        moved = batch.to(GPU)
        assert waits == []
        assert all(tensor.device == GPU for tensor in moved.tensors().values())
