"""``python -m medseg3d``."""

import sys

from medseg3d.cli import main

sys.exit(main())
