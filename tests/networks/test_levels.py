"""All levels of a network in one pass give the bits that each gives alone; networks without levels say so."""

from __future__ import annotations

import pytest
import torch

from medseg3d.networks.build import build_network
from medseg3d.networks.levels import EveryLevel, Levelled, levels_of, set_level
from tests.networks.test_published_networks import plan


@pytest.mark.parametrize("prediction", ["level", "mean"])
@pytest.mark.parametrize("skips", ["dense", "shared"])
def test_every_level_at_once_is_each_level_alone(prediction: str, skips: str) -> None:
    made = plan("unet_plus_plus", (4, 6, 8), dimensions=2, classes=3, deep=True, skips=skips, prediction=prediction)
    network = build_network(made, generator=torch.Generator().manual_seed(0)).eval()
    assert isinstance(network, Levelled)
    x = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = EveryLevel(network)(x).split(3, 1)
        assert levels_of(network) == (1, 2)
        for level, found in zip((2, 1), together, strict=True):
            set_level(network, level)
            assert torch.equal(network(x), found)


def test_networks_without_levels_have_none_to_choose() -> None:
    for made in (plan("swiftnet", (4, 6, 8, 8), dimensions=2), plan("unet_plus_plus", (4, 6, 8), dimensions=2, deep=False)):
        network = build_network(made)
        assert levels_of(network) == ()
    with pytest.raises(ValueError, match="level 7"):
        set_level(network, 7)
