"""Reading of weights from files that may be damaged or malicious. torch is imported when a file is read.

A pickle is a program, of which torch's weights-only unpickler allows a harmless subset. The subset here is smaller:
containers and tensors, and inert placeholders for the classes of a few packages that training checkpoints mention.
Of TorchScript archives the tensors are read and the code is not. Nothing in a file is executed, and the memory is in
proportion to the size of the file.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = frozenset(
    {
        "builtins.set", "collections.Counter", "collections.OrderedDict", "torch.Size", "torch.device",
        "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    }
)  # fmt: skip
"""Names that a pickle may use: containers and tensors. torch also allows `_codecs.encode`, which can double a string
repeatedly, and functions that allocate any size."""
_STAND_INS = ("argparse", "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "taming", "ldm")
"""Packages whose classes a training checkpoint may mention; their instances become inert placeholders."""
_NESTED = ("ema", "state_dict", "model")
"""Keys of the weights in training checkpoints: a moving average (LlamaGen), those of Lightning and of torchvision."""
_SCRIPTED = "__torch__"
"""Package of the classes in a TorchScript archive; their instances become placeholders that keep their tensors."""
_SCRIPT_LISTS = "torch.jit._pickle."
"""Functions that make the lists of a TorchScript archive; a placeholder takes the place of each list."""
_LEGACY_PICKLES = 5
"""Pickles in a file of torch before 1.6, followed by raw bytes: magic number, protocol, system, object, storages."""
_ZIP = b"PK\x03\x04"
"""First bytes of files since torch 1.6, by which torch distinguishes the formats."""
_FREE_BYTES = 64 * 2**20
_FACTOR = 4
"""A file may take this many times its size in memory, or `_FREE_BYTES`. torch does not compress, and shared weights
count once per layer."""


class _Inert:
    """Placeholder of a class that the file mentions; it accepts any arguments and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Module(_Inert):
    """Placeholder of a module in a TorchScript archive; it keeps its tensors and modules."""

    parts: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.parts = state if isinstance(state, Mapping) else {}


def load_weights(path: Path, error: type[UserError] = UserError) -> dict[str, Tensor]:
    """Return the tensors of a file of torch (either format) or safetensors, on the CPU. Nothing in it is run.

    Args:
        path: The file: a state dict; a checkpoint that has one as "ema", "state_dict" or "model"; or a TorchScript
            archive, of which the parameters and all buffers are returned.
        error: Class of the error.

    Raises:
        UserError: The file does not exist, has no weights, mentions a class that is not allowed, or would exceed 4
            times its size and 64 MiB in memory.
    """
    if not path.is_file():
        raise error(f"{path} does not exist: pass the path of a file of weights, such as last.ckpt")
    try:
        data = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except MemoryError:
        raise error(f"{path} cannot be read as plain weights: there is too little memory for what it holds") from None
    except Exception as problem:  # damaged bytes may raise anything
        reason = (str(problem) or repr(problem)).splitlines()[0]
        raise error(f"{path} cannot be read as plain weights: {reason}") from problem
    return _tensors(path, data, error)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> Any:
    import torch

    names = {name for pickle in _pickles(path) for name in _names_in(pickle)}
    dtypes = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
    stand_ins = {name: _Inert for name in names if name.split(".")[0] in _STAND_INS or name.startswith(_SCRIPT_LISTS)}
    stand_ins |= {name: _Module for name in names if name.split(".")[0] == _SCRIPTED}
    hostile = {
        name
        for name in names - _PLAIN - dtypes - stand_ins.keys()
        if not (name.startswith("torch.") and name.endswith("Storage") and name.count(".") == 1)
    }
    if hostile:
        raise ValueError(
            f"it names {', '.join(sorted(hostile))}, which no weights need. Nothing of it was run: "
            "use a file from a source that you trust"
        )
    inert: list[Any] = [(type(name.rsplit(".", 1)[-1], (base,), {}), name) for name, base in stand_ins.items()]
    with torch.serialization.safe_globals(inert):
        found = torch.load(_without_code(path), map_location="cpu", weights_only=True)
    return dict(_tensors_of(found, "", set())) if isinstance(found, _Module) else found


def _without_code(path: Path) -> Path | IO[bytes]:
    """Return the file; of a TorchScript archive, which torch only reads as a program, a copy without the program."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not _is_program(member.filename)]
        if len(members) == len(archive.infolist()):
            return path
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as bare:
            for member in members:
                bare.writestr(member.filename, archive.read(member))
    copy.seek(0)
    return copy


def _is_program(record: str) -> bool:
    """Return whether a record of an archive is code, or its constants, by which torch recognises TorchScript."""
    parts = record.split("/")
    return parts[1:2] == ["code"] or parts[1:] == ["constants.pkl"]


def _tensors_of(module: _Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a module and its parts by name; each part once, because a file may contain a cycle."""
    import torch

    seen.add(id(module))
    for name, value in module.parts.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module) and id(value) not in seen:
            yield from _tensors_of(value, f"{prefix}{name}.", seen)


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the file's pickles; each must be read to its end before the next one."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                yield file
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_size(path, sum(member.file_size for member in members))
        # With bytes before the first member, torch's reader could find another table of contents.
        if min((member.header_offset for member in members), default=0) > 0:
            raise ValueError("it has bytes before its first record")
        for member in members:
            if member.filename.endswith(".pkl") and not _is_program(member.filename):
                yield io.BytesIO(archive.read(member))


def _names_in(pickle: IO[bytes]) -> Iterator[str]:
    """Yield the classes and functions that a pickle names."""
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
        elif operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it has the operation {operation.name}, which torch never writes. Nothing of it was run")


def _check_size(path: Path, nbytes: int) -> None:
    size = path.stat().st_size
    if nbytes > max(_FREE_BYTES, _FACTOR * size):
        raise ValueError(
            f"its {size:,} bytes would become {nbytes:,}, more than {_FACTOR} times as many: it is damaged, or was "
            "made to fill the memory"
        )


def _tensors(path: Path, data: Any, error: type[UserError]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint after checking their kind and size."""
    import torch

    for name in _NESTED:
        if isinstance(data, Mapping) and isinstance(data.get(name), Mapping):
            data = data[name]
            break
    if not isinstance(data, Mapping) or not data:
        raise error(f"{path} holds no state_dict of tensors: is it a model's checkpoint?")
    for name, value in data.items():
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or not isinstance(name, str):
            kind = type(value).__name__
            raise error(f"{path} holds no state_dict of tensors ({name!r} is a {kind}): is it a model's checkpoint?")
    try:
        # Not the size of the storages, because a tensor of stride 0 is larger than its storage.
        _check_size(path, sum(value.numel() * value.element_size() for value in data.values()))
    except ValueError as problem:
        raise error(f"{path} cannot be read as plain weights: {problem}") from None
    return {name: value.detach() for name, value in data.items()}


def download_weights(url: str, *, sha256: str = "", otherwise: str, error: type[UserError] = UserError) -> Path:
    """Return the path of a URL's file in torch's cache, downloaded if it is missing. The file is not trusted.

    Args:
        url: The URL.
        sha256: First hex digits of its sha256, checked after a download.
        otherwise: An alternative to copying the file into the cache, for the message.
        error: Class of the error.

    Raises:
        UserError: It cannot be downloaded.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sha256 or None, progress=False)
        except (OSError, RuntimeError) as problem:
            raise error(
                f"{path.name} could not be downloaded ({problem}): put the file into {path.parent}, or {otherwise}"
            ) from problem
    return path
