"""Write docs/reference/command-line.md from the records of options."""

from __future__ import annotations

from pathlib import Path

from medseg3d.commandline.reference import reference
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.files import write_text

PAGE = Path(__file__).parents[1] / "docs/reference/command-line.md"

if __name__ == "__main__":
    write_text(PAGE, reference(COMMANDS))
