"""``python -m medseg3d``."""

import sys

from medseg3d.commandline.cli import main

sys.exit(main())
