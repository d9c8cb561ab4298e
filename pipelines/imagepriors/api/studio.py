"""The studio from Python."""

from typing import TYPE_CHECKING

from imagepriors.api.defaults import PathLike

if TYPE_CHECKING:
    from imagepriors.studio.serve import Studio


def open_studio(*places: PathLike, port: int = 0, share: bool = False) -> "Studio":
    """Serve a page on which to draw with priors and to look into their tokens, and return at once.

    >>> studio = ip.open_studio("runs/demo")
    >>> print(studio.url)
    >>> studio.close()

    Args:
        *places: Run folders, priors, tokenizers, token shards, or their addresses on the Hub (hf://OWNER/NAME).
        port: Port of this machine; 0 chooses a free one.
        share: Listen on all network addresses of this machine, and require the key in the link.

    Returns:
        The running page; its ``url`` is the link to open. It ends with the process, with :meth:`close`, or with the
        block of a ``with`` statement.

    Raises:
        UserError: A place holds nothing to show, the port is taken, or the packages are missing.
    """
    from imagepriors.studio.serve import Studio

    return Studio(places, port, share=share)
