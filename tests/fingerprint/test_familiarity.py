"""An image that is unlike the training images is named; one that is like them is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg3d
from medseg3d.commandline.cli import main
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import RawCase, read_case
from medseg3d.errors import InputError
from medseg3d.fingerprint.familiarity import Look, doubts_about, look_of, profile_of_looks
from medseg3d.geometry import geometry_of, orientation_code, orientation_of
from medseg3d.image_profile import ImageProfile
from medseg3d.images import ImageHeader, write_image
from medseg3d.plan import Normalization, Plan
from medseg3d.records import read_record, write_record
from medseg3d.work_folder import WorkFolder

SHAPE = (16, 30, 28)
FOREGROUND = (-80.0, 60.0, 220.0)


@pytest.fixture(scope="module")
def planned(trained: Path) -> Plan:
    return WorkFolder(trained / "medseg3d-work").read_plan()


def raw(
    *channels: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 1.0), code: str = "RAS", modality: str | None = None
) -> RawCase:
    """Channels ``(S, A, R)`` as they are after reading; ``code`` is that of the file."""
    signs = [1 if letter in "RAS" else -1 for letter in code]
    affine = np.diag([*np.multiply(spacing[::-1], signs), 1.0])
    assert orientation_code(affine) == code
    geometry = geometry_of(channels[0].shape[::-1], affine)
    header = ImageHeader(geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype="float32", modality=modality)
    image = np.stack([channel.astype(np.float32) for channel in channels])
    return RawCase(name="case", image=image, labels=None, spacing=spacing, orientation=orientation_of(affine), header=header)


def body(rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """1 in an ellipsoid of a drawn size, 0 outside."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.asarray(sum((axis / size) ** 2 for axis, size in zip(axes, rng.uniform(0.6, 1.1, 3), strict=True)) < 1, float)


def ct(rng: np.random.Generator) -> np.ndarray:
    inside = body(rng)
    tissue = rng.normal(40, 60, inside.shape) + 900 * (rng.random(inside.shape) < 0.05)
    return np.rint(np.where(inside > 0, tissue, -1000 + rng.normal(0, 5, inside.shape)))


def mr(rng: np.random.Generator) -> np.ndarray:
    """Of no scale that two scanners share."""
    inside = body(rng)
    scale = 10 ** rng.uniform(2, 6)
    return np.rint(scale * np.abs(inside * rng.normal(0.5, 0.2, inside.shape) + rng.normal(0, 0.02, inside.shape)))


def pet(rng: np.random.Generator) -> np.ndarray:
    return body(rng) * rng.gamma(2.0, 0.6, SHAPE)


def looks(make: Any, count: int = 8, **options: Any) -> list[Look]:
    return [look_of(raw(make(np.random.default_rng(seed)), **options)) for seed in range(count)]


def plan_for(planned: Plan, images: ImageProfile | None, *channels: str) -> Plan:
    """A plan with these channels, normalized as planning would."""
    ct_rule = Normalization(scheme="ct", mean=60.0, std=50.0, lower=FOREGROUND[0], upper=FOREGROUND[2])
    rules = tuple(ct_rule if name == "CT" else Normalization(scheme="zscore") for name in channels)
    configurations = {name: replace(each, normalization=rules) for name, each in planned.configurations.items()}
    return replace(planned, channels=channels, configurations=configurations, images=images)


def model_of(planned: Plan, make: Any, channel: str, **options: Any) -> Plan:
    return plan_for(planned, profile_of_looks(looks(make, **options), [FOREGROUND]), channel)


@pytest.fixture(scope="module")
def of_ct(planned: Plan) -> Plan:
    return model_of(planned, ct, "CT")


@pytest.fixture(scope="module")
def of_mr(planned: Plan) -> Plan:
    return model_of(planned, mr, "T2")


@pytest.mark.parametrize(("make", "channel"), [(ct, "CT"), (mr, "T2"), (pet, "PET")])
def test_new_images_of_the_same_kind_are_no_doubt(planned: Plan, make: Any, channel: str) -> None:
    model = model_of(planned, make, channel)
    for seed in range(100, 120):
        rng = np.random.default_rng(seed)
        spacing = tuple(float(s) for s in np.array([3.0, 1.0, 1.0]) * rng.uniform(0.6, 1.6, 3))
        assert doubts_about(look_of(raw(make(rng), spacing=spacing)), model) == ()  # type: ignore[arg-type]


