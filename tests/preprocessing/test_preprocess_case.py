"""A preprocessed case is cropped, normalized and resampled as the plan says, and its labels find the way back."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from medseg3d.errors import ChannelCountError, LabelValueError
from medseg3d.labels import Labels
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan
from medseg3d.prediction.restore import restore_label_maps
from medseg3d.preprocessing.preprocess_case import data_digest, preprocess_case, preprocess_for

NETWORK = NetworkPlan(
    family="plain_unet", dimensions=3, in_channels=1, num_classes=3, features=(4,), kernel_sizes=((3, 3, 3),), strides=((1, 1, 1),),
    encoder_blocks=(1,), decoder_blocks=(),
)  # fmt: skip


def configuration(spacing=(2.0, 1.0, 1.0), name="3d_fullres", **changes) -> Configuration:
    made = Configuration(
        name=name, spacing=spacing, median_shape=(10, 20, 20), patch_size=(8, 16, 16)[-len(spacing) :], batch_size=2, batch_dice=False,
        network=NETWORK, normalization=(Normalization(scheme="zscore"),), resampling=Resampling(), training=TrainingPlan(),
        mirror_axes=(0, 1, 2), data=name,
    )  # fmt: skip
    return replace(made, **changes)


def plan_of(*configurations: Configuration, axis_order=(0, 1, 2)) -> Plan:
    return Plan(
        dataset="d", planner="p", orientation="canonical", axis_order=axis_order, channels=("MR",), modality_reason="",
        labels=Labels(names=("background", "a", "b"), values=(0, 5, 9)), num_training=1, gpu_memory_gb=8,
        configurations={c.name: c for c in configurations}, recommended=configurations[0].name, recommended_reason="",
        fingerprint_digest="",
    )  # fmt: skip


@pytest.fixture
def raw() -> SimpleNamespace:
    generator = np.random.default_rng(0)
    image = np.zeros((1, 12, 30, 26), np.float32)
    image[0, 2:11, 4:27, 3:24] = generator.normal(100, 10, (9, 23, 21))
    labels = np.zeros(image.shape[1:], np.int16)
    labels[3:8, 6:20, 5:15] = 5
    labels[5:10, 12:24, 14:22] = 9
    return SimpleNamespace(name="case", annotated=None, soft=None, image=image, labels=labels, spacing=(2.0, 1.0, 1.0))


def test_at_its_own_spacing_a_case_is_only_cropped_and_normalized(raw):
    chosen = configuration()
    before = raw.image.copy()
    case = preprocess_case(raw, plan=plan_of(chosen), configuration=chosen)
    crop = raw.image[:, 2:11, 4:27, 3:24]
    np.testing.assert_allclose(case.image, (crop - crop.mean()) / crop.std(), atol=1e-4)
    np.testing.assert_array_equal(case.labels, np.searchsorted([0, 5, 9], raw.labels[2:11, 4:27, 3:24]))
    assert (case.labels.dtype, case.image.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(raw.image, before)


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (1.0, 0.5, 0.5)])
def test_labels_that_are_preprocessed_and_restored_come_back(raw, axis_order, spacing):
    chosen = configuration(spacing=tuple(np.take(spacing, axis_order)))
    case = preprocess_case(raw, plan=plan_of(chosen, axis_order=axis_order), configuration=chosen)
    logits = np.stack([case.labels == index for index in range(3)]).astype(np.float16)
    (restored,) = restore_label_maps([logits], len(logits), case.restoration)
    assert (restored != np.searchsorted([0, 5, 9], raw.labels)).mean() < (0.02 if spacing == (1.0, 0.5, 0.5) else 1e-9)
    assert case.image.shape[1:] == case.labels.shape == case.restoration.resampled_shape


def test_a_2d_configuration_keeps_the_distance_of_slices(raw):
    chosen = configuration(spacing=(0.5, 0.5), name="2d")
    case = preprocess_case(raw, plan=plan_of(chosen), configuration=chosen)
    assert case.image.shape == (1, 9, 46, 42)
    assert case.restoration.resampled_spacing == (2.0, 0.5, 0.5)


def test_one_raw_read_serves_all_configurations(raw):
    both = (configuration(), configuration(spacing=(1.0, 1.0), name="2d", normalization=(Normalization(scheme="none"),)))
    plan = plan_of(*both)
    for case, chosen in zip(preprocess_for(raw, plan=plan, configurations=both), both, strict=True):
        alone = preprocess_case(raw, plan=plan, configuration=chosen)
        np.testing.assert_array_equal(case.image, alone.image)
        np.testing.assert_array_equal(case.labels, alone.labels)


def test_outside_of_the_mask_nothing_is_shifted_and_it_is_kept(raw):
    raw.image[0, 2:5, 4:10, 3:10] = 0
    raw.labels[2:5, 4:10, 3:10] = 0
    chosen = configuration(normalization=(Normalization(scheme="zscore", use_mask=True),))
    case = preprocess_case(raw, plan=plan_of(chosen), configuration=chosen)
    np.testing.assert_array_equal(case.outside, (raw.image[0] == 0)[2:11, 4:27, 3:24])
    assert (case.image[0][case.outside] == 0).all()


def test_a_case_without_labels_has_none(raw):
    raw.labels = None
    chosen = configuration()
    assert preprocess_case(raw, plan=plan_of(chosen), configuration=chosen).labels is None


def test_wrong_channels_and_unknown_labels_name_the_case(raw):
    chosen = configuration()
    raw.labels[0, 0, 0] = raw.labels[6, 6, 6] = 77
    with pytest.raises(LabelValueError, match=r"case: label values \[77\]"):
        preprocess_case(raw, plan=plan_of(chosen), configuration=chosen)
    raw.image = np.concatenate([raw.image, raw.image])
    with pytest.raises(ChannelCountError, match="case: 2 channels"):
        preprocess_case(raw, plan=plan_of(chosen), configuration=chosen)


def test_the_digest_follows_what_changes_voxels_and_nothing_else():
    chosen = configuration()
    plan = plan_of(chosen)
    assert data_digest(plan, chosen) == data_digest(plan, replace(chosen, batch_size=7, patch_size=(4, 4, 4), name="other"))
    assert data_digest(plan, chosen) != data_digest(plan, replace(chosen, spacing=(2.0, 1.0, 1.1)))
    assert data_digest(plan, chosen) != data_digest(plan, replace(chosen, resampling=Resampling(image_order=1)))


@pytest.mark.fault(
    "B", "an image that no memory holds at the plan's spacing (a wrong unit), in prediction", "refused before it is resampled, naming both"
)
def test_what_no_memory_holds_is_refused_before_it_is_resampled(raw):
    raw.spacing = tuple(1000.0 * edge for edge in raw.spacing)
    with pytest.raises(MemoryError, match=r"it would take .* GiB, and .* GiB of memory are free. Check the spacing in its header"):
        preprocess_case(raw, plan=plan_of(configuration()), configuration=configuration())
