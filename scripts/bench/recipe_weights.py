"""Put the last or the averaged weights of a finished fold in the place of those that it kept: ``recipe_weights.py FOLD last|averaged``."""

from __future__ import annotations

import sys
from pathlib import Path

from medseg3d.models.checkpoints import load_tensors, read_card, save_weight_tensors
from medseg3d.training.state import BEST, LAST


def main(fold: Path, variant: str) -> None:
    """Write ``weights.safetensors`` anew; its card stays."""
    tensors, _ = load_tensors(fold / LAST)
    beginning = {"last": "network.", "averaged": "averaged."}[variant]
    chosen = {name.removeprefix(beginning): tensor for name, tensor in tensors.items() if name.startswith(beginning)}
    save_weight_tensors(fold / BEST, chosen, read_card(fold / BEST))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
