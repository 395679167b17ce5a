"""From the network's part of a plan to a torch module: one file per family, all built from the same record."""

from __future__ import annotations

from medseg3d.networks.build import NETWORKS, build_network, output_size
from medseg3d.networks.family import Family

__all__ = ["NETWORKS", "Family", "build_network", "output_size"]
