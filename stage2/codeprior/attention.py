"""Causal attention and its key/value cache.

Axes: B batch, N = B · H, S tokens that enter a block, P tokens of a full cache, D channels, H heads, E channels per
head.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.config import ModelConfig, PriorError
from codeprior.cpu_kernels import Linear
from codeprior.positions import Rotation, rotate
from runkit.devices import Autocast

if TYPE_CHECKING:
    from codeprior.model import Prior

_SHORT = 512
"""Number of tokens up to which attention may keep all scores of a layer in memory."""
_BFLOAT16_CPU = torch.cpu._is_avx512_bf16_supported()  # a constant for compiled code


class KVCache:
    """Keys and values of the tokens read so far, in tensors that are allocated once.

    A cache that grows by concatenation would be copied for every token.

    Args:
        prior: Determines the number of layers, the type and the device.
        batch: Number of sequences.
        static: Attend to all places under a mask, so that every step has the same shapes, as compiled code and CUDA
            graphs require. Otherwise attend to the filled places only, which reads less memory.
    """

    def __init__(self, prior: Prior, batch: int, *, static: bool = False) -> None:
        config, weight = prior.config, prior.code_embedding.weight
        shape = (batch, config.n_head, prior.max_tokens, config.n_embd // config.n_head)
        self.batch = batch
        # Zeros, because 0 · NaN of a masked place would be NaN. One tensor per layer, because compiled code copies a
        # whole tensor to write into a part of it.
        zeros = functools.partial(torch.zeros, shape, device=weight.device, dtype=weight.dtype)
        self.keys = [zeros() for _ in range(config.n_layer)]
        self.values = [zeros() for _ in range(config.n_layer)]
        self.length = 0
        """Number of tokens whose keys and values are valid, in every layer."""
        self.static = static
        self.place_1 = torch.zeros(1, device=weight.device, dtype=torch.int64)
        """Place of the token that a step reads; a tensor, so that it is no constant of compiled code."""
        if static:
            for tensor in (*self.keys, *self.values, self.place_1):
                # CUDA graphs then write into it instead of a copy. A guard would compile again for another cache.
                torch._dynamo.mark_static_address(tensor, guard=False)

    def extend(self, layer: int, k_BHSE: Tensor, v_BHSE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store keys and values of new tokens; return those to attend to, and a mask of valid places (None: all)."""
        keys_BHPE, values_BHPE = self.keys[layer], self.values[layer]
        if self.static and k_BHSE.shape[2] == 1:
            keys_BHPE.index_copy_(2, self.place_1, k_BHSE)
            values_BHPE.index_copy_(2, self.place_1, v_BHSE)
            seen_1P = torch.arange(keys_BHPE.shape[2], device=keys_BHPE.device)[None] <= self.place_1
            return keys_BHPE, values_BHPE, seen_1P
        end = self.length + k_BHSE.shape[2]
        keys_BHPE[:, :, self.length : end] = k_BHSE
        values_BHPE[:, :, self.length : end] = v_BHSE
        return keys_BHPE[:, :, :end], values_BHPE[:, :, :end], None

    def keep(self, chosen_B: Tensor) -> None:
        """Replace the last token of each sequence by the one that is `chosen_B` [B] places after it."""
        if self.length == 0:  # a masked prior reads nothing into it
            return
        rows_B, places_B = torch.arange(self.batch, device=chosen_B.device), self.length - 1 + chosen_B
        for tensor_BHPE in (*self.keys, *self.values):
            tensor_BHPE[:, :, self.length - 1] = tensor_BHPE[rows_B, :, places_B]


