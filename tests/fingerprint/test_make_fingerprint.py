"""Fingerprints: exact where they claim it, within the stated error elsewhere, the same in whatever order they were merged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.content import body_middle
from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.data.digests import digest_of
from medseg3d.data.reading import RawCase
from medseg3d.errors import DatasetError, ImageReadError
from medseg3d.fingerprint.describe_case import describe_case
from medseg3d.fingerprint.inferred_names import infer_labels, infer_modality
from medseg3d.fingerprint.make_fingerprint import make_fingerprint, merge
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.geometry import geometry_of, orientation_of
from medseg3d.images import ImageHeader
from medseg3d.labels import Labels
from medseg3d.records import read_json, read_record, write_record

SPACING = (3.0, 1.0, 0.5)


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
