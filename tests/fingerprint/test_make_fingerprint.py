"""Fingerprints: exact where they claim it, within the stated error elsewhere, the same in whatever order they were merged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg3d.data.content import body_middle
from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.data.digests import digest_of
from medseg3d.data.reading import RawCase
from medseg3d.errors import DatasetError, ImageReadError
from medseg3d.fingerprint.describe_case import describe_case
from medseg3d.fingerprint.describe_labels import describe_labels
from medseg3d.fingerprint.inferred_names import infer_labels, infer_modality
from medseg3d.fingerprint.intensities import describe_values, keys_of, merge_intensities, values_of
from medseg3d.fingerprint.make_fingerprint import make_fingerprint, merge
from medseg3d.fingerprint.records import Fingerprint, LabelStatistics
from medseg3d.geometry import geometry_of, orientation_of
from medseg3d.images import ImageHeader
from medseg3d.labels import Labels
from medseg3d.records import read_json, read_record, write_record

SPACING = (3.0, 1.0, 0.5)
floats = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


def raw_case(image: np.ndarray, labels: np.ndarray | None, name: str = "a", spacing: tuple[float, float, float] = SPACING) -> RawCase:
    affine = np.diag([*spacing[::-1], 1.0])
    geometry = geometry_of(image.shape[:0:-1], affine)
    header = ImageHeader(geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype="float32")
    return RawCase(
        name=name,
        image=image.astype(np.float32),
        labels=labels,
        spacing=spacing,
        orientation=orientation_of(affine),
        header=header,
    )


def random_case(seed: int, name: str = "a") -> RawCase:
    rng = np.random.default_rng(seed)
    image = np.zeros((2, 8, 9, 10), np.float32)
    image[:, 1:7, 2:8, 1:9] = rng.normal(100 * (seed + 1), 30, (2, 6, 6, 8))
    labels = rng.integers(0, 4, (8, 9, 10)).astype(np.uint8) * 5
    return raw_case(image, labels, name)


# --- histograms


def error_bound(value: float, std: float) -> float:
    """What the documentation promises for a quantile."""
    return max(abs(value) * 2.0**-11, std * 2.0**-8) + 1e-30


@settings(max_examples=200, deadline=None)
@given(floats, st.sampled_from([1e-4, 1.0, 1e4]))
def test_quantiles_keep_the_stated_error_on_any_scale(values: np.ndarray, scale: float) -> None:
    values = (values * scale).astype(np.float32)
    _, statistics = describe_values(values)
    assert statistics is not None
    exact = np.percentile(values.astype(np.float64), (0.5, 50, 99.5))
    found = (statistics.percentile_00_5, statistics.median, statistics.percentile_99_5)
    largest = float(np.abs(values).max())  # interpolation may lie between a far value and a near one
    for truth, estimate in zip(exact, found, strict=True):
        assert abs(truth - estimate) <= error_bound(largest, statistics.std)


@settings(deadline=None)
@given(floats)
def test_moments_and_range_are_exact(values: np.ndarray) -> None:
    _, statistics = describe_values(values)
    assert statistics is not None
    wide = values.astype(np.float64)
    assert statistics.count == values.size
    assert statistics.minimum == wide.min()
    assert statistics.maximum == wide.max()
    assert math.isclose(statistics.mean, wide.mean(), rel_tol=1e-12, abs_tol=1e-9)
    assert math.isclose(statistics.std, wide.std(), rel_tol=1e-9, abs_tol=1e-9)


def test_hounsfield_units_have_exact_quantiles() -> None:
    values = np.random.default_rng(0).normal(40, 300, 20_000).clip(-1024, 3071).round()
    _, statistics = describe_values(values)
    assert statistics is not None
    found = (statistics.percentile_00_5, statistics.median, statistics.percentile_99_5)
    assert found == pytest.approx(tuple(np.percentile(values, (0.5, 50, 99.5))), abs=1e-9)


@settings(deadline=None)
@given(floats, st.floats(0, 1e5))
def test_keys_grow_with_the_values(values: np.ndarray, std: float) -> None:
    ordered = np.sort(values)
    assert (np.diff(keys_of(ordered, std)) >= 0).all()


@settings(deadline=None)
@given(floats)
def test_a_bin_is_never_further_from_zero_than_its_values(values: np.ndarray) -> None:
    back = values_of(keys_of(values, 0.0))
    assert (np.abs(back) <= np.abs(values)).all()
    np.testing.assert_allclose(back, values, rtol=2.0**-11, atol=1e-37)
    np.testing.assert_array_equal(keys_of(back.astype(np.float32), 0.0), keys_of(values, 0.0))


@settings(deadline=None)
@given(floats)
def test_a_histogram_counts_every_value_once(values: np.ndarray) -> None:
    histogram, statistics = describe_values(values)
    assert statistics is not None
    keys, counts = histogram.arrays()
    expected, expected_counts = np.unique(keys_of(values, statistics.std), return_counts=True)
    np.testing.assert_array_equal(keys, expected)
    np.testing.assert_array_equal(counts, expected_counts)


def test_merging_gives_the_statistics_of_all_values_together() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 4000, n).astype(np.float32) for n in (10, 5000, 300)]
    merged = merge_intensities([describe_values(part) for part in parts] + [describe_values(np.empty(0, np.float32))])
    values = np.concatenate(parts).astype(np.float64)
    assert merged is not None
    assert merged.count == values.size
    assert merged.mean == pytest.approx(values.mean(), rel=1e-12)
    assert merged.std == pytest.approx(values.std(), rel=1e-12)
    assert (merged.minimum, merged.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(
        (merged.percentile_00_5, merged.median, merged.percentile_99_5),
        np.percentile(values, (0.5, 50, 99.5)),
        atol=values.std() / 256,
    )


def test_scales_that_differ_by_a_thousand_do_not_spoil_each_other() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(100, 10, 3000).astype(np.float32), rng.normal(1e6, 1e5, 1000).astype(np.float32)
    merged = merge_intensities([describe_values(small), describe_values(large)])
    assert merged is not None
    assert merged.median == pytest.approx(np.median(np.concatenate([small, large])), abs=0.1)


def test_a_histogram_of_floats_stays_small() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    histogram, _ = describe_values(values)
    assert len(histogram.bins) < 20_000


# --- labels


def plain_label_statistics(labels: np.ndarray, spacing: tuple[float, float, float]) -> dict[int, LabelStatistics]:
    """Label by label with scipy, as one would write it down."""
    from scipy.ndimage import find_objects, label

    result = {}
    voxel = math.prod(spacing)
    for value in np.unique(labels[labels != 0]):
        mask = labels == value
        components, count = label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        places = np.argwhere(mask)
        center = (places.mean(0) + 0.5) / labels.shape
        extents = [[(s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True)] for box in find_objects(components)]
        longest = max(math.hypot(*extent) for extent, size in zip(extents, sizes, strict=True) if size == sizes.max())
        result[int(value)] = LabelStatistics(
            voxels=int(mask.sum()),
            volume_mm3=mask.sum() * voxel,
            components=count,
            largest_mm3=sizes.max() * voxel,
            smallest_mm3=sizes.min() * voxel,
            touches_border=bool((places == 0).any() or (places == np.array(labels.shape) - 1).any()),
            center=tuple(center),
            elongation=longest / (sizes.max() * voxel) ** (1 / 3),
        )
    return result


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0, 1, 2), (0, 7, -3, 300), (0, 0, 0, 0, 2_000_000, 5), (0, 0, 0, 0, 0, 0, 1)]))
def test_label_statistics_are_those_of_scipy(seed: int, values: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(values, tuple(rng.integers(1, 8, 3))).astype(np.int32)
    found, expected = describe_labels(labels, SPACING), plain_label_statistics(labels, SPACING)
    assert found.keys() == expected.keys()
    for value, statistics in expected.items():
        assert found[value].center == pytest.approx(statistics.center, abs=1e-6)
        assert found[value].elongation == pytest.approx(statistics.elongation)
        assert replace(found[value], center=statistics.center, elongation=statistics.elongation) == statistics


def test_another_background_value_is_respected() -> None:
    labels = np.full((3, 4, 5), 9, np.int16)
    labels[1, 1, 1] = 0
    found = describe_labels(labels, SPACING, background=9)
    assert set(found) == {0}
    assert found[0].voxels == 1


# --- elongation


def ellipsoid(spacing: tuple[float, float, float], *half_axes: float) -> np.ndarray:
    """Half axes in mm along (S, A, R), in a volume that ends one voxel beyond them."""
    axes = [np.arange(-math.ceil(half / mm) - 1, math.ceil(half / mm) + 2) * mm / half for half, mm in zip(half_axes, spacing, strict=True)]
    return (sum(np.square(np.meshgrid(*axes, indexing="ij"))) <= 1).astype(np.uint8)


def tube(spacing: tuple[float, float, float], direction: tuple[float, float, float], diameter: float, length: float) -> np.ndarray:
    """Diameter and length in mm, with flat ends."""
    along = np.array(direction) / math.hypot(*direction)
    ends = [abs(a) * length / 2 + diameter for a in along]
    grid = np.meshgrid(*(np.arange(-end, end + mm, mm) for end, mm in zip(ends, spacing, strict=True)), indexing="ij")
    place = sum(a * x for a, x in zip(along, grid, strict=True))
    distance = sum(x**2 for x in grid) - place**2
    return ((np.abs(place) <= length / 2) & (distance <= diameter**2 / 4)).astype(np.uint8)


def elongation_of(labels: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    elongation = describe_labels(labels, spacing)[1].elongation
    assert elongation is not None
    return elongation


GRIDS = [(1.0, 1.0, 1.0), (0.5, 0.8, 0.6), (2.0, 0.7, 0.7), (0.8, 0.8, 1.9)]


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("half_axes", [(16.0, 16.0, 16.0), (12.0, 20.0, 40.0), (40.0, 14.0, 12.0)])
def test_an_ellipsoid_has_the_elongation_of_its_formula_on_every_grid(
    spacing: tuple[float, float, float], half_axes: tuple[float, float, float]
) -> None:
    expected = 2 * math.hypot(*half_axes) / math.cbrt(4 / 3 * math.pi * math.prod(half_axes))
    assert elongation_of(ellipsoid(spacing, *half_axes), spacing) == pytest.approx(expected, rel=0.05)


def test_a_ball_has_2_1_and_a_cube_1_7() -> None:
    assert elongation_of(ellipsoid((0.5, 0.5, 0.5), 20, 20, 20), (0.5, 0.5, 0.5)) == pytest.approx(2.15, abs=0.05)
    assert elongation_of(np.ones((6, 6, 6), np.uint8)) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize(("direction", "expected"), [((1, 0, 0), 8.0), ((0, 0, 1), 8.0), ((0, 1, 1), 8.4), ((1, 1, 1), 8.5)])
def test_a_tube_of_twenty_diameters_has_eight(
    spacing: tuple[float, float, float], direction: tuple[float, float, float], expected: float
) -> None:
    assert elongation_of(tube(spacing, direction, 8, 160), spacing) == pytest.approx(expected, rel=0.07)  # 2 mm voxels blur 8 mm


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(1, 3), st.permutations(range(3)))
def test_elongation_depends_on_the_shape_in_mm_only(seed: int, axis: int, factor: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random(tuple(rng.integers(2, 8, 3))) < 0.2).astype(np.uint8)
    labels[0, 0, 0] = 1
    finer = [mm / factor if a == axis else mm for a, mm in enumerate(SPACING)]
    turned = np.repeat(labels, factor, axis).transpose(order)
    assert elongation_of(turned, (finer[order[0]], finer[order[1]], finer[order[2]])) == pytest.approx(elongation_of(labels, SPACING))


def test_the_largest_component_counts_and_of_equal_ones_the_longest() -> None:
    labels = np.zeros((20, 8, 8), np.uint8)
    labels[:16, 0, 0] = 1
    assert elongation_of(labels) == pytest.approx(math.hypot(16, 1, 1) / math.cbrt(16))
    labels[:4, 4:, 4:] = 1
    assert elongation_of(labels) == pytest.approx(math.sqrt(3))
    labels[4:, 4:, 4:] = 0
    labels[:4, 4:, 4:] = np.arange(64).reshape(4, 4, 4) < 16  # one slice of 16 voxels beside the line of 16
    assert elongation_of(labels) == elongation_of(labels[:, ::-1]) == pytest.approx(math.hypot(16, 1, 1) / math.cbrt(16))


def test_a_single_voxel_has_the_elongation_of_its_box() -> None:
    for shape in ((1, 1, 1), (3, 4, 5)):
        labels = np.zeros(shape, np.uint8)
        labels[-1, -1, -1] = 1
        assert elongation_of(labels, SPACING) == pytest.approx(math.hypot(*SPACING) / math.cbrt(math.prod(SPACING)))


# --- cases and datasets


def test_a_case_is_cropped_and_described_inside_the_crop() -> None:
    raw = random_case(0)
    case = describe_case(raw, "digest")
    assert case.crop == ((1, 7), (2, 8), (1, 9))
    assert case.cropped_shape == (6, 6, 8)
    assert case.relative_size == pytest.approx(6 * 6 * 8 / 720)
    assert case.orientation == "RAS"
    assert raw.labels is not None
    inside = raw.labels[1:7, 2:8, 1:9] > 0
    for channel, described in zip(raw.image, case.channels, strict=True):
        assert described.foreground is not None
        assert described.foreground.mean == pytest.approx(channel[1:7, 2:8, 1:9][inside].mean(), rel=1e-5)
        assert described.minimum == channel.min()


def test_a_case_without_labels_has_no_foreground() -> None:
    case = describe_case(raw_case(np.ones((1, 3, 4, 5)), None), "digest")
    assert case.channels[0].foreground is None
    assert case.labels == {}


def test_merging_does_not_depend_on_the_order() -> None:
    cases = [describe_case(random_case(seed, name=f"c{seed}"), str(seed)) for seed in range(4)]
    assert merge(cases, dataset="d", channel_names=("x", "y")) == merge(cases[::-1], dataset="d", channel_names=("x", "y"))


def test_a_dataset_without_any_labelled_voxel_is_refused() -> None:
    case = describe_case(raw_case(np.ones((1, 3, 4, 5)), np.zeros((3, 4, 5), np.uint8)), "digest")
    with pytest.raises(DatasetError, match="no case has a labelled voxel"):
        merge([case], dataset="d", channel_names=("MRI",))


def test_a_fingerprint_survives_its_file(tmp_path: Path) -> None:
    cases = [describe_case(random_case(seed, name=f"c{seed}"), str(seed)) for seed in range(2)]
    fingerprint = merge(cases, dataset="d", channel_names=("x", "y"))
    write_record(tmp_path / "fingerprint.json", fingerprint, "fingerprint")
    assert read_record(tmp_path / "fingerprint.json", Fingerprint, "fingerprint") == fingerprint


def test_a_file_without_elongations_is_read(tmp_path: Path) -> None:
    fingerprint = merge([describe_case(random_case(0), "d")], dataset="d", channel_names=("x", "y"))
    path = write_record(tmp_path / "fingerprint.json", fingerprint, "fingerprint")
    document = read_json(path)
    for entry in document["cases"][0]["labels"].values():
        del entry["elongation"]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_record(path, Fingerprint, "fingerprint") == without_elongations(fingerprint)


def without_elongations(fingerprint: Fingerprint) -> Fingerprint:
    """As an older version measured it."""
    cases = [
        replace(case, labels={value: replace(entry, elongation=None) for value, entry in case.labels.items()}) for case in fingerprint.cases
    ]
    return replace(fingerprint, cases=tuple(cases))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    cases = []
    for number in range(3):
        raw = random_case(number)
        assert raw.labels is not None
        image, label = tmp_path / f"image_{number}.nii.gz", tmp_path / f"label_{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(raw.image[0].T, raw.header.geometry.matrix), image)
        nibabel.save(nibabel.Nifti1Image(raw.labels.T, raw.header.geometry.matrix), label)
        cases.append(Case(name=f"c{number}", channels=(ChannelFile(path=image),), label=label))
    return Dataset(
        root=tmp_path,
        name="tiny",
        layout="folders",
        channel_names=("channel_0",),
        has_named_channels=False,
        labels=None,
        training=tuple(cases),
        test=(),
    )


def test_unchanged_cases_are_not_read_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import medseg3d.data.reading as module

    read: list[str] = []
    real = module.read_case

    def counted(case: Case) -> RawCase:
        read.append(case.name)
        return real(case)

    monkeypatch.setattr(module, "read_case", counted)
    first = make_fingerprint(replace(dataset, training=dataset.training[:2]))
    assert sorted(read) == ["c0", "c1"]
    read.clear()
    second = make_fingerprint(dataset, previous=first)
    assert read == ["c2"]
    assert second == make_fingerprint(dataset)
    assert second.digest != first.digest

    changed = dataset.training[0]
    assert changed.label is not None
    labels = nibabel.load(changed.label)
    nibabel.save(nibabel.Nifti1Image((np.asarray(labels.dataobj) > 0).astype(np.uint8), labels.affine), changed.label)
    read.clear()
    third = make_fingerprint(dataset, previous=second)
    assert read == ["c0"]
    assert set(third.cases[0].labels) == {1}


def test_cases_without_elongations_are_not_measured_again(dataset: Dataset) -> None:
    older = without_elongations(make_fingerprint(dataset))
    assert make_fingerprint(dataset, previous=older) == older


def test_a_broken_case_is_listed_and_the_others_go_on(dataset: Dataset) -> None:
    dataset.training[1].channels[0].path.write_bytes(b"not an image")
    heard: list[int] = []
    fingerprint = make_fingerprint(dataset, on_case=lambda cases: heard.append(len(cases)))
    assert [case.name for case in fingerprint.cases] == ["c0", "c2"]
    assert [failure.case for failure in fingerprint.failures] == ["c1"]
    assert len(heard) == 3
    assert heard[-1] == 2


def test_a_dataset_of_broken_cases_names_them_all(dataset: Dataset) -> None:
    for case in dataset.training:
        case.channels[0].path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"(?s)c0.*c1.*c2"):
        make_fingerprint(dataset)


def test_the_digest_depends_on_each_file_and_the_volume(dataset: Dataset) -> None:
    case = dataset.training[0]
    other = dataset.training[1]
    variants = [
        case,
        replace(case, label=None),
        replace(case, label=other.label),
        replace(case, channels=other.channels),
        replace(case, channels=(replace(case.channels[0], volume=1),)),
        replace(case, channels=(*case.channels, *other.channels)),
        replace(case, channels=(*other.channels, *case.channels)),
    ]
    assert len({digest_of(variant) for variant in variants}) == len(variants)
    assert digest_of(replace(case, name="renamed")) == digest_of(case)


def test_the_digest_covers_voxels_beside_a_header(tmp_path: Path) -> None:
    header = tmp_path / "a.mhd"
    header.write_text("NDims = 2\nDimSize = 1 1\nElementType = MET_UCHAR\nElementDataFile = a.raw\n", encoding="latin-1")
    case = Case(name="a", channels=(ChannelFile(path=header),))
    digests = []
    for content in (b"1", b"2"):
        (tmp_path / "a.raw").write_bytes(content)
        digests.append(digest_of(case))
    assert digests[0] != digests[1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.nii\.gz"):
        digest_of(Case(name="a", channels=(ChannelFile(path=tmp_path / "gone.nii.gz"),)))


# --- what is inferred


def modality_case(image: np.ndarray) -> Fingerprint:
    case = describe_case(raw_case(image[None], np.ones(image.shape, np.uint8)), "digest")
    return merge([case], dataset="d", channel_names=("channel_0",))


def test_whole_numbers_down_to_air_are_ct() -> None:
    rng = np.random.default_rng(0)
    names, reason = infer_modality(modality_case(rng.integers(-1024, 2000, (5, 6, 7)).astype(np.float32)))
    assert names == ("CT",)
    assert "-500" in reason
    for image in (rng.integers(0, 2000, (5, 6, 7)), rng.normal(0, 1, (5, 6, 7)), rng.normal(-2000, 1000, (5, 6, 7))):
        assert infer_modality(modality_case(image.astype(np.float32)))[0] == ("MRI",)


def test_labels_without_names_are_called_by_their_values() -> None:
    labels = infer_labels(merge([describe_case(random_case(0), "d")], dataset="d", channel_names=("x", "y")))
    assert labels == Labels(names=("background", "label_5", "label_10", "label_15"), values=(0, 5, 10, 15))


# --- the middle of the body


def test_the_middle_of_the_body_is_found_in_air_and_beside_a_bright_spot() -> None:
    image = np.full((30, 40, 80), -1000.0, np.float32)
    image[5:25, 10:30, 10:40] = 50
    image[15, 20, 75] = 3000
    assert body_middle(image) == pytest.approx((0.5, 0.5, 25 / 80), abs=0.03)
    assert body_middle(np.zeros((4, 5, 6), np.float32)) == (0.5, 0.5, 0.5)


def test_a_case_of_an_older_fingerprint_has_no_middle(tmp_path: Path) -> None:
    found = merge([describe_case(random_case(0), "d")], dataset="d", channel_names=("x", "y"))
    path = write_record(tmp_path / "f.json", found, "fingerprint")
    document = read_json(path)
    del document["cases"][0]["middle"]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_record(path, Fingerprint, "fingerprint").cases[0].middle is None


@pytest.mark.fault("D", "a fingerprint.json with axes, shapes or quantiles that cannot be", "refused, naming the case and the field")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": ((-65534, 1), (1, 1), (2, 1))}, "axes"),
        ({"axes": ((0, 1), (0, 1), (2, 1))}, "axes"),
        ({"axes": ((0, 3), (1, 1), (2, 1))}, "axes"),
        ({"shape": (0, 4, 4)}, "above 0"),
        ({"spacing": (1.0, math.nan, 1.0)}, "above 0"),
    ],
)
def test_a_fingerprint_that_cannot_be_is_refused(change, message) -> None:
    image = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)
    case = describe_case(raw_case(image, np.ones((4, 4, 4), np.uint8)), "digest")
    with pytest.raises(ValueError, match=message):
        replace(case, **change)
    with pytest.raises(ValueError, match="quantiles"):
        replace(case.channels[0], quantiles=(1.0, 2.0))
