"""From a raw case to label indices: one member, several, a cascade, mirroring; against the plain computation of the whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg3d
from medseg3d.data.reading import RawCase
from medseg3d.devices import Device
from medseg3d.geometry import AS_STORED, geometry_of
from medseg3d.images import ImageHeader
from medseg3d.labels import Labels
from medseg3d.models.model import Model
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan
from medseg3d.prediction.predict_case import Member, ahead, prepare_case, segment, segment_with_and_without_mirroring

CPU = Device(device=torch.device("cpu"), precision="float32")
LABELS = Labels(names=("background", "a", "b"), values=(0, 5, 9))
SHAPE = (14, 22, 18)


class Fake(torch.nn.Module):
    """A convolution with random weights: neither symmetric nor blind to its surroundings."""

    def __init__(self, dimensions: int, seed: int, channels: int = 1, outputs: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = (torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d)(channels, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * self.conv(x)


def configuration(name: str, spacing: tuple[float, ...], patch: tuple[int, ...], **changes: object) -> Configuration:
    dimensions = len(patch)
    network = NetworkPlan(
        family="plain_unet", dimensions=dimensions, in_channels=1, num_classes=3, features=(4,), kernel_sizes=((3,) * dimensions,),
        strides=((1,) * dimensions,), encoder_blocks=(1,), decoder_blocks=(),
    )  # fmt: skip
    made = Configuration(
        name=name, spacing=spacing, median_shape=SHAPE, patch_size=patch, batch_size=2, batch_dice=False, network=network,
        normalization=(Normalization(scheme="zscore"),), resampling=Resampling(), training=TrainingPlan(),
        mirror_axes=tuple(range(dimensions)),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


FULL = configuration("3d_fullres", (1.5, 1.2, 1.0), (8, 8, 8))
LOW = configuration("3d_lowres", (3.0, 2.0, 2.0), (4, 8, 8))
FLAT = configuration("2d", (0.9, 0.9), (16, 16))


def plan_of(*configurations: Configuration, labels: Labels = LABELS) -> Plan:
    return Plan(
        dataset="made", planner="made", orientation="canonical", axis_order=(1, 0, 2), channels=("MRI",), modality_reason="given",
        labels=labels, num_training=1, gpu_memory_gb=8.0, configurations={c.name: c for c in configurations},
        recommended=configurations[0].name, recommended_reason="", fingerprint_digest="",
    )  # fmt: skip


@pytest.fixture
def raw() -> RawCase:
    image = np.random.default_rng(0).normal(100, 20, (1, *SHAPE)).astype(np.float32)
    image[:, :2] = 0  # a border that is cropped
    geometry = geometry_of(SHAPE[::-1], np.diag([0.8, 2.0, 1.0, 1.0]))
    header = ImageHeader(geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype="float32", nifti=None)
    return RawCase(name="case", image=image, labels=None, spacing=(1.0, 2.0, 0.8), orientation=AS_STORED, header=header)


def member(chosen: Configuration, *seeds: int, mirroring: bool = False, **changes: object) -> Member:
    networks = tuple(Fake(chosen.dimensions, seed) for seed in seeds)
    return Member(configuration=chosen, networks=networks, mirroring=mirroring, **changes)  # type: ignore[arg-type]


def chances_of(raw: RawCase, one: Member) -> np.ndarray:
    """The probabilities (K, S, A, R) of a member alone."""
    prepared = prepare_case(raw, plan_of(one.configuration), [one])
    chances = np.zeros((3, *SHAPE), np.float32)
    segment(prepared, [one], LABELS, CPU, probabilities=chances)
    return chances


def test_probabilities_change_no_label_and_sum_to_one(raw: RawCase) -> None:
    one = member(FULL, 0, 1)
    prepared = prepare_case(raw, plan_of(FULL), [one])
    chances = np.zeros((3, *SHAPE), np.float16)
    with_chances = segment(prepared, [one], LABELS, CPU, probabilities=chances)
    assert np.array_equal(with_chances, segment(prepared, [one], LABELS, CPU))
    assert len(np.unique(with_chances)) == 3
    np.testing.assert_allclose(chances.sum(0, dtype=np.float32), 1, atol=3e-3)
    assert (chances[0, :2] == 1).all(), "outside of the crop all is background"


@pytest.mark.parametrize("others", [(FLAT,), (LOW,), (FLAT, LOW)])
def test_several_members_are_the_mean_of_their_probabilities(raw: RawCase, others: tuple[Configuration, ...]) -> None:
    members = [member(chosen, seed) for seed, chosen in enumerate((FULL, *others))]
    prepared = prepare_case(raw, plan_of(*(m.configuration for m in members)), members)
    found = np.zeros((3, *SHAPE), np.float32)
    labels = segment(prepared, members, LABELS, CPU, probabilities=found)
    expected = np.mean([chances_of(raw, one) for one in members], 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    best = np.sort(expected, 0)
    is_clear = best[-1] - best[-2] > 1e-5
    assert np.array_equal(labels[is_clear], expected.argmax(0)[is_clear])
    assert np.array_equal(labels, segment(prepared, members, LABELS, CPU))


def test_both_ways_of_one_pass_are_those_of_two(raw: RawCase) -> None:
    plain, mirrored = member(FULL, 0), member(FULL, 0, mirroring=True)
    prepared = prepare_case(raw, plan_of(FULL), [plain])
    both = segment_with_and_without_mirroring(prepared, plain, LABELS, CPU)
    separate = [segment(prepared, [one], LABELS, CPU) for one in (mirrored, plain)]
    for found, expected in zip(both, separate, strict=True):
        assert (found != expected).mean() < 1e-3  # sums of another order
    assert (separate[0] != separate[1]).any()


def test_regions_are_painted_where_their_probability_is_above_a_half(raw: RawCase) -> None:
    labels = replace(LABELS, regions=((5, 9), (9,), (7,)), names=("background", "a", "b", "c"), values=(0, 5, 9, 7))
    one = member(FULL, 0)
    prepared = prepare_case(raw, plan_of(FULL, labels=labels), [one])
    chances = np.zeros((3, *SHAPE), np.float32)
    found = segment(prepared, [one], labels, CPU, probabilities=chances)
    expected = np.zeros(SHAPE, int)
    for index, chance in enumerate(chances, start=1):
        expected[chance > 0.5] = index
    assert (found != expected).mean() < 1e-4
    assert np.array_equal(found, segment(prepared, [one], labels, CPU))
    assert len(np.unique(found)) == 4


def test_a_cascade_sees_the_label_map_of_its_first_stage(raw: RawCase) -> None:
    first = member(LOW, 0)
    full = replace(FULL, previous_stage="3d_lowres")
    seen: list[torch.Tensor] = []

    class Watching(Fake):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return super().forward(x)

    second = Member(configuration=full, networks=(Watching(3, 1, channels=3),), mirroring=False, previous=first)
    prepared = prepare_case(raw, plan_of(full, LOW), [second])
    labels = segment(prepared, [second], LABELS, CPU)
    assert labels.shape == SHAPE
    hints = torch.cat([x[:, 1:].reshape(2, -1) if len(x) == 1 else x[:, 1:].movedim(1, 0).reshape(2, -1) for x in seen], 1)
    assert set(hints.unique().tolist()) == {0.0, 1.0}
    assert float(hints.sum(0).max()) == 1, "a voxel has one label"
    alone = segment(prepare_case(raw, plan_of(LOW), [first]), [first], LABELS, CPU)
    share = (alone[2:] > 0).mean()
    assert abs(float(hints.sum(0).mean()) - share) < 0.1


def test_preparing_in_place_gives_the_same_and_takes_the_image(raw: RawCase) -> None:
    one = member(FULL, 0)
    kept = raw.image.copy()
    apart = prepare_case(raw, plan_of(FULL), [one])
    assert np.array_equal(raw.image, kept)
    in_place = prepare_case(raw, plan_of(FULL), [one], in_place=True)
    assert np.array_equal(apart.images["3d_fullres"].image, in_place.images["3d_fullres"].image)


def test_ahead_gives_the_same_values_and_hands_over_errors() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    values = ahead(numbers())
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(values)
    assert list(itertools.islice(ahead(itertools.count()), 3)) == [0, 1, 2]


def signed_permutations() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield order, flips


def turned(array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same volume in world space with its axes stored in another order and direction."""
    result = array.transpose(order)
    matrix = affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip < 0:
            result = np.flip(result, axis)
            matrix[:, 3] += matrix[:, axis] * (result.shape[axis] - 1)
            matrix[:, axis] *= -1
    return result, matrix


