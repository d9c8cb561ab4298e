"""The tokenizer: encodes pictures to code indices and decodes them. Later stages need nothing else of stage 1."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runkit.codes import Codes, code_dtype
from runkit.compiling import check_compiler
from runkit.configs import check_value
from runkit.devices import Autocast, Device, Precision, make_autocast, pick_device
from vqgan import checkpoint
from vqgan.config import ModelConfig, ScalesFrom
from vqgan.cpu_kernels import resolve_precision
from vqgan.errors import InputError
from vqgan.modalities import to_input, to_pictures
from vqgan.model import TokenizerModel
from vqgan.plugin_tokenizer import decode_with, encode_with, interface, load_plugin, plugin_name
from vqgan.quantize import pooled_codes

_DECODED = 64
"""Pictures that are decoded at once: at 256×256 one activation of 64 takes 2 GiB."""


class Tokenizer:
    """A trained VQGAN or palette, ready to encode and decode pictures."""

    def __init__(
        self,
        config: ModelConfig,
        model: TokenizerModel,
        fingerprint: str,
        device: torch.device,
        precision: Autocast,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self._device, self._precision = device, precision
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
        precision: Precision = "float32",
        compiled: bool = False,
        known: str = "",
    ) -> "Tokenizer":
        """Load a tokenizer from its folder.

        Args:
            path: The folder, or the name of a tokenizer of another package.
            device: Where to compute.
            precision: Float32 is the default, because bfloat16 changes a few per cent of the codes.
            compiled: Compile the encoder with torch.compile, once for every batch size.
            known: A stored fingerprint. If an earlier version gave it to this tokenizer, it is its `fingerprint`.

        Raises:
            InputError: The folder holds no tokenizer, or its weights do not fit its config.
        """
        place = pick_device(device, InputError)
        if (net := checkpoint.load_config(path).model).kind:
            return PluginTokenizer(net, place, resolve_precision(precision, place), from_file=not plugin_name(path))
        config, model = checkpoint.load_model(path)
        fingerprint = checkpoint.fingerprint(path, known)
        return cls(config.model, model, fingerprint, place, resolve_precision(precision, place), compiled)

    def _autocast(self) -> torch.autocast:
        return make_autocast(self._device, self._precision)

    def _exact_convolutions(self) -> Any:
        # By default torch's float32 convolutions are TF32 on a GPU, which gives other codes. Other settings are kept.
        cudnn = torch.backends.cudnn
        return cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)

    def encode(self, pictures: Sequence[npt.NDArray[Any]]) -> Codes:
        """Return the codes [N, h, w], in raster order, of pictures of one modality at `config.resolution`."""
        return self.encode_async(pictures)()[0]

    @torch.inference_mode()
    def encode_async(
        self,
        pictures: Sequence[npt.NDArray[Any]],
        sides: Sequence[int] = (),
        scales_from: ScalesFrom = "quantised",
    ) -> Callable[[], list[Codes]]:
        """Start encoding, and return a function that waits for the codes; a GPU computes them meanwhile.

        Args:
            pictures: N pictures of one modality at `config.resolution`.
            sides: Sides of coarser scales, see `scale_codes`.
            scales_from: What is pooled for them.

        Returns:
            A function that returns codes [N, h, w], then [N, S, S] for each side, all from one encoder pass: uint16, or
            uint32 for a codebook above 65,536 entries.

        Raises:
            InputError: A label is not below `n_labels`, depth is not in [0, 1], or `scales_from` is no choice.
        """
        check_value("scales_from", scales_from, ScalesFrom, InputError)
        dtype = code_dtype(self.config.codebook_size)
        x = to_input(pictures, self.config, self._device).contiguous(memory_format=torch.channels_last)
        with self._autocast(), self._exact_convolutions():
            found = self._encode_scales(x, tuple(sides), scales_from)
        if self._device.type == "cpu":
            return lambda: [codes.numpy().astype(dtype) for codes in found]
        # int32, because torch has no arithmetic in uint16; the copy is complete when the event is.
        copies = [codes.to(torch.int32).to("cpu", non_blocking=True) for codes in found]
        # Blocking, because a thread that waits otherwise keeps a core busy, which decodes pictures meanwhile.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record()

        def finish() -> list[Codes]:
            copied.synchronize()
            return [codes.numpy().astype(dtype) for codes in copies]

        return finish

    @torch.inference_mode()
    def rescale(self, codes_NHW: npt.NDArray[Any], side: int) -> Codes:
        """Return the codes [N, S, S] of a coarser side, from codes [N, h, w] and the codebook; see `pooled_codes`."""
        found = [np.empty((0, side, side), code_dtype(self.config.codebook_size))]
        for start in range(0, len(codes_NHW), _DECODED):
            codes = torch.from_numpy(codes_NHW[start : start + _DECODED].astype(np.int64)).to(self._device)
            with self._autocast():
                pooled = pooled_codes(codes, self._model.quantize, side)
            found.append(pooled.cpu().numpy().astype(found[0].dtype))
        return np.concatenate(found)

    @torch.inference_mode()
    def nearest_codes(self, code: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the other codes that are nearest to one in the codebook, as the quantiser compares vectors with codes.

        Returns:
            The codes [count], nearest first, and their squared Euclidean distances; for the quantiser "ibq", their
            negative dot products.

        Raises:
            InputError: The code is not in the codebook, or the codebook is that of another package.
        """
        self._check_code(code)
        codebook_KD = self._model.quantize.codebook_on(self._device)
        with torch.autocast(self._device.type, enabled=False):
            distances_K = self._model.quantize.distances(codebook_KD[code], codebook_KD)
        nearest = torch.sort(distances_K, stable=True).indices  # among equals, the lowest number
        nearest = nearest[nearest != code][:count]
        return nearest.cpu().numpy(), distances_K[nearest].cpu().numpy()

    def _check_code(self, code: int) -> None:
        if not 0 <= code < self.config.codebook_size:
            raise InputError(f"code {code} is not in the codebook of {self.config.codebook_size}: other tokenizer?")

    @torch.inference_mode()
    def decode(self, codes_NHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the pictures of codes [N, h, w], as `to_pictures` does: RGB, label maps or depth in [0, 1].

        Raises:
            InputError: A code is not in the codebook.
        """
        self._check_code(int(codes_NHW.max(initial=0)))
        return np.concatenate([
            self._decode(codes_NHW[start : start + _DECODED]) for start in range(0, max(1, len(codes_NHW)), _DECODED)
        ])  # fmt: skip

    def _decode(self, codes_NHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        codes = torch.from_numpy(codes_NHW.astype(np.int64)).to(self._device)
        with self._autocast():
            return to_pictures(self._model.decode(codes), self.config)


class PluginTokenizer(Tokenizer):
    """A tokenizer of another package; see :class:`vqgan.plugin_tokenizer.PictureTokenizer`."""

    def __init__(self, config: ModelConfig, device: torch.device, precision: Autocast, *, from_file: bool) -> None:
        """Make the tokenizer that a config names.

        Raises:
            InputError: It cannot be made, or is another one than the config describes.
        """
        self.config, self.fingerprint = config, config.plugin_fingerprint
        self._plugin = load_plugin(config.kind, device.type, precision, from_file=from_file)
        found = interface(self._plugin, config.kind)
        if found != config:
            raise InputError(
                f"the tokenizer {config.kind!r} is another one than that of the codes (fingerprint "
                f"{found.plugin_fingerprint!r}, grid {found.grid}; then {self.fingerprint!r}, {config.grid}): "
                "use the version that made them"
            )

    def encode_async(
        self,
        pictures: Sequence[npt.NDArray[Any]],
        sides: Sequence[int] = (),
        scales_from: ScalesFrom = "quantised",
    ) -> Callable[[], list[Codes]]:
        """Encode, and return a function that returns the codes; see :meth:`Tokenizer.encode_async`."""
        if sides:
            raise InputError(f"the tokenizer {self.config.kind!r} has no coarser scales: leave scales empty")
        codes_Nhw = encode_with(self._plugin, self.config, np.stack(pictures))
        return lambda: [codes_Nhw.astype(code_dtype(self.config.codebook_size))]

    def rescale(self, codes_NHW: npt.NDArray[Any], side: int) -> Codes:
        """Refuse: the codebook is that of another package."""
        raise InputError(f"the tokenizer {self.config.kind!r} has no coarser scales: add none")

    def nearest_codes(self, code: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Refuse: the codebook is that of another package."""
        raise InputError(f"the tokenizer {self.config.kind!r} does not show its code vectors: it has no nearest codes")

    def _decode(self, codes_NHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return decode_with(self._plugin, self.config, codes_NHW.astype(np.int64))
