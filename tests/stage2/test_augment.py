"""Hidden conditions, replaced inputs and permuted orders: at the asked rate, on any rank, from (seed, step) alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codeprior.augment import augment, permuted_fraction
from codeprior.config import ModelConfig, PriorError, TrainConfig
from codeprior.data import Batch, CodeData, sequence_from_dataset
from codeshards.format import ShardDataset

CONFIG = TrainConfig(
    model=ModelConfig(target_positions=True), condition="class+segmentation", batch_size=200, steps=100,
    cond_dropout=0.25, pkeep=0.8, random_order=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def batch(dataset: ShardDataset) -> Batch:
    sequence = sequence_from_dataset(dataset, "zcurve", "class+segmentation")
    return CodeData.open(dataset, "train", sequence).take(slice(0, 200))


def run(batch: Batch, dataset: ShardDataset, config: TrainConfig, step: int = 7, mine: slice = slice(0, 200)) -> Batch:
    sequence = sequence_from_dataset(dataset, "zcurve", "class+segmentation")
    part = Batch(condition_BC=batch.condition_BC[mine], codes_BT=batch.codes_BT[mine])
    return augment(part, config, sequence, step=step, mine=mine)


def test_rates_and_what_they_touch(batch: Batch, dataset: ShardDataset) -> None:
    found = run(batch, dataset, CONFIG)
    hidden_B = (found.condition_BC == -1).all(dim=1)
    assert torch.equal(hidden_B, (found.condition_BC == -1).any(dim=1))  # the whole condition or none of it
    assert 0.15 < hidden_B.float().mean() < 0.35
    assert torch.equal(found.condition_BC[~hidden_B], batch.condition_BC[~hidden_B])
    assert torch.equal(found.positions_BT.sort(dim=1).values, torch.arange(16).expand(200, 16))
    assert torch.equal(found.codes_BT, batch.codes_BT.gather(1, found.positions_BT))
    replaced = (found.inputs_BT != found.codes_BT).float().mean()
    assert pytest.approx(replaced.item(), abs=0.03) == 0.2 * 15 / 16  # one in 16 random codes is the old one
    assert 0 <= found.inputs_BT.min() <= found.inputs_BT.max() < 16


def test_ranks_draw_their_part_of_the_same_numbers_and_steps_differ(batch: Batch, dataset: ShardDataset) -> None:
    whole, halves = run(batch, dataset, CONFIG), [slice(0, 100), slice(100, 200)]
    parts = [run(batch, dataset, CONFIG, mine=mine) for mine in halves]
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, torch.cat([part.tensors()[name] for part in parts]))
    assert not torch.equal(run(batch, dataset, CONFIG, step=8).positions_BT, whole.positions_BT)


def test_permutations_are_annealed_to_the_fixed_order(batch: Batch, dataset: ShardDataset) -> None:
    config = replace(CONFIG, anneal_start=0.2, anneal_end=0.6)
    assert [permuted_fraction(config, step) for step in (0, 19, 20, 40, 60, 99)] == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert permuted_fraction(replace(CONFIG, anneal_start=0.5, anneal_end=0.5), 50) == 0.0
    half = (run(batch, dataset, config, step=40).positions_BT != torch.arange(16)).any(dim=1)
    assert 0.35 < half.float().mean() < 0.65
    last = run(batch, dataset, replace(config, pkeep=1.0), step=60)
    assert torch.equal(last.codes_BT, batch.codes_BT)
    assert last.inputs_BT is None


def test_without_options_a_batch_is_left_alone(batch: Batch, dataset: ShardDataset) -> None:
    plain = replace(CONFIG, cond_dropout=0.0, pkeep=1.0, random_order=False)
    found = run(batch, dataset, plain).tensors()
    assert found.keys() == {"condition_BC", "codes_BT"}
    assert all(torch.equal(tensor, batch.tensors()[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(position="learned")}, r"model.target_positions is False: random_order requires them"),
        ({"multiscale": True}, "train them without random_order"),
        ({"anneal_end": 0.4}, "use fractions with 0 ≤ start ≤ end ≤ 1"),
        ({"condition": "none"}, "without a condition there is nothing to drop"),
        ({"accumulate": 3}, "use a divisor of batch_size = 200"),
        ({"pkeep": 0.0}, "pkeep"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(PriorError, match=message):
        replace(CONFIG, **changes)
