"""Priors and tokenizers whose networks are loaded once, on first use, and of which memory holds a limited part."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imagepriors.api.priors import ImagePrior
from imagepriors.api.tokenizers import ImageTokenizer
from runkit.machine import memory_bytes

if TYPE_CHECKING:
    from codeprior.model import Prior
    from vqgan.tokenizer import Tokenizer

_T = TypeVar("_T")
_SHARE = 4
"""Networks take at most the memory of this machine divided by this."""


class Networks:
    """Loads networks: one at a time, each once, also when several threads ask for it; drops the least recently used.

    A network that is loaded is returned at once, also while another is being loaded.

    Args:
        most_bytes: Bytes of weights that are kept, and one network in any case; default: a quarter of the memory.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = memory_bytes()[0] // _SHARE if most_bytes is None else most_bytes
        self._loading, self._lock = threading.RLock(), threading.Lock()
        self._bytes: dict[Any, int] = {}

    def get(self, part: "StudioPrior | StudioTokenizer", load: Callable[[], _T]) -> _T:
        """Return the network of a part."""
        found: _T | None = part.__dict__.get("loaded")
        if found is None:
            with self._loading:
                found = load()
        with self._lock:
            part.__dict__["loaded"] = found  # another thread may have dropped it
            self._bytes[part] = self._bytes.pop(part, 0) or _size(part.folder)
            while len(self._bytes) > 1 and sum(self._bytes.values()) > self._most_bytes:
                oldest = next(iter(self._bytes))
                del self._bytes[oldest]
                oldest.__dict__.pop("loaded", None)
            return found


class StudioPrior(ImagePrior):
    """A prior whose network is one of several in memory."""

    def __init__(self, folder: Path, networks: Networks) -> None:
        super().__init__(folder)
        self._networks = networks

    @property
    def loaded(self) -> "Prior":
        """The transformer with its weights, in evaluation mode."""
        return self._networks.get(self, lambda: super(StudioPrior, self).loaded)


class StudioTokenizer(ImageTokenizer):
    """A tokenizer whose network is one of several in memory."""

    def __init__(self, folder: Path, networks: Networks) -> None:
        super().__init__(folder)
        self._networks = networks

    @property
    def loaded(self) -> "Tokenizer":
        """The network with its weights."""
        return self._networks.get(self, lambda: super(StudioTokenizer, self).loaded)


def _size(folder: Path) -> int:
    """Bytes of the weights; of those of another package, unknown, 0."""
    return max((path.stat().st_size for path in folder.glob("**/model.safetensors")), default=0)
