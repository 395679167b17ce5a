"""Models of several channels: one series of a study for each, on one grid; nothing is resampled, and what is missing is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from medseg3d.commandline.cli import main
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.images import read_image
from medseg3d.images.dicom_seg import read_image as read_seg
from medseg3d.listening.choose import chosen, look_at
from medseg3d.listening.receive import receiving
from medseg3d.listening.rules import Channel, Receive, Rule
from medseg3d.listening.spool import Spool
from medseg3d.models.loading import load_model
from medseg3d.models.model_file import write_model_file
from medseg3d.models.parts import MemberDescription, ModelDescription
from medseg3d.networks.build import build_network
from medseg3d.plan import Normalization
from tests.dicom_writer import ENHANCED_MR, MR, volume, write_enhanced, write_series
from tests.in_memory import parts_of
from tests.test_plan import NETWORK, PLAN

SHAPE = (18, 20, 12)
RULE = Rule(
    name="tumor",
    model=Path("tumor.medseg3d"),
    modality="MR",
    channel=(Channel(name="T2", description="t2"), Channel(name="T1", description="t1", exclude="post")),
)


def write_study(folder: Path, *, t2: str = "T2 axial", **more: object) -> Path:
    """A T1, a T1 after contrast and a T2 on one grid; ``more`` is said of the T2's slices."""
    for number, description in ((1, "T1 axial"), (2, "T1 post axial"), (3, t2)):
        tags = more if number == 3 else {}
        series = {"kind": MR, "series": f"1.2.3.{number}", "SeriesDescription": description}
        write_series(folder / str(number), volume(SHAPE, number), PatientName="Secret^Name", **series, **tags)  # type: ignore[arg-type]
    return folder


def test_the_series_of_each_channel_are_taken_in_the_order_of_the_rule(tmp_path: Path) -> None:
    study = look_at(write_study(tmp_path))
    ((picked,), reason) = chosen(study, RULE)
    assert reason == ""
    assert picked.counts == (12, 12)
    assert [path.parent.name for path in picked.paths[::12]] == ["3", "1"]
    assert chosen(study, replace(RULE, modality="CT")) == ([], "")


