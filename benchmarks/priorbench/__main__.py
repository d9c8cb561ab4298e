"""`python -m priorbench SUITE …`: measure against the rivals on this machine."""

import sys
from collections.abc import Sequence

import tyro

from priorbench import bench
from runkit.errors import user_message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites that the arguments name; returns the exit code: 0 done, 2 bad input."""
    try:
        print(tyro.cli(bench, prog="python -m priorbench", args=argv))
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"priorbench: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
