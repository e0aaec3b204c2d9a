"""`python -m fastconv1d`: the command line."""

import sys

from fastconv1d.cli import main

sys.exit(main())
