"""minGPT's weights as a prior: the mapping, and parity with the published code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codeprior.compat import prior_from_mingpt
from codeprior.config import ConditionSpec, PriorError, SequenceSpec
from codeprior.sample import sample_codes
from codeprior.sample_config import SampleConfig


def sequence(classes: int = 0) -> SequenceSpec:
    parts = (ConditionSpec(name="class", height=1, width=1, vocabulary=classes, fingerprint=""),) if classes else ()
    return SequenceSpec(height=4, width=4, codebook_size=11, order="row_major", fingerprint="f", conditions=parts)


def mingpt_weights(vocabulary: int = 11, positions: int = 16, width: int = 16) -> dict[str, Tensor]:
    """What minGPT's state_dict holds, at random."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (vocabulary, width),
        "pos_emb": (1, positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
        "head.weight": (vocabulary, width),
    }
    for layer in range(2):
        block = f"blocks.{layer}"
        for name in ("attn.key", "attn.query", "attn.value", "attn.proj"):
            shapes |= {f"{block}.{name}.weight": (width, width), f"{block}.{name}.bias": (width,)}
        shapes |= {f"{block}.mlp.0.weight": (4 * width, width), f"{block}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.2.weight": (width, 4 * width), f"{block}.mlp.2.bias": (width,)}
        for name in ("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"):
            shapes[f"{block}.{name}"] = (width,)
    weights = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    mask = torch.ones(positions, positions).tril()[None, None]
    return weights | {f"blocks.{layer}.attn.mask": mask for layer in range(2)}


def test_conditions_take_rows_of_the_shared_table() -> None:
    weights = mingpt_weights(vocabulary=20, positions=30)
    prior = prior_from_mingpt(weights, n_head=2, sequence=sequence(5), condition_tokens=range(5))
    table = weights["tok_emb.weight"]
    embedding = prior.condition_embeddings["class"].weight
    assert torch.equal(embedding[:5], table[:5])
    torch.testing.assert_close(embedding[5], table[:5].mean(0))
    assert torch.equal(prior.code_embedding.weight, table[:11])
    assert torch.equal(prior.head.weight, weights["head.weight"][:11])
    assert torch.equal(prior.position_embedding.weight, weights["pos_emb"][0, :16])
    assert prior.config.mlp == "gelu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ln_f.bias"), "'ln_f.bias' is missing"),
        (lambda w: w.pop("blocks.1.attn.key.weight"), "'blocks.1.attn.key.weight' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "does not have: extra"),
        (lambda w: w.update(pos_emb=torch.zeros(1, 9, 16)), "9 positions; this sequence requires 11 and 16"),
        (lambda w: w.update({"head.weight": torch.zeros(7, 16)}), "requires 11 and 16"),
        (lambda w: w.update({"blocks.0.mlp.0.weight": torch.zeros(3, 16)}), "do not fit"),
        (lambda w: w.update({"blocks.0.attn.mask": torch.ones(1, 1, 16, 16)}), "n_unmasked"),
    ],
)
def test_weights_that_do_not_map_are_refused(change, message: str) -> None:
    weights = mingpt_weights()
    change(weights)
    with pytest.raises(PriorError, match=message):
        prior_from_mingpt(weights, n_head=2, sequence=sequence(), condition_tokens=[0])


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 5])
@torch.inference_mode()
def test_logits_and_greedy_codes_equal_the_published_mingpt(classes: int) -> None:
    pytest.importorskip("taming", reason="pip install --no-deps taming-transformers-rom1504")
    pytest.importorskip("transformers")
    from priorbench.peers import gpt2_from_mingpt, mingpt

    torch.manual_seed(1)
    peer = mingpt().GPT(11, 20, n_layer=3, n_head=4, n_embd=32).eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.3)
    start = 7
    tokens = range(classes) if classes else [start]
    prior = prior_from_mingpt(peer.state_dict(), n_head=4, sequence=sequence(classes), condition_tokens=tokens)
    condition_B1 = torch.arange(3)[:, None] if classes else torch.zeros(3, 1, dtype=torch.int64)
    theirs_B1 = condition_B1 if classes else torch.full((3, 1), start)
    codes_BT = torch.randint(11, (3, 16))
    expected, _ = peer(torch.cat((theirs_B1, codes_BT[:, :-1]), dim=1))
    torch.testing.assert_close(prior(condition_B1, codes_BT[:, :-1]), expected, atol=1e-4, rtol=1e-4)
    drawn = mingpt().sample_with_past(theirs_B1, peer, 16, sample_logits=False, top_k=5, top_p=1.0)
    condition = condition_B1[:, 0] if classes else None
    ours = sample_codes(prior, 3, condition=condition, config=SampleConfig(top_k=1))
    assert torch.equal(ours.flatten(1), drawn)
    hugging_face = gpt2_from_mingpt(peer, 4)
    torch.testing.assert_close(
        hugging_face(torch.cat((theirs_B1, codes_BT[:, :-1]), dim=1)).logits, expected, atol=1e-4, rtol=1e-4
    )
