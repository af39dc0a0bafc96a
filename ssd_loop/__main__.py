"""``python -m ssd_loop``."""

import sys

from ssd_loop.cli import main

sys.exit(main())