def attend_sdpa(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return attention [B, H, S, E] to the places in `seen` [S, P]; without it causal, or to all for a single query.

    There is no dropout on the attention weights, which would disable the fused kernels.
    """
    causal = q_BHSE.shape[2] > 1 and seen is None
    if (
        q_BHSE.shape[2] == 1 and q_BHSE.device.type == "cpu"
    ):  # torch's kernel takes up to four times as long for one query
        return attend_math(q_BHSE, k_BHSE, v_BHSE, seen)
    if q_BHSE.device.type == "cuda" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        with _without_cudnn():
            return F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, attn_mask=seen, is_causal=causal)
    if q_BHSE.device.type == "cuda" or q_BHSE.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, attn_mask=seen, is_causal=causal)
    # torch's bfloat16 kernel for CPUs is never faster than its float32 kernel, and backward up to four times slower.
    # Plain products take half the time of the float32 kernel if the CPU has bfloat16, and memory for all scores.
    if q_BHSE.shape[2] <= _SHORT and _BFLOAT16_CPU:
        return _attend_short(q_BHSE, k_BHSE, v_BHSE, seen)
    with torch.autocast(q_BHSE.device.type, enabled=False):
        out_BHSE = F.scaled_dot_product_attention(
            q_BHSE.float(), k_BHSE.float(), v_BHSE.float(), attn_mask=seen, is_causal=causal
        )
    return out_BHSE.to(q_BHSE.dtype)


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave out the attention of cuDNN, which torch 2.11 prefers on an H100: it plans each length of a cache anew.

    A plan takes 25 ms or more, a step of GPT-2 medium about 5.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if enabled:  # another thread may have left it out at the same time
            torch.backends.cuda.enable_cudnn_sdp(True)


def _attend_short(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return the same by two batched products, with scale and mask in the first."""
    q_NSE, k_NPE, v_NPE = (x.flatten(0, 1) for x in (q_BHSE, k_BHSE, v_BHSE))
    (S, E), P = q_NSE.shape[1:], k_NPE.shape[1]
    hidden_SP = torch.full((S, P), -math.inf, dtype=v_BHSE.dtype, device=v_BHSE.device)
    hidden_SP = hidden_SP.triu(1) if seen is None else hidden_SP.masked_fill(seen, 0.0)
    scores_NSP = torch.baddbmm(hidden_SP, q_NSE, k_NPE.transpose(1, 2), alpha=1 / math.sqrt(E))
    return (scores_NSP.softmax(dim=-1) @ v_NPE).view_as(q_BHSE)


def attend_math(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return the same by plain products, the reference of the fused kernels."""
    S = q_BHSE.shape[2]
    scores_BHSS = q_BHSE @ k_BHSE.transpose(-2, -1) / math.sqrt(q_BHSE.shape[3])
    if S > 1 and seen is None:
        seen = torch.ones(S, S, dtype=torch.bool, device=q_BHSE.device).tril()
    if seen is not None:
        scores_BHSS = scores_BHSS.masked_fill(~seen, -math.inf)
    return scores_BHSS.softmax(dim=-1) @ v_BHSE


def attend_xformers(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return the same by xformers' memory_efficient_attention.

    Raises:
        PriorError: The tensors are not on an NVIDIA GPU, or as :func:`load_xformers`.
    """
    if q_BHSE.device.type != "cuda":
        raise PriorError(f"attention = 'xformers' runs on NVIDIA GPUs only, not on {q_BHSE.device}: use 'sdpa'")
    if not torch.compiler.is_compiling():
        load_xformers()
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    if q_BHSE.shape[2] == 1 or seen is not None:  # not faster for one query
        return attend_sdpa(q_BHSE, k_BHSE, v_BHSE, seen)
    # Rotary angles and autocast may give queries in float32 and values in bfloat16.
    q, k, v = (x.transpose(1, 2).to(v_BHSE.dtype) for x in (q_BHSE, k_BHSE, v_BHSE))
    out_BSHE: Tensor = memory_efficient_attention(q, k, v, attn_bias=LowerTriangularMask())
    return out_BSHE.transpose(1, 2)


def load_xformers() -> None:
    """Import xformers with its compiled library, without which it has no attention.

    The released library requires the runtime of CUDA 12 also where torch has that of CUDA 13. Both can be in one
    process. The package `nvidia-cuda-runtime-cu12` has it, and no loader searches there.

    Raises:
        PriorError: xformers is not installed, or its library does not fit this torch.
    """
    if "xformers" not in sys.modules:
        logging.getLogger("xformers").setLevel(logging.ERROR)  # its warning of six lines is the error below
        if not (torch.version.cuda or "").startswith("12."):
            _load_cuda_12()
    try:
        import xformers
    except ImportError as error:
        raise PriorError(f"attention = 'xformers': {error}; pip install 'imagepriors[cuda]', or use 'sdpa'") from error
    if not xformers._has_cpp_library:
        raise PriorError(
            f"attention = 'xformers': the library of xformers {xformers.__version__} cannot be loaded with torch "
            f"{torch.__version__} ({_first_cause(xformers._cpp_lib._cpp_library_load_exception)}): use 'sdpa', or pip "
            "install 'imagepriors[cuda]' again, which also installs the runtime of CUDA 12"
        )


def _load_cuda_12() -> None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        for file in importlib.metadata.files("nvidia-cuda-runtime-cu12") or ():
            if file.name == "libcudart.so.12":
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)


def _first_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(error).partition("\n")[0]


def check_attention(config: ModelConfig, device: torch.device, precision: Autocast) -> None:
    """Refuse an attention that this installation or this device does not have. Call it before the work.

    Raises:
        PriorError: as :func:`attend_xformers`, or xformers has no kernel for these heads.
    """
    if config.attention != "xformers":
        return
    width = config.n_embd // config.n_head
    with torch.inference_mode(False), torch.enable_grad():
        x_BHSE = torch.ones(1, 1, 8, width, device=device, dtype=getattr(torch, precision), requires_grad=True)
        try:
            attend_xformers(x_BHSE, x_BHSE, x_BHSE).sum().backward()  # type: ignore[no-untyped-call]
        except NotImplementedError as error:  # with a dozen lines of reasons
            raise PriorError(
                f"attention = 'xformers': xformers {importlib.metadata.version('xformers')} has no kernel for heads of "
                f"{width} channels in {precision} on {torch.cuda.get_device_name(device)}: use 'sdpa'"
            ) from error


ATTENTION = {"sdpa": attend_sdpa, "math": attend_math, "xformers": attend_xformers}


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """Return the config's normalisation over the last axis."""
    return nn.LayerNorm(width) if config.norm == "layernorm" else nn.RMSNorm(width, eps=1e-5)


def seen_by_each(read: int, tokens: int, asked: int, device: torch.device) -> Tensor:
    """Return which tokens each new token attends to, bool [S, P], if the last ones are repetitions of one token.

    Args:
        read: Number of tokens in the cache; P = read + S.
        tokens: Number S of new tokens, including the repetitions.
        asked: Number of repetitions. Each sees itself and what is before the first of them, but no other one.
        device: Where to make the mask.
    """
    places_P = torch.arange(read + tokens, device=device)
    own_S1 = places_P[read:, None]
    first = read + tokens - asked
    return (places_P == own_S1) | (places_P < own_S1.clamp(max=first))


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which token s attends to tokens 0 … s, or to those of a mask."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.attend = ATTENTION[config.attention]
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd)
        head = config.n_embd // config.n_head
        self.query_norm = make_norm(config, head) if config.qk_norm else nn.Identity()
        self.key_norm = make_norm(config, head) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        seen_SP: Tensor | None = None,
    ) -> Tensor:
        """[B, S, D] → [B, S, D]: attend to the same tokens and to those in the cache, or to those in `seen_SP`."""
        B, S, D = x_BSD.shape
        qkv_3BHSE = self.qkv(x_BSD).view(B, S, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)
        q_BHSE, k_BHSE, v_BHSE = qkv_3BHSE.unbind(0)
        q_BHSE, k_BHSE = self.query_norm(q_BHSE), self.key_norm(k_BHSE)
        if rotation is not None:
            q_BHSE, k_BHSE = rotate(q_BHSE, rotation), rotate(k_BHSE, rotation)
        if cache is not None:
            # A causal mask is aligned to the first key, so several tokens at once require an empty cache, or a mask.
            assert S == 1 or cache.length == 0 or seen_SP is not None
            k_BHSE, v_BHSE, valid_1P = cache.extend(self.layer, k_BHSE, v_BHSE)
            seen_SP = valid_1P if seen_SP is None else seen_SP
        out_BHSE = self.attend(q_BHSE, k_BHSE, v_BHSE, seen_SP)
        out_BSD: Tensor = self.proj(out_BHSE.transpose(1, 2).reshape(B, S, D))
        return out_BSD
