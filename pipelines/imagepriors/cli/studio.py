"""`imagepriors studio`."""

from pathlib import Path

import tyro


def studio(
    places: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/demo"),),
    *,
    port: int = 7860,
    share: bool = False,
    public: bool = False,
    open: bool = False,
    export: Path | None = None,
) -> str:
    """Serve a page on which to draw with priors and to look into their tokens.

    Args:
        places: Run folders, priors, tokenizers, token shards, or their addresses on the Hub (hf://OWNER/NAME).
        port: Port of this machine; 0 chooses a free one.
        share: Listen on all network addresses of this machine, so that everyone who reaches it and knows the key in the
            printed link can draw with its models and see the shards. Without it, only this machine can open the page.
        public: Listen on all network addresses, and require no key: for a container, behind a server that decides who
            may open the page.
        open: Open the page in the browser.
        export: Serve nothing, but write this folder: the page as a container image, for docker build or for a Space of
            Hugging Face.

    Example:
        imagepriors studio runs/photos
    """
    if export is not None:
        from imagepriors.studio.export import export_studio

        return export_studio(places, export)
    from imagepriors.studio.serve import serve

    return serve(places, port=port, share=share, public=public, browser=open)
