"""Samples of a prior.

Axes: N samples, C tokens of a condition, h × w the grid of codes.
"""

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeprior.config import PriorError
from imagepriors.api.tokenizers import ImageTokenizer
from runkit.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class SampledImages(Sequence["Image.Image"]):
    """Samples of a prior: their codes, and the images that the tokenizer decodes them to on first use."""

    def __init__(
        self,
        codes: npt.NDArray[np.int64],
        conditions: Mapping[str, npt.NDArray[np.int64]],
        tokenizer: ImageTokenizer | None,
    ) -> None:
        self.codes = codes
        """int64 [N, h, w] in raster order."""
        self.conditions = dict(conditions)
        """Class ids [N] and codes of other conditions [N, C], by name."""
        self._tokenizer = tokenizer

    @functools.cached_property
    def images(self) -> "list[Image.Image]":
        """PIL images.

        Raises:
            PriorError: The prior was loaded without a tokenizer.
        """
        if self._tokenizer is None:
            raise PriorError("these codes have no tokenizer: pass tokenizer or shards to load_prior, or use .codes")
        return self._tokenizer.decode(self.codes)  # type: ignore[return-value]  # a batch gives a list

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]

    def __iter__(self) -> "Iterator[Image.Image]":
        return iter(self.images)

    def __repr__(self) -> str:
        return f"SampledImages({len(self)} of {self.codes.shape[1]}×{self.codes.shape[2]} codes)"

    def grid(self, columns: int = 0, *, scale: int = 0) -> "Image.Image":
        """All images in one.

        Args:
            columns: Images per row; 0 chooses a square grid.
            scale: Enlargement; 0 makes each image about 96 pixels wide.
        """
        from imagepriors.reports.figures import picture_grid

        if columns < 0 or not isinstance(scale, int) or scale < 0 or not len(self):
            raise UserError(
                f"{len(self)} images, columns = {columns}, scale = {scale}: pass images, and integers from 0"
            )
        images = np.stack([np.asarray(image) for image in self.images])
        columns = columns or int(np.ceil(np.sqrt(len(images))))
        return picture_grid(images, columns, scale=scale or max(1, round(96 / images.shape[2])))

    def _repr_png_(self) -> bytes | None:
        """PNG that a notebook displays, if the tokenizer is known."""
        from imagepriors.reports.figures import png_bytes

        return png_bytes(self.grid()) if self._tokenizer is not None and len(self) else None


def sample_count(n: Any) -> int:
    """A number of samples as an int.

    Raises:
        PriorError: It is not a whole number.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise PriorError(f"n is {n!r}: pass a whole number")
    return operator.index(n)


def code_size(size: Any) -> tuple[int, int] | None:
    """Rows and columns of codes, or None.

    Raises:
        PriorError: They are not two whole numbers.
    """
    if size is None:
        return None
    try:
        rows, columns = map(operator.index, size)
    except (TypeError, ValueError):
        raise PriorError(f"size is {size!r}: pass the rows and columns of codes, such as (24, 24)") from None
    return rows, columns