RNG = np.random.default_rng(50)
CT_IMAGE, MR_IMAGE = ct(np.random.default_rng(51)), mr(np.random.default_rng(52))


@pytest.mark.fault(
    "A5",
    "an image of another modality than the model's (DICOM says CT, PET or MR)",
    "a warning in the terminal, in `predictions.json` and to the server's client; refused with `--strict`",
)
@pytest.mark.parametrize(("name", "modality"), [("T2", "CT"), ("T2", "PT"), ("CT", "MR"), ("PET", "CT"), ("cineMRI", "CT")])
def test_the_modality_of_the_file_is_compared(planned: Plan, name: str, modality: str) -> None:
    (doubt,) = doubts_about(
        look_of(raw(MR_IMAGE, modality=modality)), plan_for(planned, None, name) if name != "CT" else model_of(planned, mr, "CT")
    )[:1]
    assert doubt == f"is {modality} by its DICOM header, and the model takes {name}"


@pytest.mark.parametrize(("name", "modality"), [("T2", "MR"), ("CT", "CT"), ("EM", "CT"), ("T2", "OT"), ("T2", None)])
def test_a_modality_that_fits_or_is_not_known_is_no_doubt(planned: Plan, name: str, modality: str | None) -> None:
    image = CT_IMAGE if name == "CT" else MR_IMAGE
    plan = model_of(planned, ct if name == "CT" else mr, name)
    assert doubts_about(look_of(raw(image, modality=modality)), plan) == ()


@pytest.mark.fault("A5", "a CT without a DICOM header for a model of MR", "the same warning, found by Hounsfield units")
@pytest.mark.parametrize("has_profile", [True, False])
def test_hounsfield_units_are_no_mr(planned: Plan, has_profile: bool) -> None:
    model = model_of(planned, mr, "T2")
    (doubt,) = doubts_about(look_of(raw(CT_IMAGE)), model if has_profile else without_grid(model))
    assert doubt.startswith("looks like CT (whole numbers down to -10")


def without_grid(plan: Plan) -> Plan:
    """An older plan, whose configurations fit the synthetic images."""
    configurations = {
        name: replace(each, spacing=(3.0, 1.0, 1.0)[-each.dimensions :], median_shape=tuple(map(float, SHAPE))[-each.dimensions :])
        for name, each in plan.configurations.items()
    }
    return replace(plan, images=None, configurations=configurations)


@pytest.mark.fault("A5", "MR, or CT whose rescale intercept was lost, for a model of CT", "a warning: these are no Hounsfield units")
@pytest.mark.parametrize("has_profile", [True, False])
@pytest.mark.parametrize(
    "image", [MR_IMAGE, CT_IMAGE + 1024, (CT_IMAGE + 1024) * 0.05, np.rint((CT_IMAGE + 1024) / 8)], ids=["mr", "shifted", "scaled", "8 bit"]
)
def test_what_is_not_in_hounsfield_units_is_named(of_ct: Plan, image: np.ndarray, has_profile: bool) -> None:
    (doubt,) = doubts_about(look_of(raw(image)), of_ct if has_profile else without_grid(of_ct))
    assert "these are no Hounsfield units" in doubt


def test_hounsfield_units_times_ten_are_named(of_ct: Plan) -> None:
    (doubt,) = doubts_about(look_of(raw(CT_IMAGE * 10)), of_ct)
    assert doubt.startswith(("has 95 % of its voxels below", "has 99.5 % of its voxels below"))


def test_a_ct_without_any_tissue_is_named(of_ct: Plan) -> None:
    air = np.full(SHAPE, -1000.0) + RNG.integers(-20, 20, SHAPE)
    (doubt,) = doubts_about(look_of(raw(air)), of_ct)
    assert doubt == "has hardly a voxel from -80 to 220, where the labelled voxels of the training images lie"


