"""Find, load and run pretrained networks that predict depth or labels of a picture.

Axes: B batch, C channels or classes, H W pixels of a picture, h w of a network's input or output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codeshards.format.files import sha256_file
from imagepriors.annotate.config import Kind
from runkit.devices import Device, pick_device
from runkit.jsonfiles import parse_json
from runkit.weights import download_weights, load_weights
from vqgan.cpu_kernels import resolve_precision
from vqgan.errors import InputError

DEFAULT_MODEL: dict[Kind, str] = {"depth": "Intel/dpt-large", "segmentation": "deeplabv3_resnet101"}
_MAX_LABELS = 256
_MAX_INPUT_PX = 2048 * 2048
"""Maximum number of input pixels: a very elongated picture, resized by its shorter side, would exhaust the memory."""
_CLASS_CHUNK = 16


def find_model(kind: Kind, name: str) -> Path:
    """Find the local folder or .pth file of a model, and download it if `name` is not a path.

    Raises:
        InputError: the path does not exist, or the download failed.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    if kind == "segmentation" and name in _torchvision_names():
        return _download_torchvision(name)
    if path.suffix in (".pt", ".pth") or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"model {name} does not exist: pass the path of a model, or its name on the hub")
    return _download_transformers(name)


def _download_torchvision(name: str) -> Path:
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    return download_weights(
        url,
        sha256=Path(url).stem.rpartition("-")[2],
        otherwise="pass the path of its .pth file as model",
        error=InputError,
    )


def _download_transformers(name: str) -> Path:
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.bin"]))
    except Exception as error:  # the hub's client raises errors of many types
        reason = str(error).splitlines()[0]
        raise InputError(
            f"there is no folder {name}, and the hub's {name} could not be downloaded ({reason}): pass as --model the "
            "folder of a copy (config.json, preprocessor_config.json, model.safetensors)"
        ) from error
    return folder


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of the files that determine a model's output."""
    if path.is_file():
        return sha256_file(path)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    files = [path / "config.json", path / "preprocessor_config.json", *weights]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


