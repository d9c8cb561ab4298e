"""The integer type in which code indices are stored: the smallest unsigned type that holds a codebook's."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Codes: TypeAlias = "NDArray[np.unsignedinteger[Any]]"
"""Code indices of any codebook, uint16 or uint32."""

MAX_CODEBOOK_SIZE = 1 << 24
"""Most entries of a codebook; far above real ones, so that a typing error is not followed by a huge allocation."""


def code_dtype(codebook_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return uint16 for a codebook of at most 65,536 entries, else uint32."""
    return np.dtype(np.uint16) if codebook_size <= 1 << 16 else np.dtype(np.uint32)