@pytest.mark.fault(
    "A5",
    "one voxel of 3e38 or 1e30, which ruins the z-score of all others",
    "a warning that names the voxel's value and the range of the others",
)
@pytest.mark.parametrize("value", [3e38, 1e30, -1e30, 1e12])
@pytest.mark.parametrize("has_profile", [True, False])
def test_one_extreme_voxel_is_named(of_ct: Plan, of_mr: Plan, value: float, has_profile: bool) -> None:
    for plan, image in ((of_ct, CT_IMAGE), (of_mr, MR_IMAGE)):
        spoiled = image.copy()
        spoiled[8, 15, 14] = value
        (doubt,) = doubts_about(look_of(raw(spoiled)), plan if has_profile else without_grid(plan))
        assert doubt.startswith(f"holds a voxel of {value:.3g} where nearly all others lie from ")


def test_an_image_of_one_value_is_named(of_mr: Plan) -> None:
    assert doubts_about(look_of(raw(np.full(SHAPE, 7.0))), of_mr) == ("has the same value everywhere (7)",)


@pytest.mark.fault(
    "A5",
    "a spacing of a thousandth or a thousand times the training images' (unit micron or meter)",
    "a warning that asks for the header's unit",
)
@pytest.mark.parametrize(("factor", "words"), [(1e-3, "a thousandth of"), (1e3, "a thousand times"), (1e-6, "a millionth of")])
@pytest.mark.parametrize("has_profile", [True, False])
def test_a_spacing_in_another_unit_is_named(of_mr: Plan, factor: float, words: str, has_profile: bool) -> None:
    plan = of_mr if has_profile else without_grid(of_mr)
    (doubt,) = doubts_about(look_of(raw(MR_IMAGE, spacing=(3 * factor, factor, factor))), plan)
    assert doubt.startswith("has voxels of ")
    assert f"{words} that: is the unit in its header right?" in doubt


def test_a_spacing_and_an_extent_far_from_the_training_images_are_named(of_mr: Plan) -> None:
    coarse = doubts_about(look_of(raw(MR_IMAGE, spacing=(11.0, 1.0, 1.0))), of_mr)
    assert coarse == ("has voxels of 1 x 1 x 11 mm, the training images 1 x 1 x 3 mm",)
    long = np.concatenate([MR_IMAGE] * 5)
    assert doubts_about(look_of(raw(long)), of_mr) == ("shows 28 x 30 x 240 mm, the training images 28 x 30 x 48 mm",)


def test_a_dicom_series_may_lie_in_the_axes_of_the_converted_training_images(of_mr: Plan) -> None:
    look = look_of(raw(mr(np.random.default_rng(5)), code="LPS"))
    assert any("is stored as LPS" in doubt for doubt in doubts_about(look, of_mr))
    assert not doubts_about(replace(look, is_dicom=True), of_mr)
    assert any("is stored as PIR" in doubt for doubt in doubts_about(replace(look, is_dicom=True, orientation="PIR"), of_mr))


@pytest.mark.fault("A5", "an orientation that no training image has", "a warning that names it and those of the training images")
@pytest.mark.parametrize("code", ["LAS", "LPS", "RAI"])
def test_an_orientation_never_seen_is_named(of_mr: Plan, code: str) -> None:
    (doubt,) = doubts_about(look_of(raw(MR_IMAGE, code=code)), of_mr)
    assert doubt.startswith(f"is stored as {code}, and the training images as RAS")


def test_where_training_files_were_stored_in_many_ways_one_more_is_no_doubt(planned: Plan) -> None:
    codes = ("RAS", "LAS", "LPS", "RPS", "RAI", "LAI", "LPI")
    mixed = [look_of(raw(mr(np.random.default_rng(seed)), code=code)) for seed, code in enumerate(codes)]
    plan = plan_for(planned, profile_of_looks(mixed, [FOREGROUND]), "T2")
    assert doubts_about(look_of(raw(MR_IMAGE, code="RPI")), plan) == ()


