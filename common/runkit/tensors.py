"""Tensors in safetensors files with the sha256 of their content. This module imports torch.

Any safetensors reader can read them. Files without the sha256, of other programs and earlier versions, are read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from runkit.errors import UserError
from runkit.files import write_file
from runkit.retries import patient

_DIGEST = "sha256"
"""Key in the metadata. save_tensors writes no other, because safetensors writes several in random order."""
_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
"""safetensors' names of the types. A file stores the last of them first."""
_POSITION = {dtype: position for position, dtype in enumerate(_NAMES)}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], error: type[UserError] = UserError) -> None:
    """Write a file of tensors atomically: the bytes of :func:`pack_tensors`, without a copy of them.

    safetensors' own writer is not used, because its temporary files cannot be recognised after a kill.

    Args:
        path: The file.
        tensors: Name → tensor, on any device.
        error: Class of the error.

    Raises:
        UserError: It cannot be written; no part of it is left.
    """
    content = dict(sorted(_plain(tensors).items(), key=lambda item: (-_POSITION[item[1].dtype], item[0])))
    try:
        write_file(path, _header(content), *map(_bytes, content.values()))
    except UserError as problem:
        raise error(str(problem)) from problem


def pack_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file; equal tensors and metadata give equal bytes."""
    content = _plain(tensors)
    packed = save(content, metadata={_DIGEST: _digest(content), **(metadata or {})})
    if not metadata:
        return packed
    size = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    assert len(text) == size
    return packed[:8] + text + packed[8 + size :]


def bare_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file without metadata, which depends on the tensors only."""
    return save(_plain(tensors))


@patient
def load_tensors(path: Path, error: type[UserError] = UserError, *, verify: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file into main memory.

    Args:
        path: The file.
        error: Class of the error.
        verify: Compare the content with the sha256 in the file, if it has one.

    Raises:
        UserError: It is missing, damaged or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, SafetensorError, ValueError) as problem:
        raise error(f"{path} cannot be read ({problem}): it is damaged, or not a safetensors file") from problem
    if verify and digest is not None and digest != _digest(tensors):
        raise error(f"{path} is damaged: its content and its sha256 differ")
    return tensors


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinite value; None if all are finite."""
    for name, tensor in sorted(tensors.items()):
        # A sum is ten times as fast. It is finite only if all values are, but it may overflow.
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or tensor.isfinite().all()):
            return name
    return None


def check_finite(tensors: Mapping[str, Tensor], path: Path, error: type[UserError] = UserError) -> None:
    """Refuse tensors of a file that are not finite.

    Raises:
        UserError: A tensor is not finite; the message names the first.
    """
    if (name := first_non_finite(tensors)) is not None:
        raise error(
            f"{path}: {name} has values that are NaN or infinite: the file is damaged, or its training diverged"
        )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _bytes(tensor: Tensor) -> memoryview:
    """Return a view of the bytes of a contiguous tensor in main memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(content: Mapping[str, Tensor]) -> bytes:
    """Return the header of a safetensors file of these tensors."""
    fields: dict[str, Any] = {"__metadata__": {_DIGEST: _digest(content)}}
    end = 0
    for name, tensor in content.items():
        start, end = end, end + tensor.nbytes
        fields[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    size = -(-len(text) // 8) * 8
    return size.to_bytes(8, "little") + text.ljust(size)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the sorted names, types, shapes and bytes of tensors in main memory."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(_bytes(tensor.contiguous()))
    return total.hexdigest()
