"""The tokenizer: pictures in, code indices out, and back. This is all that later stages need of stage 1."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from runkit.compiling import check_compiler
from runkit.configs import check_value
from vqgan import checkpoint
from vqgan.config import Device, ModelConfig, Precision, ScalesFrom
from vqgan.errors import InputError
from vqgan.modalities import to_input, to_pictures
from vqgan.model import TokenizerModel

_DECODED = 64
"""Pictures decoded at once, however many are asked for: at 256×256 one activation of them has 2 GiB."""


def pick_device(name: Device) -> torch.device:
    """The device that `name` means here.

    Raises:
        InputError: cuda is asked for and there is no usable GPU; or another name than those of Device.
    """
    check_value("device", name, Device, InputError)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda', but torch sees no GPU: use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The autocast type; auto is bfloat16 on GPUs and on CPUs that are faster in it.

    Raises:
        InputError: another name than those of Precision.
    """
    check_value("precision", precision, Precision, InputError)
    native = precision == "auto" and (device.type == "cuda" or _cpu_gains_from_bfloat16())
    return torch.bfloat16 if precision == "bfloat16" or native else torch.float32


@functools.cache
def _cpu_gains_from_bfloat16() -> bool:
    """Whether a convolution is faster: no flag tells, since with AVX512-BF16 alone some CPUs are slower in it."""

    def best_s(dtype: torch.dtype) -> float:
        x_BCHW = torch.ones(1, 128, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
        kernel = torch.ones(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.conv2d(x_BCHW, kernel, padding=1)
            times.append(time.perf_counter() - start)
        return min(times)

    return best_s(torch.float32) > 1.2 * best_s(torch.bfloat16)


class Tokenizer:
    """A trained VQGAN or palette, ready to encode and decode pictures."""

    def __init__(
        self,
        config: ModelConfig,
        model: TokenizerModel,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self._device, self._dtype = device, dtype
        self._model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        if compiled:
            check_compiler(device.type, InputError)
        encode_scales = self._model.encode_scales
        self._encode_scales = torch.compile(encode_scales, dynamic=False) if compiled else encode_scales

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        compiled: bool = False,
        known: str = "",
    ) -> "Tokenizer":
        """Load a tokenizer folder. Float32 is the default, since bfloat16 changes a few per cent of the codes.

        With `compiled` the encoder goes through torch.compile, once for every batch size it meets. `known` is a stored
        fingerprint; if an earlier version gave it to this tokenizer, it is the tokenizer's `fingerprint` here too.

        Raises:
            InputError: no tokenizer there, or weights that do not fit.
        """
        config, model = checkpoint.load_model(path)
        place = pick_device(device)
        fingerprint = checkpoint.fingerprint(path, known)
        return cls(config.model, model, fingerprint, place, pick_dtype(precision, place), compiled)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def _exact_convolutions(self) -> Any:
        # On a GPU torch's float32 convolutions are TF32 by default, whose codes differ. The rest stays as it is set.
        cudnn = torch.backends.cudnn
        return cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)

    def encode(self, pictures: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint16]:
        """Pictures of one modality at `config.resolution` → codes uint16 [N, h, w], raster order."""
        return self.start(pictures)()[0]

    @torch.inference_mode()
    def start(
        self,
        pictures: Sequence[npt.NDArray[Any]],
        sides: Sequence[int] = (),
        scales_from: ScalesFrom = "quantised",
    ) -> Callable[[], list[npt.NDArray[np.uint16]]]:
        """Start encoding, and return what waits for the codes: a GPU works on them while the caller does other things.

        Args:
            pictures: N pictures of one modality at `config.resolution`.
            sides: Sides of coarser scales, see `scale_codes`.
            scales_from: What is pooled for them.

        Returns:
            A function that gives uint16 [N, h, w], then [N, S, S] for each side, all from one encoder pass.

        Raises:
            InputError: a label is not below `n_labels`, depth is not in [0, 1], or `scales_from` is no choice.
        """
        check_value("scales_from", scales_from, ScalesFrom, InputError)
        x = to_input(pictures, self.config, self._device).contiguous(memory_format=torch.channels_last)
        with self._autocast(), self._exact_convolutions():
            found = self._encode_scales(x, tuple(sides), scales_from)
        if self._device.type == "cpu":
            return lambda: [codes.numpy().astype(np.uint16) for codes in found]
        # int32, since torch has no arithmetic in uint16; the copy ends when the event has passed.
        copies = [codes.to(torch.int32).to("cpu", non_blocking=True) for codes in found]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def finish() -> list[npt.NDArray[np.uint16]]:
            copied.synchronize()
            return [codes.numpy().astype(np.uint16) for codes in copies]

        return finish

    @torch.inference_mode()
    def decode(self, codes_NHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Codes [N, h, w] → pictures as `to_pictures` gives them: RGB, label maps or depth in [0, 1].

        Raises:
            InputError: a code is not in the codebook.
        """
        highest = int(codes_NHW.max(initial=0))
        if highest >= self.config.codebook_size:
            raise InputError(f"code {highest} is not in the codebook of {self.config.codebook_size}: other tokenizer?")
        return np.concatenate([
            self._decode(codes_NHW[start : start + _DECODED]) for start in range(0, max(1, len(codes_NHW)), _DECODED)
        ])  # fmt: skip

    def _decode(self, codes_NHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        codes = torch.from_numpy(codes_NHW.astype(np.int64)).to(self._device)
        with self._autocast():
            return to_pictures(self._model.decode(codes), self.config)
