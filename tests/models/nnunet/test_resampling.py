"""Resampling functions with their arguments: the same rule for the axis apart, or refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.models.nnunet.resampling import resampling_of
from medseg3d.plan import Resampling
from medseg3d.preprocessing.resampling import coarse_axis

Json = dict[str, Any]
KINDS = ("data", "seg", "probabilities")


@pytest.fixture
def configuration(plans: Json) -> Json:
    return dict(plans["configurations"]["3d_fullres"])


def set_all(configuration: Json, **arguments: object) -> Json:
    for kind in KINDS:
        configuration[f"resampling_fn_{kind}_kwargs"] |= arguments
    return configuration


def axis_apart(force: bool | None, spacing: tuple[float, ...], new_spacing: tuple[float, ...]) -> int | None:
    """nnU-Net's rule, written down from its description: forced, the old spacing decides; else the first that is anisotropic."""
    deciding = [s for s in (spacing, new_spacing) if max(s) / min(s) > 3]
    if force is None:
        if not deciding:
            return None
        chosen = deciding[0]
    elif force:
        chosen = spacing
    else:
        return None
    return chosen.index(max(chosen)) if chosen.count(max(chosen)) == 1 else None


@pytest.mark.parametrize("force", [None, True, False])
def test_the_axis_apart_is_that_of_nnunet(force: bool | None, configuration: Json) -> None:
    threshold = resampling_of(set_all(configuration, force_separate_z=force), source="p").separate_threshold
    for values in product((0.5, 1.0, 4.0), repeat=6):
        spacing, new_spacing = values[:3], values[3:]
        assert coarse_axis(spacing, new_spacing, threshold) == axis_apart(force, spacing, new_spacing)


def test_a_threshold_and_orders_are_taken_over(configuration: Json) -> None:
    set_all(configuration, separate_z_anisotropy_threshold=2.5)
    configuration["resampling_fn_data_kwargs"] |= {"order": 1, "order_z": 3}
    configuration["resampling_fn_probabilities_kwargs"] |= {"order": 0, "order_z": 1}
    expected = Resampling(image_order=1, image_coarse_order=3, logits_order=0, logits_coarse_order=1, separate_threshold=2.5)
    assert resampling_of(configuration, source="p") == expected


def test_what_is_left_out_has_the_default_of_their_function(configuration: Json) -> None:
    for kind in KINDS:
        del configuration[f"resampling_fn_{kind}_kwargs"]["force_separate_z"]
    assert coarse_axis((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), resampling_of(configuration, source="p").separate_threshold) is None


@pytest.mark.parametrize("kind", KINDS)
def test_other_functions_are_refused_by_name(kind: str, configuration: Json) -> None:
    configuration[f"resampling_fn_{kind}"] = "resample_torch_fornnunet"
    with pytest.raises(UnsupportedError, match=f"resampling_fn_{kind} is resample_torch_fornnunet"):
        resampling_of(configuration, source="p")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("data", {"order": 2}),
        ("data", {"is_seg": True}),
        ("seg", {"order": 3}),
        ("seg", {"order_z": 1}),
        ("probabilities", {"order": 3}),
        ("data", {"force_separate_z": True}),
        ("data", {"memefficient": True}),
    ],
)
def test_arguments_that_cannot_be_said_exactly_are_refused(kind: str, arguments: Json, configuration: Json) -> None:
    configuration[f"resampling_fn_{kind}_kwargs"] |= arguments
    with pytest.raises(UnsupportedError, match=next(iter(arguments))):
        resampling_of(configuration, source="p")


def test_arguments_of_another_type_are_refused(configuration: Json) -> None:
    configuration["resampling_fn_data_kwargs"]["order"] = "cubic"
    with pytest.raises(InputError, match="order"):
        resampling_of(configuration, source="p")
