"""Run the command line as ``python -m adr``."""

import sys

from adr.console import main

sys.exit(main())