def test_a_volume_with_slices_missing_is_told_and_the_others_are_predicted(tmp_path: Path) -> None:
    for number, count in ((1, 6), (2, 4)):
        tags = {"TemporalPositionIdentifier": number, "names": f"{number}-{{}}".format}
        write_series(tmp_path, volume(seed=number)[:, :, :count], kind=MR, **tags)  # type: ignore[arg-type]
    taken, reason = chosen(look_at(tmp_path), Rule(name="all", model=Path("m")))
    assert [picked.num_slices for picked in taken] == [6]
    assert reason == "Time2: 2 slices missing, which other volumes of the series have"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda place: write_study(place, t2="FLAIR"), "no series fits the channel T2"),
        (
            lambda place: write_study(place, PixelSpacing=["0.5", "0.5"]),
            r"channel T1 does not lie on the grid of T2 .* nothing is resampled",
        ),
        (lambda place: write_study(place, step=(0, 0, 3.0)), "does not lie on the grid of T2"),
    ],
)
def test_what_is_missing_or_lies_on_another_grid_is_said(write: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    taken, told = chosen(look_at(write(tmp_path)), RULE)
    assert taken == []
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(told)


def test_of_several_series_the_one_on_the_grid_is_taken(tmp_path: Path) -> None:
    write_study(tmp_path)
    more = {"kind": MR, "series": "1.2.3.9", "SeriesDescription": "T1 sagittal, long"}
    write_series(tmp_path / "9", volume((18, 20, 15), 9), orientation=(0, 1, 0, 0, 0, -1), **more)
    ((picked,), _) = chosen(look_at(tmp_path), RULE)
    assert [path.parent.name for path in picked.paths[::12]] == ["3", "1"]


def untrained(path: Path, *channels: str) -> Path:
    """A model of these channels that was never trained."""
    network = replace(NETWORK, in_channels=len(channels))
    normalization = (Normalization(scheme="zscore"),) * len(channels)
    configuration = replace(PLAN.configuration("3d_fullres"), network=network, normalization=normalization, mirror_axes=())
    plan = replace(PLAN, channels=channels, configurations={"3d_fullres": configuration})
    weights = build_network(network, generator=torch.Generator().manual_seed(0)).state_dict()
    description = ModelDescription(plan=plan, members=(MemberDescription(configuration="3d_fullres", folds=("0",)),))
    return write_model_file(path, parts_of(description, {"3d_fullres": {"0": weights}}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two channels."""
    return untrained(tmp_path_factory.mktemp("model") / "tumor.medseg3d", "T1", "T2")


def write_rules(place: Path, model: Path, channels: str) -> Path:
    file = place / "night.toml"
    file.write_text(
        f'[receive]\nfolder = "inbox"\nsettle_seconds = 0\n[[rule]]\nname = "tumor"\nmodel = "{model}"\nsend_to = ["out"]\n{channels}\n'
        '[[destination]]\nname = "out"\nfolder = "out"\n',
        encoding="utf-8",
    )
    return file


def send_all(study: Path, spool: Path) -> None:
    """By network, in one association, into a spool."""
    from pynetdicom import AE, StoragePresentationContexts

    found = Spool(spool)
    found.prepare()
    with receiving(Receive(port=0), found) as port:
        entity = AE(ae_title="HERE")
        entity.requested_contexts = [each for each in StoragePresentationContexts if each.abstract_syntax in (MR, ENHANCED_MR)]
        association = entity.associate("127.0.0.1", port or 0, ae_title="MEDSEG3D")
        assert association.is_established
        for path in sorted(study.rglob("*.dcm")):
            assert association.send_c_store(pydicom.dcmread(path)).Status == 0
        association.release()


def assert_same_labels(seg: Path, label_map: Path) -> None:
    """The SEG holds the label map; slices without a label are not in it."""
    expected, found = read_image(label_map), read_seg(seg)
    place = np.rint(np.linalg.inv(expected.header.geometry.matrix) @ found.header.geometry.matrix[:, 3])[:3]
    inside = tuple(slice(int(start), int(start) + size) for start, size in zip(place, found.array.shape, strict=True))
    values = np.zeros(expected.array.shape, int)
    values[inside] = np.array([0, 3, 7])[found.array]
    assert len(np.unique(values)) > 1
    assert np.array_equal(values, expected.array)


CHANNELS = '[[rule.channel]]\nname = "T2"\ndescription = "t2"\n[[rule.channel]]\nname = "T1"\ndescription = "t1"\nexclude = "post"'


def test_a_study_of_three_series_that_comes_by_network_is_predicted_from_two(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
    study = write_study(tmp_path / "study")
    send_all(study, tmp_path / "spool")
    assert main(["listen", str(write_rules(tmp_path, model, CHANNELS)), "--once", "--device", "cpu", "-q"]) == 0
    (result,) = (tmp_path / "out").glob("*.seg.dcm")
    case = Case(name="case", channels=tuple(ChannelFile(path=study / number) for number in ("1", "3")))
    load_model(model, device="cpu").predict_case(case, tmp_path / "case.nii.gz")
    assert_same_labels(result, tmp_path / "case.nii.gz")
    log = (tmp_path / "spool/listen.log").read_text(encoding="utf-8")
    assert "rule tumor: 12 slices to be predicted" in log


def test_channels_that_are_not_the_models_are_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
    for channels, named in (("", "names none"), (CHANNELS.replace('"T2"', '"FLAIR"'), "names FLAIR, T1")):
        assert main(["listen", str(write_rules(tmp_path, model, channels)), "--once", "--device", "cpu", "-q"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"takes the channels T1, T2, and the rule {named}" in error


def test_an_enhanced_multi_frame_image_that_comes_by_network_is_predicted_on_its_frames(tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
    single = untrained(tmp_path / "single.medseg3d", "MRI")
    order = tuple(reversed(range(SHAPE[2])))
    path = write_enhanced(tmp_path / "study" / "one.dcm", volume(SHAPE), order=order, SeriesDescription="T1 axial", PatientName="A^B")
    send_all(path.parent, tmp_path / "spool")
    assert main(["listen", str(write_rules(tmp_path, single, "")), "--once", "--device", "cpu", "-q"]) == 0
    (result,) = (tmp_path / "out").glob("*.seg.dcm")
    case = Case(name="case", channels=(ChannelFile(path=write_series(tmp_path / "slices", volume(SHAPE))),))
    load_model(single, device="cpu").predict_case(case, tmp_path / "case.nii.gz")
    assert_same_labels(result, tmp_path / "case.nii.gz")
    source = pydicom.dcmread(result).PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    assert source.ReferencedFrameNumber >= 1
    assert "12 slices to be predicted" in (tmp_path / "spool/listen.log").read_text(encoding="utf-8")
