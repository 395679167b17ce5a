"""Pooling rules and the memory count, against numbers published for known networks."""

from __future__ import annotations

from medseg3d.planning.memory import feature_map_elements
from medseg3d.planning.planner import SpacingRule
from medseg3d.planning.spacing import median_shape, target_spacing
from medseg3d.planning.topology import derive_topology

RULE = SpacingRule(percentile=50, coarse_percentile=10, anisotropy_threshold=3.0, single_slice_first=True, resolution_multiplier=1.0)
FEATURES_3D, FEATURES_2D = (32, 64, 128, 256, 320, 320), (32, 64, 128, 256, 512, 512, 512)


def test_residual_networks_count_as_published() -> None:
    strides_3d, strides_2d = ((1,) * 3, *((2,) * 3,) * 5), ((1,) * 2, *((2,) * 2,) * 6)
    blocks = (1, 3, 4, 6, 6, 6, 6)
    count_3d = feature_map_elements(
        "residual_unet", patch_size=(128,) * 3, strides=strides_3d, features=FEATURES_3D,
        encoder_blocks=blocks[:6], decoder_blocks=(1,) * 5, num_classes=3, deep_supervision=True,
    )  # fmt: skip
    count_2d = feature_map_elements(
        "residual_unet", patch_size=(512,) * 2, strides=strides_2d, features=FEATURES_2D,
        encoder_blocks=blocks, decoder_blocks=(1,) * 6, num_classes=3, deep_supervision=True,
    )  # fmt: skip
    assert (count_3d, count_2d) == (558_319_104, 129_793_792)


def test_a_lone_axis_is_pooled_only_from_twelve_voxels_on() -> None:
    assert derive_topology((5, 1, 5), (4, 11, 4)).num_stages == 1
    assert derive_topology((5, 1, 5), (4, 12, 4)).divisor == (1, 2, 1)


def test_fractional_sizes_are_padded_up() -> None:
    assert derive_topology((1, 1, 1), (36.5, 7.5, 8.5)).patch_size == (40, 8, 10)


def test_thick_and_few_slices_take_the_tenth_percentile() -> None:
    spacings = tuple((float(z), 1.0, 1.0) for z in range(5, 16))
    target = target_spacing(spacings, ((10, 256, 256),) * 11, RULE)
    assert target.value == (6.0, 1.0, 1.0)
    assert "thick slices: yes, few slices: yes" in target.reasons[0].inputs
    many = target_spacing(spacings, ((200, 256, 256),) * 11, RULE)
    assert many.value == (10.0, 1.0, 1.0)
    assert "thick slices: yes, few slices: no" in many.reasons[0].inputs
    # The refined axis stays the coarsest.
    mixed = (*((0.5, 1.0, 1.0),) * 3, *((8.0, 1.0, 1.0),) * 6)
    assert target_spacing(mixed, ((10, 256, 256),) * 9, RULE).value == (1.0 + 1e-5, 1.0, 1.0)


def test_the_median_shape_keeps_halves_and_is_never_zero() -> None:
    assert median_shape(((1.0,) * 3,) * 2, ((10, 4, 1), (11, 4, 1)), (1.0, 1.0, 5.0)) == (10.5, 4.0, 1.0)
