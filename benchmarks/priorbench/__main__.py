"""Run the suites of the benchmarks: `python -m priorbench SUITE …`."""

import sys
from collections.abc import Sequence

import tyro

from imagepriors.cli import print_answer
from priorbench import bench


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites that the arguments name; returns the exit code: 0 done, 2 bad input."""
    return print_answer(lambda: str(tyro.cli(bench, prog="python -m priorbench", args=argv)), "priorbench")


if __name__ == "__main__":
    sys.exit(main())