@pytest.mark.fault("A5", "channels in another order than in training", "a warning that says which channel fits which")
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_swapped_channels_are_named(planned: Plan, order: tuple[int, ...]) -> None:
    def channels(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [ct(rng), pet(rng), 3000 + 20 * pet(rng)]

    training = [look_of(raw(*channels(seed))) for seed in range(6)]
    names = ("CT", "PET", "T2")
    plan = plan_for(planned, profile_of_looks(training, [FOREGROUND] * 3), *names)
    found = channels(60)
    assert doubts_about(look_of(raw(*found)), plan) == ()
    swapped = doubts_about(look_of(raw(*(found[place] for place in order))), plan)
    moved = ", ".join(f"channel {index} fits {names[place]}" for index, place in enumerate(order) if index != place)
    assert f"seems to have its channels in another order: by its grey values {moved}" in swapped


# ---- in the model, on the command line


def image_like(trained: Path, target: Path, *, change: Any = lambda array: array, scale: float = 1.0) -> Path:
    """The first test image, changed, with its spacing times ``scale``."""
    from medseg3d.images import read_image

    image = read_image(trained / "imagesTs/ball_6_0000.nii.gz")
    affine = image.header.geometry.matrix
    affine[:3, :3] *= scale
    return write_image(target, change(image.array.astype(np.float32)), affine)


def test_the_plan_keeps_what_the_training_images_look_like_and_an_older_one_opens(planned: Plan, tmp_path: Path) -> None:
    assert planned.images is not None
    assert planned.images.num_cases == 6
    assert planned.images.orientations == {"LAS": 2, "LPS": 2, "RAS": 2}
    assert [round(each.median, 6) for each in planned.images.spacing] == [1.0, 1.0, 1.5]
    (channel,) = planned.images.channels
    assert channel.minimum.low < 100 < channel.quantiles[-1].median
    write_record(tmp_path / "plan.json", planned, "plan")
    document = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    del document["images"]
    (tmp_path / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    assert read_record(tmp_path / "plan.json", Plan, "plan") == replace(planned, images=None)


@pytest.mark.fault(
    "A5",
    "prediction of an image that is unlike the training images",
    "the label map is written, exit 0, with the warning beside it in `predictions.json`; `--strict` refuses the case, exit 3",
)
def test_predict_warns_and_records_and_refuses_when_strict(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    image_like(trained, tmp_path / "in/micron.nii.gz", scale=1e-3)
    image_like(trained, tmp_path / "in/usual.nii.gz")
    command = ["predict", str(trained), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    assert "micron: this image has voxels of 0.001 x 0.001 x 0.0015 mm" in caplog.text
    assert "usual:" not in caplog.text
    cases = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))["cases"]
    assert [len(cases[f"{name}.nii.gz"]["warnings"]) for name in ("micron", "usual")] == [1, 0]
    assert main([*command[:-4], "-o", str(tmp_path / "strict"), "--device", "cpu", "--strict"]) == 3
    assert "micron (predict): this image has voxels of" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in (tmp_path / "strict").glob("*.nii.gz")] == ["usual.nii.gz"]
    caplog.clear()
    assert main(command) == 0
    assert "micron: this image has voxels of" in caplog.text, "also where the label map is kept from before"
    assert main([*command, "--strict"]) == 3
    assert "is there from an earlier call" in capsys.readouterr().err


def test_a_strict_model_refuses_an_array(trained: Path) -> None:
    model = medseg3d.load_model(trained, device="cpu").strictly()
    array = np.random.default_rng(0).normal(100, 10, (20, 18, 12))
    assert model.predict(array, np.diag([1.0, 1.0, 1.5, 1.0])).shape == array.shape
    with pytest.raises(InputError, match="is the unit in its header right"):
        model.predict(array, np.diag([1e-3, 1e-3, 1.5e-3, 1.0]))


# ---- real datasets


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "channel"), [("ACDC", "MRI"), ("OpenKBP", "CT"), ("CHAOS_T2", "T2"), ("Hippocampus", "MRI")])
def test_the_other_half_of_a_real_dataset_is_no_doubt_and_other_datasets_are(
    real_data: Path, planned: Plan, name: str, channel: str
) -> None:
    cases = open_dataset(real_data / name).training[:16]
    seen = [look_of(read_case(case, with_label=False)) for case in cases]
    plan = plan_for(planned, profile_of_looks(seen[::2], [FOREGROUND]), channel)
    assert [doubts_about(look, plan) for look in seen[1::2]] == [()] * len(seen[1::2])
    for other in {"ACDC", "OpenKBP", "LeftAtrium"} - {name}:
        look = look_of(read_case(open_dataset(real_data / other).training[0], with_label=False))
        assert doubts_about(look, plan)
