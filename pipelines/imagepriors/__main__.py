"""`python -m imagepriors`: the command line."""

import sys

from imagepriors.cli import main

sys.exit(main())
