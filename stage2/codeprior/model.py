"""The prior: a GPT-2 decoder over condition tokens followed by image codes, with later improvements as options.

Axes: B batch, N = B · T, C condition tokens, T image codes, S = C + T tokens that enter a block, P tokens of a full
cache, D channels, H heads, E channels per head, V image codebook. A token's place is its index in a sequence in
the prior's order: 0 … C - 1 for condition tokens, C + t for image code t.

After Rombach, Esser and Ommer, "An Image is Worth 16x16 Tokens: Visual Priors for Efficient Image
Synthesis with Transformers", section 3, and Radford et al., "Language Models are Unsupervised Multitask
Learners" (pre-LN blocks, learned positions, residual projections scaled at initialisation).
Target positions after Yu et al., "Randomized Autoregressive Visual Generation" (arXiv 2411.00776).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.attention import CausalSelfAttention, KVCache, make_norm, seen_by_each
from codeprior.chunked_loss import LARGE_CODEBOOK, head_nll
from codeprior.config import ModelConfig, PriorError, SequenceSpec
from codeprior.cpu_kernels import Linear, linear
from codeprior.positions import GridEmbedding, Rotation, rotation_at


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside; or a SwiGLU of about as many weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        # 2/3 · 4 · D, rounded up to a multiple of 64: three matrices have as many weights as two had.
        hidden = -(-8 * config.n_embd // (3 * 64)) * 64 if self.kind == "swiglu" else 4 * config.n_embd
        self.fc = Linear(config.n_embd, 2 * hidden if self.kind == "swiglu" else hidden)
        self.proj = Linear(hidden, config.n_embd)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] → [B, S, D], for each token separately."""
        h = self.fc(x_BSD)
        if self.kind == "swiglu":
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        out_BSD: Tensor = self.proj(h)
        return out_BSD


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.n_embd)
        self.attention = CausalSelfAttention(config, layer)
        self.mlp_norm = make_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        seen_SP: Tensor | None = None,
    ) -> Tensor:
        """[B, S, D] → [B, S, D], the residual stream after this block."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), rotation, cache, seen_SP))
        out_BSD: Tensor = x_BSD + self.dropout(self.mlp(self.mlp_norm(x_BSD)))
        return out_BSD


class Prior(nn.Module):
    """p(image codes | condition), one code at a time in the order of `sequence.order`.

    Every condition and the image codes have separate embeddings, and the head predicts image codes only, so no
    probability is assigned to other tokens. A condition token of -1 means "not given" and selects the last row of the
    condition's embedding. It is trained by dropping conditions, and is used for guidance.
    """

    scale_T: Tensor

    def __init__(self, config: ModelConfig, sequence: SequenceSpec) -> None:
        super().__init__()
        self.config, self.sequence = config, sequence
        C, T, D = sequence.condition_length, sequence.length, config.n_embd
        # In the prior's own order the last image code is predicted but not read; in another order any code may be last.
        self.max_tokens = C + T - (not config.target_positions and sequence.objective == "ordered")
        vocabularies = {part.name: part.vocabulary for part in sequence.conditions} or {"none": 0}
        self.condition_embeddings = nn.ModuleDict({k: nn.Embedding(v + 1, D) for k, v in vocabularies.items()})
        self.code_embedding = nn.Embedding(sequence.codebook_size, D)
        self.position_embedding = nn.Embedding(self.max_tokens, D) if config.position == "learned" else None
        self.grid_embedding = GridEmbedding(sequence, D) if config.position == "grid" else None
        self.target_embedding = nn.Embedding(T, D) if config.target_positions else None
        self.scale_embedding = nn.Embedding(len(sequence.grids), D) if sequence.scales else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, D)
        self.head = None if config.tie_head else Linear(D, sequence.codebook_size, bias=False)
        scales = [torch.full((height * width,), index) for index, (height, width) in enumerate(sequence.grids)]
        # Only if it is used, because DDP broadcasts every buffer before every step.
        self.register_buffer("scale_T", torch.cat(scales) if sequence.scales else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as GPT-2: N(0, 0.02²), biases zero, residual projections divided by √(2 · layers)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("proj.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.code_embedding.weight.device

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters, including embeddings."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self,
        condition_BC: Tensor,
        codes_BT: Tensor,
        positions_BT: Tensor | None = None,
        *,
        targets_BT: Tensor | None = None,
    ) -> Tensor:
        """Return logits for every next image code, or the loss of each.

        Args:
            condition_BC: int64 condition tokens; zeros [B, 1] without a condition.
            codes_BT: int64, the first T ≥ 0 image codes of the sequence. Training passes all but the last.
            positions_BT: int64 [B, T + 1], for sequences in another order than the prior's: the index t, in the prior's
                order, of every code that is read or predicted. Requires `config.knows_targets`.
            targets_BT: int64 [B, T + 1] codes, for their negative log-likelihood without the logits in memory.

        Returns:
            [B, T + 1, V] logits: position t predicts code t from the condition and codes 0 … t - 1. With targets, their
            negative log-likelihood, float32 [B, T + 1].

        Raises:
            PriorError: Positions are given, but the prior has no target positions.
        """
        C, S = condition_BC.shape[1], condition_BC.shape[1] + codes_BT.shape[1]
        places_S = torch.arange(S, device=codes_BT.device)
        targets = places_S[C - 1 :] - (C - 1)
        if positions_BT is not None:
            if not self.config.knows_targets:
                raise PriorError("positions: this prior has no target positions; train with target_positions")
            before_BC = places_S[:C].expand(len(codes_BT), C)
            places_S, targets = torch.cat((before_BC, positions_BT[:, :-1] + C), dim=1), positions_BT
        x_BSD = torch.cat((self._embed_condition(condition_BC), self._embed_codes(codes_BT, places_S[..., C:])), dim=1)
        x_BSD = self._run_blocks(x_BSD, places_S, targets)
        # The outputs before the last condition token are neither trained nor sampled.
        return self._predict(x_BSD[:, C - 1 :], targets_BT)

    def nll(
        self,
        condition_BC: Tensor,
        codes_BT: Tensor,
        *,
        inputs_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log-likelihood of code sequences, float32 [B, T], in nats.

        Args:
            condition_BC: As for :meth:`forward`.
            codes_BT: The targets.
            inputs_BT: The inputs, if some codes are replaced in training; else codes_BT is read.
            positions_BT: As for :meth:`forward`.
        """
        read_BT = (codes_BT if inputs_BT is None else inputs_BT)[:, :-1]
        return self._losses(condition_BC, read_BT, codes_BT, positions_BT)

    def _losses(
        self, condition_BC: Tensor, read_BT: Tensor, codes_BT: Tensor, positions_BT: Tensor | None = None
    ) -> Tensor:
        if self.sequence.codebook_size > LARGE_CODEBOOK:
            return self(condition_BC, read_BT, positions_BT, targets_BT=codes_BT)  # type: ignore[no-any-return]
        # Always float32, because a softmax over many codes loses digits in bfloat16.
        logits_NV = self(condition_BC, read_BT, positions_BT).float().flatten(0, 1)
        return F.cross_entropy(logits_NV, codes_BT.flatten(), reduction="none").view_as(codes_BT)

    def prefill(self, condition_BC: Tensor, cache: KVCache, codes_BT: Tensor | None = None) -> Tensor:
        """Read the condition and T ≥ 0 image codes into an empty cache; return the logits [B, V] of the next code."""
        assert cache.length == 0
        cache.place_1.zero_()
        x_BSD = self._embed_condition(condition_BC)
        places_S = torch.arange(x_BSD.shape[1] + (0 if codes_BT is None else codes_BT.shape[1]), device=x_BSD.device)
        if codes_BT is not None:
            x_BSD = torch.cat((x_BSD, self._embed_codes(codes_BT, places_S[x_BSD.shape[1] :])), dim=1)
        return self._append(x_BSD, places_S, cache)

    def decode(self, codes_B: Tensor, cache: KVCache) -> Tensor:
        """Read one more image code into the cache; return the logits [B, V] of the next one."""
        cache.place_1.fill_(cache.length)
        if cache.static:
            logits_BV = self.decode_static(codes_B, cache)
            cache.length += 1
            return logits_BV
        return self._append(self._embed_codes(codes_B[:, None], cache.place_1), cache.place_1, cache)

    def decode_several(self, codes_BT: Tensor, cache: KVCache) -> Tensor:
        """Read T more image codes into a cache, not a static one; return the logits [B, T, V] of each next code."""
        tokens = codes_BT.shape[1]
        places_T = torch.arange(cache.length, cache.length + tokens, device=codes_BT.device)
        seen_TP = seen_by_each(cache.length, tokens, 1, codes_BT.device)
        targets_T = places_T - (self.sequence.condition_length - 1)
        x_BTD = self._run_blocks(self._embed_codes(codes_BT, places_T), places_T, targets_T, cache, seen_TP)
        cache.length += tokens
        return self._logits(x_BTD)

    def decode_static(self, codes_B: Tensor, cache: KVCache) -> Tensor:
        """Do :meth:`decode` at `cache.place_1` with fixed shapes and addresses; the caller updates `cache.length`."""
        x_B1D = self._embed_codes(codes_B[:, None], cache.place_1)
        targets = cache.place_1 - (self.sequence.condition_length - 1)
        return self._logits(self._run_blocks(x_B1D, cache.place_1, targets, cache)[:, -1])

    def ask(self, cache: KVCache, condition_BC: Tensor, codes_BT: Tensor, read_BR: Tensor, asked_BQ: Tensor) -> Tensor:
        """Read R image codes into the cache, and predict Q ≥ 1 codes, each from all that is read and no other of the Q.

        The last token that is read names the code that it predicts, so it runs Q times, once for each. The cache keeps
        its first run. The next call must therefore begin with the code ``asked_BQ[:, 0]``, or :meth:`KVCache.keep`
        another run before. Then the cache is exact: it is that of the codes read one by one.

        Args:
            cache: What was read before; not static.
            condition_BC: The condition tokens, which are read into an empty cache.
            codes_BT: int64, the codes of the sequence that are known.
            read_BR: int64, the indices of the R codes to read; R ≥ 1 unless the cache is empty.
            asked_BQ: int64, the indices of the codes to predict.

        Returns:
            [B, Q, V] logits.
        """
        C, Q = self.sequence.condition_length, asked_BQ.shape[1]
        x_BSD, places_BS = self._embed_codes(codes_BT.gather(1, read_BR), read_BR + C), read_BR + C
        targets_BN = torch.cat((read_BR[:, 1:], asked_BQ), dim=1)
        if cache.length == 0:
            x_BSD = torch.cat((self._embed_condition(condition_BC), x_BSD), dim=1)
            places_BS = torch.cat((torch.arange(C, device=x_BSD.device).expand(len(x_BSD), C), places_BS), dim=1)
            targets_BN = torch.cat((read_BR, asked_BQ), dim=1)
        x_BSD = torch.cat((x_BSD[:, :-1], x_BSD[:, -1:].expand(-1, Q, -1)), dim=1)
        places_BS = torch.cat((places_BS[:, :-1], places_BS[:, -1:].expand(-1, Q)), dim=1)
        tokens = x_BSD.shape[1]
        seen_SP = seen_by_each(cache.length, tokens, Q, x_BSD.device) if tokens > 1 else None
        x_BSD = self._run_blocks(x_BSD, places_BS, targets_BN, cache, seen_SP)
        cache.length += tokens - Q + 1
        return self._logits(x_BSD[:, -Q:])

    def _append(self, x_BSD: Tensor, places_S: Tensor, cache: KVCache) -> Tensor:
        tokens, last = x_BSD.shape[1], self.sequence.condition_length - 1
        if cache.length + tokens > self.sequence.condition_length + self.sequence.length - 1:
            raise PriorError(f"the cache is full: a sequence has {self.sequence.length} image codes")
        targets = places_S[max(0, last - cache.length) :] - last
        x_BSD = self._run_blocks(x_BSD, places_S, targets, cache)
        cache.length += tokens
        return self._logits(x_BSD[:, -1])

    def _embed_condition(self, condition_BC: Tensor) -> Tensor:
        lengths = [part.length for part in self.sequence.conditions] or [1]
        embedded = []
        for table, tokens in zip(
            self.condition_embeddings.values(), torch.split(condition_BC, lengths, 1), strict=True
        ):
            assert isinstance(table, nn.Embedding)
            embedded.append(table(tokens.where(tokens >= 0, table.num_embeddings - 1)))
        return torch.cat(embedded, dim=1)

    def _embed_codes(self, codes_BT: Tensor, places_T: Tensor) -> Tensor:
        x_BTD: Tensor = self.code_embedding(codes_BT)
        if self.scale_embedding is not None:
            x_BTD = x_BTD + self.scale_embedding(self.scale_T[places_T - self.sequence.condition_length])
        return x_BTD

    def _run_blocks(
        self,
        x_BSD: Tensor,
        places_S: Tensor,
        targets: Tensor,
        cache: KVCache | None = None,
        seen_SP: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream after all blocks; `targets` are the target positions of the last tokens."""
        rotation = None
        if self.position_embedding is not None:
            x_BSD = x_BSD + self.position_embedding(places_S)
        elif self.grid_embedding is not None:
            x_BSD = x_BSD + self.grid_embedding(places_S, targets)
        else:
            rotation = rotation_at(places_S, self.config.n_embd // self.config.n_head)
        if self.target_embedding is not None:
            first = x_BSD.shape[1] - targets.shape[-1]
            x_BSD = torch.cat((x_BSD[:, :first], x_BSD[:, first:] + self.target_embedding(targets)), dim=1)
        x_BSD = self.dropout(x_BSD)
        for block in self.blocks:
            x_BSD = block(x_BSD, rotation, cache, seen_SP)
        return x_BSD

    def _predict(self, x_BTD: Tensor, targets_BT: Tensor | None) -> Tensor:
        """Return the logits of image codes, or with targets the loss of each."""
        if targets_BT is None:
            return self._logits(x_BTD)
        x_ND = self.norm(x_BTD).flatten(0, 1)
        return head_nll(x_ND, self._head_weight(), targets_BT.flatten()).view_as(targets_BT)

    def _logits(self, x_BSD: Tensor) -> Tensor:
        return linear(self.norm(x_BSD), self._head_weight())

    def _head_weight(self) -> Tensor:
        return (self.code_embedding if self.head is None else self.head).weight
