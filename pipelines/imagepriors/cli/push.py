"""`imagepriors push`."""

from pathlib import Path

import tyro


def push(
    folder: tyro.conf.Positional[Path],
    to: tyro.conf.Positional[str],
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Publish a tokenizer, a prior or token shards on the Hugging Face Hub.

    Args:
        folder: Run folder of a tokenizer or a prior, or folder of token shards.
        to: hf://OWNER/NAME, perhaps with a folder after it; the repository is created if it does not exist. Shards go
            to hf://datasets/OWNER/NAME.
        private: Create a private repository.
        revision: The branch to write; default: main.
        message: Message of the commit.
        license: Licence of a tokenizer or a prior for its card, such as mit or cc-by-4.0.

    Example:
        imagepriors push runs/photos/tokenizer hf://user/photos-tokenizer --private
    """
    import imagepriors as ip

    return ip.push(folder, to, private=private, revision=revision, message=message, license=license)
