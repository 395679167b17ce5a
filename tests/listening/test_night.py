"""Studies on their way through the spool: none is lost and none is doubled, whatever fails and whenever the process dies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom
import pytest

from medseg3d.errors import ImageReadError, InputError, StorageError
from medseg3d.files import Storage, using_storage, write_bytes
from medseg3d.listening.night import LONGEST_PAUSE, Night, SendError
from medseg3d.listening.rules import Destination, ListenRules, Receive, Rule
from medseg3d.listening.spool import Job, Spool
from tests.dicom_writer import CT, MR, volume, write_other, write_series

HOUR = 3600.0


def rules_for(folder: Path, **changes: object) -> ListenRules:
    """Two rules for MR, and one for CT that no study fits."""
    return ListenRules(
        receive=Receive(folder=folder, settle_seconds=0, keep_hours=1),
        rule=(
            Rule(name="brain", model=folder, modality="MR", description="t1", send_to=("pacs", "copy")),
            Rule(name="largest", model=folder, modality="MR", at_most=1, send_to=("pacs",)),
            Rule(name="liver", model=folder, modality="CT", min_slices=100),
        ),
        destination=(Destination(name="pacs", host="127.0.0.1"), Destination(name="copy", folder=folder)),
        **changes,  # type: ignore[arg-type]
    )


@dataclass
class World:
    """What is outside of the spool: an archive that keeps each result once, by its content, and counts how often it came."""

    root: Path
    archive: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    predicted: list[tuple[str, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    is_down: bool = False
    now: float = 2e9

    def night(self, **changes: object) -> Night:
        """A listener that begins, as after a restart."""
        spool = Spool(self.root / "spool")
        spool.prepare()
        return Night(spool=spool, rules=rules_for(self.root, **changes), predict=self.predict, send=self.send, say=self.lines.append)

    def predict(self, job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        """A result that says what it was made of."""
        self.predicted.append((rule.name, len(paths)))
        content = f"{rule.name} {sorted(path.name for path in paths)}".encode()
        return (write_bytes(folder / "result.seg.dcm", content),)

    def send(self, path: Path, destination: Destination) -> None:
        """The archive takes what it has once more."""
        if self.is_down:
            raise SendError(f"{destination.name}: nobody answers.")
        self.archive[destination.name, path.read_bytes()] += 1

    def run(self, night: Night) -> None:
        """Until nothing is due."""
        for _ in range(200):
            if not night.step(self.now):
                return
        raise AssertionError("it goes on for ever")


@cache
def study_files(slices: int) -> tuple[bytes, ...]:
    """A T1, a longer T2, a CT and a report of one patient."""
    with TemporaryDirectory() as name:
        for number, kind, description, count in ((1, MR, "T1 axial", slices), (2, MR, "T2", slices + 2), (3, CT, "T1", slices)):
            tags = {"kind": kind, "series": f"1.2.{number}", "SeriesDescription": description}
            write_series(Path(name, str(number)), volume((4, 4, count), number), PatientName="Secret^Name", patient="p-secret", **tags)
        write_other(Path(name, "report.dcm"), "1.2.840.10008.5.1.4.1.1.88.67")
        return tuple(path.read_bytes() for path in sorted(Path(name).rglob("*.dcm")))


def add_study(world: World, *, slices: int = 6) -> None:
    """Through the spool's door."""
    spool = Spool(world.root / "spool")
    spool.prepare()
    for content in study_files(slices):
        spool.add(content)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(root=tmp_path)


def test_each_rule_takes_the_series_that_fit_it(world: World) -> None:
    add_study(world)
    world.run(world.night())
    assert sorted(world.predicted) == [("brain", 6), ("largest", 8)]
    assert sorted(name for name, _ in world.archive) == ["copy", "pacs", "pacs"]


@pytest.mark.fault(
    "B", "a file in the spool that a bad disk has damaged before it names its series", "costs the series beside it, and is told"
)
def test_a_damaged_file_costs_its_series_and_no_other(world: World) -> None:
    add_study(world)
    with TemporaryDirectory() as name:
        last = sorted(write_series(Path(name), kind=MR, series="1.2.1", patient="p-secret").iterdir())[-1]
        place = Spool(world.root / "spool").place_of(last)
    place.write_bytes(place.read_bytes()[:200])
    world.run(world.night())
    assert world.predicted == [("largest", 8)]
    assert any("1 damaged file; the series they lie in are not predicted" in line for line in world.lines)


