"""The prior: a GPT-2 decoder over condition tokens followed by image codes.

Axes: B batch, N = B · T, C condition tokens, T image codes, S = C + T tokens that enter a block, D channels,
H heads, E channels of a head, V image codebook, L layers.

After Rombach, Esser and Ommer, "An Image is Worth 16x16 Tokens: Visual Priors for Efficient Image
Synthesis with Transformers", section 3, and Radford et al., "Language Models are Unsupervised Multitask
Learners" (pre-LN blocks, tanh GELU, learned positions, residual projections scaled at the start).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.config import ModelConfig, PriorError, SequenceSpec


class KVCache:
    """Keys and values of the tokens seen so far, in tensors allocated once.

    Growing a cache by concatenation copies all of it for every token; writing into place does not.
    """

    def __init__(self, prior: Prior, batch: int) -> None:
        config, weight = prior.config, prior.head.weight
        shape = (config.n_layer, batch, config.n_head, prior.max_tokens, config.n_embd // config.n_head)
        self.keys_LBHSE = torch.empty(shape, device=weight.device, dtype=weight.dtype)
        self.values_LBHSE = torch.empty_like(self.keys_LBHSE)
        self.length = 0
        """Tokens whose keys and values are valid, in every layer."""

    def extend(self, layer: int, k_BHSE: Tensor, v_BHSE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; return those of all tokens so far."""
        end = self.length + k_BHSE.shape[2]
        self.keys_LBHSE[layer, :, :, self.length : end] = k_BHSE
        self.values_LBHSE[layer, :, :, self.length : end] = v_BHSE
        return self.keys_LBHSE[layer, :, :, :end], self.values_LBHSE[layer, :, :, :end]


def attend(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
    """Attention [B, H, S, E]: causal from several queries, from a single one to all that is there.

    Without dropout on the attention weights, which would switch the fused kernels off.
    """
    causal = q_BHSE.shape[2] > 1
    if q_BHSE.device.type == "cuda" or q_BHSE.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, is_causal=causal)
    # torch's bfloat16 kernel for CPUs: never faster than its float32 one, backward up to four times slower.
    with torch.autocast(q_BHSE.device.type, enabled=False):
        out_BHSE = F.scaled_dot_product_attention(q_BHSE.float(), k_BHSE.float(), v_BHSE.float(), is_causal=causal)
    return out_BHSE.to(q_BHSE.dtype)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which token s sees tokens 0 … s."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x_BSD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Attend from x_BSD to itself and to what the cache holds; the same shape comes back."""
        B, S, D = x_BSD.shape
        qkv_3BHSE = self.qkv(x_BSD).view(B, S, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)
        q_BHSE, k_BHSE, v_BHSE = qkv_3BHSE.unbind(0)
        if cache is not None:
            # is_causal aligns the mask to the first key, so several tokens at once only fit an empty cache.
            assert S == 1 or cache.length == 0
            k_BHSE, v_BHSE = cache.extend(self.layer, k_BHSE, v_BHSE)
        out_BHSE = attend(q_BHSE, k_BHSE, v_BHSE)
        out_BSD: Tensor = self.proj(out_BHSE.transpose(1, 2).reshape(B, S, D))
        return out_BSD


class MLP(nn.Module):
    """Two linear layers with GELU between, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Token by token; the same shape comes back."""
        out_BSD: Tensor = self.proj(F.gelu(self.fc(x_BSD), approximate="tanh"))
        return out_BSD


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = CausalSelfAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor, cache: KVCache | None = None) -> Tensor:
        """The residual stream after this block."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), cache))
        out_BSD: Tensor = x_BSD + self.dropout(self.mlp(self.mlp_norm(x_BSD)))
        return out_BSD


class Prior(nn.Module):
    """p(image codes | condition), one code at a time in the order of `sequence.order`.

    Condition tokens and image codes have embeddings of their own and the head knows image codes only, so
    no probability is ever spent on a token that cannot come next.
    """

    def __init__(self, config: ModelConfig, sequence: SequenceSpec) -> None:
        super().__init__()
        self.config, self.sequence = config, sequence
        # The last image code is predicted but never read.
        self.max_tokens = sequence.condition_length + sequence.length - 1
        self.condition_embedding = nn.Embedding(sequence.condition_vocabulary, config.n_embd)
        self.code_embedding = nn.Embedding(sequence.codebook_size, config.n_embd)
        self.position_embedding = nn.Embedding(self.max_tokens, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, sequence.codebook_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's start: N(0, 0.02²), biases zero, residual projections smaller by √(2 · layers)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("proj.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def parameter_count(self) -> int:
        """Trainable numbers, embeddings included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, condition_BC: Tensor, codes_BT: Tensor) -> Tensor:
        """Logits for every next image code.

        Args:
            condition_BC: int64 condition tokens; zeros [B, 1] where there is no condition.
            codes_BT: int64, the first T ≥ 0 image codes in sequence order. Training passes all but the last.

        Returns:
            [B, T + 1, V] logits: position t predicts code t from the condition and codes 0 … t - 1.
        """
        x_BSD = torch.cat((self.condition_embedding(condition_BC), self.code_embedding(codes_BT)), dim=1)
        x_BSD = self._run_blocks(x_BSD)
        # Positions before the last condition token predict nothing that is trained or sampled.
        first = self.sequence.condition_length - 1
        logits_BTV: Tensor = self.head(self.norm(x_BSD[:, first:]))
        return logits_BTV

    def nll(self, condition_BC: Tensor, codes_BT: Tensor) -> Tensor:
        """Negative log-likelihood of whole code sequences, float32 [B, T], in nats."""
        # float32 whatever the products' precision: a softmax over many codes loses digits in bfloat16.
        logits_NV = self(condition_BC, codes_BT[:, :-1]).float().flatten(0, 1)
        return F.cross_entropy(logits_NV, codes_BT.flatten(), reduction="none").view_as(codes_BT)

    def prefill(self, condition_BC: Tensor, cache: KVCache) -> Tensor:
        """Read the condition into an empty cache; logits [B, V] of the first image code."""
        return self._append(self.condition_embedding(condition_BC), cache)

    def decode(self, codes_B: Tensor, cache: KVCache) -> Tensor:
        """Read one more image code into the cache; logits [B, V] of the next one."""
        return self._append(self.code_embedding(codes_B[:, None]), cache)

    def _append(self, x_BSD: Tensor, cache: KVCache) -> Tensor:
        tokens = x_BSD.shape[1]
        if cache.length + tokens > self.max_tokens:
            raise PriorError(f"the cache is full: a sequence has {self.sequence.length} image codes")
        x_BSD = self._run_blocks(x_BSD, cache)
        cache.length += tokens
        logits_BV: Tensor = self.head(self.norm(x_BSD[:, -1]))
        return logits_BV

    def _run_blocks(self, x_BSD: Tensor, cache: KVCache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        x_BSD = self.dropout(x_BSD + self.position_embedding.weight[start : start + x_BSD.shape[1]])
        for block in self.blocks:
            x_BSD = block(x_BSD, cache)
        return x_BSD
