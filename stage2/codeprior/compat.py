"""Import of released transformers as a prior: minGPT as taming-transformers trained it.

Blocks, norms, positions and the head's rows of image codes are used unchanged. minGPT has one embedding table; its rows
become the embeddings of image codes and of conditions. Other rows of the table and of the head are dropped (in the
original they take a little probability from the codes), as are positions beyond the sequence and the attention masks.
The checkpoint has no null condition, so guidance is not possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from codeprior.config import ModelConfig, PriorError, SequenceSpec
from codeprior.model import Prior

_BLOCK = {
    "ln1.weight": "attention_norm.weight",
    "ln1.bias": "attention_norm.bias",
    "attn.proj.weight": "attention.proj.weight",
    "attn.proj.bias": "attention.proj.bias",
    "ln2.weight": "mlp_norm.weight",
    "ln2.bias": "mlp_norm.bias",
    "mlp.0.weight": "mlp.fc.weight",
    "mlp.0.bias": "mlp.fc.bias",
    "mlp.2.weight": "mlp.proj.weight",
    "mlp.2.bias": "mlp.proj.bias",
}


def prior_from_mingpt(
    weights: Mapping[str, Tensor], *, n_head: int, sequence: SequenceSpec, condition_tokens: Sequence[int]
) -> Prior:
    """Return a prior that computes the same as minGPT.

    Args:
        weights: minGPT's state_dict: tok_emb, pos_emb, blocks.*, ln_f.*, head.
        n_head: Number of attention heads, which the weights do not determine.
        sequence: The meaning of the sequences, with at most one condition.
        condition_tokens: minGPT's token for each condition token 0, 1, …; without a condition, the start token.

    Returns:
        The prior in eval mode, with exact GELU; its logits are minGPT's for the image codes.

    Raises:
        PriorError: Weights are missing, unknown or of another size.
    """
    left = {name: value.float() for name, value in weights.items() if not name.endswith(".attn.mask")}
    _refuse_unmasked(weights)
    try:
        table, positions = left.pop("tok_emb.weight"), left.pop("pos_emb")[0]
        n_layer = 1 + max(int(found[1]) for name in left if (found := re.match(r"blocks\.(\d+)\.", name)))
        state = _blocks(left, n_layer)
        state |= {"norm.weight": left.pop("ln_f.weight"), "norm.bias": left.pop("ln_f.bias")}
        head = left.pop("head.weight")
    except (KeyError, ValueError) as error:
        raise PriorError(f"these are not minGPT's weights: {error} is missing") from error
    if left:
        raise PriorError(f"weights that minGPT does not have: {', '.join(sorted(left)[:3])} …")
    config = ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=table.shape[1], position="learned")
    prior = Prior(config, sequence)
    needed = max(sequence.codebook_size, max(condition_tokens) + 1)
    if len(table) < needed or len(head) < sequence.codebook_size or len(positions) < prior.max_tokens:
        raise PriorError(
            f"minGPT knows {len(table)} tokens and {len(positions)} positions; "
            f"this sequence requires {needed} and {prior.max_tokens}"
        )
    name = sequence.condition  # at most one, because minGPT has one table
    rows = table[torch.tensor(list(condition_tokens))]
    if sequence.conditions:
        rows = torch.cat((rows, rows.mean(dim=0, keepdim=True)))  # the null token, which was never trained
    state |= {
        f"condition_embeddings.{name}.weight": rows,
        "code_embedding.weight": table[: sequence.codebook_size],
        "position_embedding.weight": positions[: prior.max_tokens],
        "head.weight": head[: sequence.codebook_size],
    }
    try:
        prior.load_state_dict({key: value.clone() for key, value in state.items()})
    except RuntimeError as error:
        raise PriorError(f"minGPT's weights do not fit: {' '.join(str(error).split())}") from error
    return prior.eval()


def _blocks(left: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    state = {}
    for layer in range(n_layer):
        for kind in ("weight", "bias"):
            parts = [left.pop(f"blocks.{layer}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"blocks.{layer}.attention.qkv.{kind}"] = torch.cat(parts)
        state |= {f"blocks.{layer}.{ours}": left.pop(f"blocks.{layer}.{theirs}") for theirs, ours in _BLOCK.items()}
    return state


def _refuse_unmasked(weights: Mapping[str, Tensor]) -> None:
    for name, mask in weights.items():
        if name.endswith(".attn.mask") and bool(mask.float().triu(1).any()):
            raise PriorError(f"{name} lets tokens see later ones (n_unmasked): a causal prior cannot do that")