def test_a_file_that_is_damaged_after_its_study_was_predicted_is_told(world: World) -> None:
    add_study(world)
    world.run(night := world.night())
    add_study(world, slices=7)
    with TemporaryDirectory() as name:
        last = sorted(write_series(Path(name), kind=MR, series="1.2.1", patient="p-secret").iterdir())[-1]
        place = Spool(world.root / "spool").place_of(last)
    place.write_bytes(place.read_bytes()[:200])
    world.run(night)
    told = [line for line in world.lines if "1 damaged file; the series they lie in are not predicted" in line]
    assert len(told) == 1


def test_a_study_that_is_sent_again_is_not_predicted_again(world: World) -> None:
    add_study(world)
    world.run(world.night())
    add_study(world)
    world.run(world.night())
    assert len(world.predicted) == 2
    assert set(world.archive.values()) == {1}


def test_slices_that_come_late_are_predicted_with_the_others(world: World) -> None:
    add_study(world)
    world.run(night := world.night())
    add_study(world, slices=7)
    world.run(night)
    assert sorted(world.predicted) == [("brain", 6), ("brain", 7), ("largest", 8), ("largest", 9)]


def test_a_study_waits_until_nothing_came_for_a_while(world: World) -> None:
    add_study(world)
    night = world.night()
    night.rules = replace(night.rules, receive=replace(night.rules.receive, settle_seconds=4e9))
    world.run(night)
    assert not world.predicted


def test_an_archive_that_is_down_is_tried_again_and_gets_everything_once(world: World) -> None:
    add_study(world)
    night = world.night()
    world.is_down = True
    world.run(night)
    assert not world.archive
    for _ in range(12):
        world.now += LONGEST_PAUSE
        world.run(world.night())  # restarted each time
    world.is_down = False
    world.now += LONGEST_PAUSE
    world.run(world.night())
    assert len(world.predicted) == 2
    assert list(world.archive.values()) == [1, 1, 1]


def test_what_never_arrives_is_given_up_with_its_reason(world: World) -> None:
    add_study(world)
    world.is_down = True
    night = world.night(give_up_hours=2.0)
    for _ in range(30):
        world.run(night)
        world.now += LONGEST_PAUSE
    assert {job.state for job in night.jobs} == {"failed"}
    assert all("nobody answers" in job.reason for job in night.jobs)
    assert any("given up: to " in line for line in world.lines)


