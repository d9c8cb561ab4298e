"""`python -m priorbench SUITE …`: measure against the rivals on this machine."""

import sys

import tyro

from imagepriors.cli import print_answer
from priorbench import bench

if __name__ == "__main__":
    sys.exit(print_answer(lambda: str(tyro.cli(bench, prog="python -m priorbench")), "priorbench"))