class Annotator:
    """A network with its pre- and postprocessing: `prepare` pictures, `infer` a batch, then `to_map` each output."""

    def __init__(
        self,
        kind: Kind,
        model: torch.nn.Module,
        prepare: Callable[[npt.NDArray[np.uint8]], Tensor],
        output: Callable[[Any], Tensor],
        label_names: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.kind = kind
        self.label_names = label_names
        """Name of each label of a mask; empty if the model has no names."""
        self._model = model.to(device).eval()
        self._prepare, self._output = prepare, output
        self._device, self._dtype = device, dtype

    @classmethod
    def load(
        cls,
        kind: Kind,
        path: Path,
        *,
        device: Device = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> Annotator:
        """Load a model from the path that :func:`find_model` returns.

        Raises:
            InputError: the path has no such model, weights are missing, or it has too many labels.
        """
        model, prepare, output, names = _from_file(kind, path) if path.is_file() else _from_folder(kind, path)
        place = pick_device(device, InputError)
        return cls(kind, model, prepare, output, names, place, getattr(torch, resolve_precision(precision, place)))

    def prepare(self, picture_HW3: npt.NDArray[np.uint8]) -> Tensor:
        """The network's input for one picture: float32 [3, h, w].

        Raises:
            InputError: the input would be too large.
        """
        input_3hw = self._prepare(picture_HW3)
        if input_3hw[0].numel() > _MAX_INPUT_PX:
            size = f"{picture_HW3.shape[1]}×{picture_HW3.shape[0]}"
            raise InputError(f"a picture of {size} becomes an input of {tuple(input_3hw.shape[1:])}: too elongated")
        return input_3hw

    @torch.inference_mode()
    def infer(self, inputs: list[Tensor]) -> Tensor:
        """Run the network on inputs of one size: depth [B, h, w], or logits [B, C, h, w]; float32."""
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            return self._output(self._model(torch.stack(inputs).to(self._device))).float()

    @torch.inference_mode()
    def to_map(self, output: Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
        """Convert an output to a map of a picture's size (height, width): depth float32 [H, W] or labels uint8 [H, W].

        Depth is upsampled bicubic, logits bilinear before the argmax, as in transformers' post-processing.

        Raises:
            InputError: the output is not finite, or the depth is constant.
        """
        if not torch.isfinite(output).all():
            raise InputError("the network's output is not finite for this picture")
        if self.kind == "segmentation":
            return upsampled_argmax(output, size).cpu().numpy()
        if output.min() == output.max():  # checked here, because upsampling adds rounding errors
            raise InputError(f"the network's depth is constant ({output.min():g} everywhere) for this picture")
        depth = F.interpolate(output[None, None], size, mode="bicubic", align_corners=False)[0, 0]
        return depth.cpu().numpy()


def upsampled_argmax(logits_Chw: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax over classes of the bilinearly upsampled logits, uint8 [H, W].

    Classes are upsampled in chunks: the 150 classes of ADE20K together take 7 GB for a photo of 12 megapixels.
    """
    best_HW = torch.full(size, -torch.inf, device=logits_Chw.device)
    label_HW = torch.zeros(size, dtype=torch.uint8, device=logits_Chw.device)
    for first in range(0, len(logits_Chw), _CLASS_CHUNK):
        chunk = logits_Chw[None, first : first + _CLASS_CHUNK]
        value_HW, place_HW = F.interpolate(chunk, size, mode="bilinear", align_corners=False)[0].max(0)
        better_HW = value_HW > best_HW
        best_HW = torch.where(better_HW, value_HW, best_HW)
        label_HW = torch.where(better_HW, (place_HW + first).to(torch.uint8), label_HW)
    return label_HW


_Parts = tuple[torch.nn.Module, Callable[[npt.NDArray[np.uint8]], Tensor], Callable[[Any], Tensor], tuple[str, ...]]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"this model needs transformers ({error}): pip install 'imagepriors[annotate]'") from error
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def _from_folder(kind: Kind, folder: Path) -> _Parts:
    """Load a folder that transformers' save_pretrained wrote."""
    _refuse_code(folder)
    library = _transformers()
    safe = any(folder.glob("*.safetensors"))
    for file in () if safe else folder.glob("*.bin"):
        load_weights(file, InputError)  # as transformers reads it, but with a limit on the unpacked size
    auto = library.AutoModelForDepthEstimation if kind == "depth" else library.AutoModelForSemanticSegmentation
    try:
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        processor = library.AutoImageProcessor.from_pretrained(folder, **given)
        model, info = auto.from_pretrained(
            folder, **given, output_loading_info=True, dtype=torch.float32, use_safetensors=safe, weights_only=True
        )
    except Exception as error:  # broken files raise errors of many types
        reason = (str(error) or repr(error)).splitlines()[0]
        raise InputError(
            f"{folder} does not hold a {kind} model that transformers can load ({reason}): it should be what "
            "save_pretrained wrote (config.json, preprocessor_config.json, model.safetensors)"
        ) from error
    if getattr(processor, "do_pad", False):
        raise InputError(f"{folder} pads its pictures, so that its maps would not line up with them: choose another")
    # Disable cropping, because the map must cover the whole picture.
    flags = {"do_center_crop": False} if hasattr(processor, "do_center_crop") else {}

    def prepare(picture_HW3: npt.NDArray[np.uint8]) -> Tensor:
        values: Tensor = processor(images=Image.fromarray(picture_HW3), return_tensors="pt", **flags)["pixel_values"]
        return values[0]

    def output(result: Any) -> Tensor:
        tensor: Tensor = result.predicted_depth if kind == "depth" else result.logits
        return tensor

    _check_missing(folder, model, info["missing_keys"], lambda: output(model(prepare(_PROBE)[None])))
    names = model.config.id2label if kind == "segmentation" else {}
    _check_labels(folder, len(names))
    return model, prepare, output, tuple(names[index] for index in sorted(names))


def _refuse_code(folder: Path) -> None:
    """Refuse a model with code of its own, before transformers asks on the terminal whether to run it."""
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and _names_code(parse_json(path.read_bytes(), path, InputError)):
            raise InputError(
                f"{path} names code of its own (auto_map), which is never run: choose a model whose network "
                "transformers has itself"
            )


def _names_code(value: Any) -> bool:
    """Whether a JSON value has the key auto_map at any depth; iterative, because a hostile value may be deep."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if "auto_map" in part:
                return True
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


_PROBE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@torch.inference_mode()
def _check_missing(folder: Path, model: torch.nn.Module, missing: Any, probe: Callable[[], Tensor]) -> None:
    """Refuse missing weights, unless the output does not depend on them (such as a layer of DPT's neck)."""
    if not missing:
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in missing:
        tensors[name].fill_(torch.nan)
    model.eval()
    if not torch.isfinite(probe()).all():
        raise InputError(f"{folder} lacks weights that the network needs, the first of {len(missing)}: {min(missing)}")


def _torchvision_names() -> list[str]:
    from torchvision.models import list_models, segmentation

    names: list[str] = list_models(module=segmentation)
    return names


def _from_file(kind: Kind, path: Path) -> _Parts:
    """Load a state dict of one of torchvision's segmentation models, which its keys identify."""
    from torchvision.models import get_model, get_model_weights

    if kind != "segmentation":
        raise InputError(f"{path} is a file: a depth model is a folder that save_pretrained wrote, or a hub name")
    state = load_weights(path, InputError)
    names_in_file = _weights(state)
    last = "classifier.low_classifier.weight"
    last = last if last in names_in_file else "classifier.4.weight"
    for name in _torchvision_names():
        with torch.device("meta"):
            keys = _weights(get_model(name, weights=None, weights_backbone=None).state_dict())
        if keys == names_in_file:
            break
    else:
        raise InputError(
            f"the weights in {path} are of none of torchvision's segmentation models {', '.join(_torchvision_names())}"
        )
    n_labels = state[last].shape[:1].numel()
    _check_labels(path, n_labels)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=n_labels)
    try:
        # Not strict, because batch counters and the auxiliary head are optional; the other keys are compared above.
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit torchvision's {name}: {error}") from error
    published = get_model_weights(name).DEFAULT
    names = tuple(published.meta["categories"]) if Path(published.url).name == path.name else ()
    transform = published.transforms()
    return model, lambda picture_HW3: transform(Image.fromarray(picture_HW3)), lambda result: result["out"], names


def _weights(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that determine a segmentation model's output."""
    return {key for key in state if not key.endswith("num_batches_tracked") and not key.startswith("aux_classifier.")}


def _check_labels(path: Path, count: int) -> None:
    if count > _MAX_LABELS:
        raise InputError(f"{path} has {count} labels: masks are 8-bit, choose a model with {_MAX_LABELS} or fewer")
