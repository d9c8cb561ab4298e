"""`python -m priorbench SUITE …`: measure against the rivals on this machine."""

import sys

import tyro

from priorbench import bench
from runkit.errors import user_message

if __name__ == "__main__":
    try:
        print(tyro.cli(bench, prog="python -m priorbench"))
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"priorbench: {message}", file=sys.stderr)
        sys.exit(2)