def test_a_prediction_that_fails_costs_its_job_only(world: World) -> None:
    add_study(world)
    works, night = world.predict, world.night()

    def predict(job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        if rule.name == "brain":
            raise InputError("cannot be decoded")
        return works(job, rule, paths, folder)

    night.predict = predict
    for _ in range(5):
        world.run(night)
        world.now += LONGEST_PAUSE
    assert {job.rule: job.state for job in night.jobs} == {"brain": "failed", "largest": "sent"}


def test_what_is_done_is_removed_and_remembered(world: World) -> None:
    add_study(world)
    world.run(world.night())
    world.now += 2 * HOUR
    world.run(night := world.night())
    assert not list(night.spool.received.iterdir())
    assert not list((night.spool.root / "results").iterdir())
    add_study(world)
    world.run(world.night())
    assert len(world.predicted) == 2


def test_a_destination_that_is_down_does_not_hold_up_the_others(world: World) -> None:
    add_study(world)
    works, night = world.send, world.night(give_up_hours=2.0)

    def send(path: Path, destination: Destination) -> None:
        if destination.name == "pacs":
            raise OSError("a name that does not resolve")
        works(path, destination)

    night.send = send
    world.run(night)
    assert [name for name, _ in world.archive] == ["copy"]
    night.send = works
    world.now += LONGEST_PAUSE
    world.run(night)
    assert sorted(name for name, _ in world.archive) == ["copy", "pacs", "pacs"]
    assert set(world.archive.values()) == {1}


def test_a_full_disk_is_waited_for(world: World) -> None:
    add_study(world)
    works, night = world.predict, world.night()

    def full(job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        raise StorageError("the disk is full")

    night.predict = full
    for _ in range(8):
        world.run(night)
        world.now += LONGEST_PAUSE
    night.predict = works
    world.run(night)
    assert {job.state for job in night.jobs} == {"sent"}


def test_what_failed_is_tried_again_when_the_study_comes_again(world: World) -> None:
    add_study(world)
    works, night = world.predict, world.night(attempts=1)

    def defect(job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        raise ZeroDivisionError

    night.predict = defect
    world.run(night)
    assert {job.state for job in night.jobs} == {"failed"}
    assert all("ZeroDivisionError" in job.reason for job in night.jobs)
    night.predict = works
    world.run(night)
    assert not world.archive
    add_study(world)
    world.run(night)
    assert {job.state for job in night.jobs} == {"sent"}


def test_a_part_of_a_series_is_not_sent_where_the_whole_is_known(world: World) -> None:
    add_study(world)
    world.is_down = True
    world.run(night := world.night())
    add_study(world, slices=7)
    world.run(night)
    world.is_down = False
    world.now += LONGEST_PAUSE
    world.run(night)
    assert Counter(job.state for job in night.jobs) == {"sent": 2, "replaced": 2}
    assert len(world.archive) == 3


def test_a_result_that_is_gone_is_predicted_again_and_a_damaged_record_put_aside(world: World) -> None:
    add_study(world)
    world.is_down = True
    world.run(night := world.night())
    for path in (night.spool.root / "results").rglob("*.dcm"):
        path.unlink()
    next(night.spool.jobs.glob("[!.]*.json")).write_bytes(b"")
    world.is_down = False
    world.now += LONGEST_PAUSE
    world.run(night := world.night())
    assert {job.state for job in night.jobs} == {"sent"}
    assert len(world.archive) == 3
    assert any("damaged" in line for line in world.lines)


def test_a_study_that_cannot_be_looked_at_leaves_the_others(world: World) -> None:
    with TemporaryDirectory() as name:
        far = write_series(Path(name), kind=MR, study="1.9", series="1.9.1", ImagePositionPatient=["1e308"] * 3, SeriesDescription="T1")
        spool = Spool(world.root / "spool")
        spool.prepare()
        for path in far.iterdir():
            spool.add(path.read_bytes())
    add_study(world)
    world.run(night := world.night())
    assert night.is_done()
    assert len(world.archive) == 6  # its pixels are no grid, which the prediction says


def test_only_the_user_reads_the_spool(world: World) -> None:
    add_study(world)
    assert (world.root / "spool").stat().st_mode & 0o077 == 0


def test_no_line_and_no_path_names_the_patient(world: World) -> None:
    add_study(world)
    world.is_down = True
    world.run(world.night(give_up_hours=0.0))
    text = "\n".join(world.lines) + "".join(str(path) for path in (world.root / "spool").rglob("*"))
    assert len(world.lines) >= 4
    for secret in ("Secret", "secret", "1.2.1", "T1 axial"):
        assert secret not in text


class Killed(BaseException):
    """The process is gone: nothing is tidied up."""


class Mortal(Storage):
    """Dies before its n-th operation, and does nothing any more."""

    def __init__(self, after: int) -> None:
        self.left = after

    def _live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def make_folder(self, folder: Path) -> None:
        self._live()
        super().make_folder(folder)

    def write(self, path: Path, content: bytes) -> None:
        self._live()
        super().write(path, content)

    def finish(self, path: Path) -> None:
        self._live()

    def replace(self, source: Path, target: Path) -> None:
        self._live()
        super().replace(source, target)

    def remove(self, path: Path) -> None:
        self._live()
        super().remove(path)

    def remove_tree(self, folder: Path) -> None:
        self._live()
        super().remove_tree(folder)


def test_killed_before_any_of_its_writes_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    whole = World(root=tmp_path / "whole")
    whole.root.mkdir()
    add_study(whole)
    whole.run(whole.night())
    expected, deaths = set(whole.archive), 0
    for after in range(0, 400, 5):
        world = World(root=tmp_path / f"w{after}")
        world.root.mkdir()
        add_study(world)
        try:
            with using_storage(Mortal(after)):
                world.run(world.night())
        except Killed:
            deaths += 1
            world.run(world.night())
        else:
            break
        assert set(world.archive) == expected
        assert {job.state for job in world.night().jobs} == {"sent"}
        assert not list(Spool(world.root / "spool").incoming.iterdir())
    assert deaths > 4
    assert after < 399


def test_what_is_no_dicom_is_refused_at_the_door(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    with pytest.raises(ImageReadError):
        spool.add(b"no DICOM")
    assert not list(spool.incoming.iterdir())


def corrected(slices: int = 6, name: str = "Corrected^Name", **more: object) -> list[bytes]:
    """The files of the study, with another name of the patient."""
    found = []
    for content in study_files(slices):
        file = pydicom.dcmread(BytesIO(content))
        file.PatientName = name
        for tag, value in more.items():
            setattr(file, tag, value)
        stream = BytesIO()
        file.save_as(stream, enforce_file_format=True)
        found.append(stream.getvalue())
    return found


def add_all(world: World, contents: Sequence[bytes]) -> None:
    spool = Spool(world.root / "spool")
    for content in contents:
        spool.add(content)
    for folder in spool.received.rglob("*"):  # it is seen that they came, whatever the clock's steps
        if folder.is_dir():
            os.utime(folder, (folder.stat().st_mtime + 1,) * 2)


def names_of(paths: Sequence[Path]) -> set[str]:
    return {str(pydicom.dcmread(path).PatientName) for path in paths}


def test_an_instance_that_comes_corrected_before_it_was_predicted_is_the_one_that_is_predicted(world: World) -> None:
    add_study(world)
    add_all(world, corrected())
    seen: set[str] = set()
    works, night = world.predict, world.night()

    def predict(job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        seen.update(names_of(paths))
        return works(job, rule, paths, folder)

    night.predict = predict
    world.run(night)
    assert seen == {"Corrected^Name"}
    assert len(world.predicted) == 2


def test_what_comes_corrected_before_it_was_sent_is_predicted_again(world: World) -> None:
    add_study(world)
    world.is_down = True
    world.run(night := world.night())
    add_all(world, corrected())
    world.run(night)
    assert len(world.predicted) == 4
    assert sum("came again with other content; it is predicted again" in line for line in world.lines) == 2
    world.is_down = False
    world.now += LONGEST_PAUSE
    world.run(night)
    assert set(world.archive.values()) == {1}
    assert len(world.archive) == 3


def test_what_comes_corrected_after_it_was_sent_is_said_once_and_stays(world: World) -> None:
    add_study(world)
    world.run(world.night())
    add_all(world, corrected())
    world.run(night := world.night())  # restarted: what was predicted is written down
    add_all(world, corrected())
    world.run(night)
    assert len(world.predicted) == 2
    assert sum("after its results were sent" in line for line in world.lines) == 2
    assert not any("Corrected" in line for line in world.lines)


def test_what_comes_corrected_while_it_is_predicted_is_predicted_again(world: World) -> None:
    add_study(world)
    works, night = world.predict, world.night()
    is_first = [True]

    def predict(job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        made = works(job, rule, paths, folder)
        if is_first.pop() if is_first else False:
            add_all(world, corrected())
        return made

    night.predict = predict
    world.run(night)
    assert len(world.predicted) == 3
    assert any("while it was predicted" in line for line in world.lines)
    assert {job.state for job in night.jobs} == {"sent"}


def test_what_says_the_same_in_other_bytes_is_not_predicted_again(world: World) -> None:
    add_study(world)
    world.is_down = True
    world.run(night := world.night())
    before = {path: content for path in night.spool.received.rglob("*.dcm") if b"Secret" in (content := path.read_bytes())}
    add_all(world, corrected(name="Secret^Name", InstitutionName="Elsewhere"))  # of which nothing goes into a result
    world.run(night)
    assert len(world.predicted) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_nothing_is_predicted_while_instances_of_its_study_come(world: World) -> None:
    add_study(world)
    night = world.night()
    assert night.step(world.now)
    assert [job.state for job in night.jobs] == ["waiting", "waiting"]
    night.rules = replace(night.rules, receive=replace(night.rules.receive, settle_seconds=4e9))
    world.run(night)
    assert not world.predicted
