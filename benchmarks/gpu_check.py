"""Check and measure this project on a GPU: `python3 benchmarks/gpu_check.py`; --help lists the options.

It runs from a checkout, also where the project is not installed.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = [str(ROOT / name) for name in ("common", "stage1", "tokenize", "stage2", "pipelines", "benchmarks")]

if __name__ == "__main__":
    sys.path[:1] = CONTAINERS  # instead of this folder
    # For the processes that it starts, and those that Ray starts.
    os.environ["PYTHONPATH"] = os.pathsep.join([*CONTAINERS, *filter(None, [os.environ.get("PYTHONPATH")])])
    from priorbench.gpu.runner import main

    sys.exit(main())
