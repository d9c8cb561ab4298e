"""`imagepriors studio`."""

from pathlib import Path

import tyro


def studio(
    places: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/demo"),),
    *,
    port: int = 7860,
    share: bool = False,
    open: bool = False,
) -> str:
    """Serve a page on which to draw with priors and to look into tokens, until Ctrl-C.

    Args:
        places: Run folders, priors, tokenizers, token shards, or their addresses on the Hub (hf://OWNER/NAME).
        port: Port of this machine; 0 chooses a free one.
        share: Listen on all network addresses of this machine, so that everyone who reaches it and knows the key in the
            printed link can draw with its models and see the shards. Without it, only this machine can open the page.
        open: Open the page in the browser.

    Example:
        imagepriors studio runs/photos
    """
    from imagepriors.studio.serve import serve

    return serve(places, port=port, share=share, browser=open)