@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_all_48_orientations_give_the_same_segmentation_in_world_space(trained: Path, angle: float) -> None:
    model: Model = medseg3d.load_model(trained, device="cpu", precision="float32", mirroring=False)
    array = np.random.default_rng(0).normal(150, 60, (20, 18, 12))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([1.0, 1.1, 1.5])
    expected = model.predict(array, affine)
    assert len(np.unique(expected)) > 1
    for order, flips in signed_permutations():
        image, matrix = turned(array, affine, order, flips)
        labels, _ = turned(expected, affine, order, flips)
        assert np.array_equal(model.predict(image, matrix), labels)


@pytest.mark.parametrize("others", [(), (LOW,), (FLAT, LOW)])
def test_windows_are_told_until_all_are_done(raw: RawCase, others: tuple[Configuration, ...]) -> None:
    members = [member(chosen, seed) for seed, chosen in enumerate((FULL, *others))]
    prepared = prepare_case(raw, plan_of(*(m.configuration for m in members)), members)
    heard: list[tuple[int, int]] = []
    told = segment(prepared, members, LABELS, CPU, on_windows=lambda done, total: heard.append((done, total)))
    assert np.array_equal(told, segment(prepared, members, LABELS, CPU))
    done = [number for number, _ in heard]
    assert done == sorted(done)
    assert all(0 < number <= total for number, total in heard)
    assert heard[-1][0] == heard[-1][1] >= len(members)
