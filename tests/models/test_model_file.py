"""The single-file model: what is written comes back bit by bit, and what was changed on the way is found."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from medseg3d.errors import InputError, PlanMismatchError, StorageError
from medseg3d.labels import Labels
from medseg3d.models.model_card import model_card
from medseg3d.models.model_file import open_model_file, write_model_file
from medseg3d.models.parts import MemberDescription, ModelDescription, ModelParts
from medseg3d.networks import build_network
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan
from medseg3d.records import to_plain
from medseg3d.validation.postprocessing import Decision, Postprocessing, Step
from tests.in_memory import Weights, parts_of, weights_of

NETWORK = NetworkPlan(
    family="plain_unet",
    dimensions=3,
    in_channels=1,
    num_classes=3,
    features=(2, 3),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
CONFIGURATION = Configuration(
    name="3d_fullres",
    spacing=(2.5, 1.0, 1.0),
    median_shape=(12.0, 20.5, 18.0),
    patch_size=(4, 8, 8),
    batch_size=2,
    batch_dice=False,
    network=NETWORK,
    normalization=(Normalization(scheme="ct", mean=40.5, std=12.0, lower=-100.0, upper=300.0),),
    resampling=Resampling(),
    training=TrainingPlan(),
    mirror_axes=(0, 1, 2),
    data="3d_fullres",
)
PLAN = Plan(
    dataset="Balls | of\nclay",
    planner="default",
    orientation="canonical",
    axis_order=(1, 0, 2),
    channels=("CT",),
    modality_reason="dataset.json says so",
    labels=Labels(names=("background", "shell", "core"), values=(0, 3, 7), pairs=((1, 2),)),
    num_training=6,
    gpu_memory_gb=8.0,
    configurations={"3d_fullres": CONFIGURATION, "zoom": replace(CONFIGURATION, name="zoom", spacing=(1.0, 1.0, 1.0))},
    recommended="3d_fullres",
    recommended_reason="the only one",
    fingerprint_digest="0",
)
POSTPROCESSING = Postprocessing(
    steps=(Step(operation="keep_largest", index=1),),
    decisions=(
        Decision(
            step=Step(operation="keep_largest", index=1),
            label="shell",
            dice_before=0.5,
            dice_after=None,
            num_cases=3,
            accepted=True,
            reason="x",
        ),
    ),
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    return dict(build_network(NETWORK, generator=torch.Generator().manual_seed(seed)).state_dict())


WEIGHTS = {"zoom": {"0": tensors(0)}, "3d_fullres": {"0": tensors(1), "10": tensors(2), "all": tensors(3)}}


def make_parts() -> ModelParts:
    description = ModelDescription(
        plan=PLAN,
        members=(
            MemberDescription(configuration="zoom", folds=("0",), mirroring=False),
            MemberDescription(configuration="3d_fullres", folds=("0", "10", "all")),
        ),
        postprocessing=POSTPROCESSING,
        facts={"cross_validation_dice": 0.75, "cross_validation_cases": 6, "whole": 1.0, "count": 1, "none": None, "dataset": "Balls"},
    )
    return parts_of(description, WEIGHTS)


def identity_of(description: ModelDescription, weights: Weights, folder: Path) -> str:
    return open_model_file(write_model_file(folder / "any.medseg3d", parts_of(description, weights))).identity


def read_all(path: Path) -> ModelParts:
    parts = open_model_file(path)
    weights_of(parts)
    return parts


@pytest.fixture(scope="module")
def parts() -> ModelParts:
    return make_parts()


@pytest.fixture(scope="module")
def written(parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_file(tmp_path_factory.mktemp("models") / "balls.medseg3d", parts)


def assert_equal(found: ModelParts, expected: ModelParts) -> None:
    """To the type of every number and the bits of every tensor."""
    assert found.description == expected.description
    assert json.dumps(to_plain(found.description)) == json.dumps(to_plain(expected.description))
    expected_weights, found_weights = weights_of(expected), weights_of(found)
    assert {name: set(folds) for name, folds in found_weights.items()} == {name: set(folds) for name, folds in expected_weights.items()}
    for name, folds in expected_weights.items():
        for fold, own in folds.items():
            read = found_weights[name][fold]
            assert set(read) == set(own)
            assert all(read[key].dtype == own[key].dtype and torch.equal(read[key], own[key]) for key in own)


def test_what_is_written_is_read_bit_by_bit(written: Path, parts: ModelParts) -> None:
    assert_equal(open_model_file(written), parts)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]),
    facts=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    ),
)
def test_any_tensors_and_facts_come_back(values: list[float], dtype: torch.dtype, facts: dict, tmp_path: Path) -> None:
    whole = make_parts()
    tensor = torch.tensor(values).nan_to_num(1.0).clamp(-9, 9).to(dtype)
    repeated = {name: tensor.repeat(own.numel())[: own.numel()].reshape(own.shape[::-1]) for name, own in tensors(0).items()}
    strange = {name: turned.permute(*reversed(range(turned.dim()))) for name, turned in repeated.items()}
    expected = parts_of(replace(whole.description, facts=facts), {**WEIGHTS, "zoom": {"0": strange}})
    assert_equal(open_model_file(write_model_file(tmp_path / "any.medseg3d", expected)), expected)


def test_the_same_parts_give_the_same_bytes(written: Path, parts: ModelParts, tmp_path: Path) -> None:
    weights = {name: {fold: dict(reversed(own.items())) for fold, own in folds.items()} for name, folds in WEIGHTS.items()}
    turned = parts_of(parts.description, weights)
    assert write_model_file(tmp_path / "again.medseg3d", turned).read_bytes() == written.read_bytes()
    assert write_model_file(tmp_path / "twice.medseg3d", open_model_file(written)).read_bytes() == written.read_bytes()


def test_the_identity_follows_what_changes_a_prediction(written: Path, parts: ModelParts, tmp_path: Path) -> None:
    description, identity = parts.description, open_model_file(written).identity
    assert identity_of(replace(description, facts={}), WEIGHTS, tmp_path) == identity
    others = [
        identity_of(replace(description, postprocessing=Postprocessing()), WEIGHTS, tmp_path),
        identity_of(replace(description, members=description.members[::-1]), WEIGHTS, tmp_path),
        identity_of(replace(description, plan=replace(PLAN, axis_order=(0, 1, 2))), WEIGHTS, tmp_path),
        identity_of(description, {**WEIGHTS, "zoom": {"0": tensors(9)}}, tmp_path),
        open_model_file(written, "zoom").identity,
        open_model_file(written, "3d_fullres", ("0",)).identity,
    ]
    assert len({identity, *others}) == 7


OLDER = "2d9fde6d9f2fa8358dc8d38a9386b9edce78610dfb2782f1b7624968e5a0968a"
"""The digest of a description as version 0.1.0 wrote it before plans had extensions."""


def test_a_model_of_an_older_version_keeps_its_identity(written: Path, parts: ModelParts, tmp_path: Path) -> None:
    description, identity = replace(parts.description, facts={}), open_model_file(written).identity
    described = replace(PLAN, given_names={1: "liver"}, left_right_doubt="Two labels could be left and right.")
    assert identity_of(replace(description, plan=described), WEIGHTS, tmp_path) == identity
    plain = to_plain(description)
    for name in ("images", "given_names", "left_right_doubt", "frame"):  # which older versions did not know
        del plain["plan"][name]
    for member in (*plain["members"], *plain["previous"]):
        del member["empty_windows"]
    known = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert known == OLDER, "a field that came later must leave the identity of models alone that do not use it (Checked.came_later)"
    files = {f"{name}/fold_{fold}.safetensors": save(dict(folds[fold])) for name, folds in WEIGHTS.items() for fold in folds}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps({"description": plain, "digests": digests}, sort_keys=True)
    assert identity == hashlib.sha256(text.encode()).hexdigest()


def test_the_earlier_stage_of_a_cascade_comes_along_or_alone(tmp_path: Path) -> None:
    cascade = replace(CONFIGURATION, name="cascade", previous_stage="zoom")
    description = ModelDescription(
        plan=replace(PLAN, configurations={**PLAN.configurations, "cascade": cascade}),
        members=tuple(MemberDescription(configuration=name, folds=("0",)) for name in ("cascade", "3d_fullres")),
        previous=(MemberDescription(configuration="zoom", folds=("0", "1")),),
        postprocessing=POSTPROCESSING,
    )
    weights = {"cascade": {"0": tensors(0)}, "3d_fullres": {"0": tensors(1)}, "zoom": {"0": tensors(2), "1": tensors(3)}}
    path = write_model_file(tmp_path / "x.medseg3d", parts_of(description, weights))
    for name, expected in (
        ("cascade", [("cascade", "0"), ("zoom", "0"), ("zoom", "1")]),
        ("zoom", [("zoom", "0"), ("zoom", "1")]),
        ("3d_fullres", [("3d_fullres", "0")]),
    ):
        part = open_model_file(path, name)
        assert list(part.networks()) == expected
        assert part.description.postprocessing == Postprocessing(), "it was chosen for both together"
        write_model_file(tmp_path / f"{name}.medseg3d", part)


def member_ranges(path: Path) -> dict[str, range]:
    """Where the content of each member lies in the file."""
    ranges = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            start = member.header_offset + 30 + len(member.filename)
            ranges[member.filename] = range(start, start + member.file_size)
    return ranges


def test_a_flipped_bit_in_any_member_is_found(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    copy = tmp_path / "flipped.medseg3d"
    generator = random.Random(0)
    for name, places in member_ranges(written).items():
        assert content[places.start : places.stop], name
        for place in {places[0], places[-1], *generator.sample(places, 12)}:
            flipped = bytearray(content)
            flipped[place] ^= 1 << generator.randrange(8)
            copy.write_bytes(flipped)
            with pytest.raises(InputError, match=r"flipped\.medseg3d"):
                read_all(copy)


def test_a_flipped_bit_between_the_members_is_found_or_does_no_harm(written: Path, parts: ModelParts, tmp_path: Path) -> None:
    content = written.read_bytes()
    inside = {place for places in member_ranges(written).values() for place in places}
    copy = tmp_path / "flipped.medseg3d"
    for place in set(range(len(content))) - inside:
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        copy.write_bytes(flipped)
        try:
            found = read_all(copy)
        except InputError:
            continue
        assert_equal(found, parts)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_ends_too_early_is_refused(written: Path, tmp_path: Path, share: float) -> None:
    content = written.read_bytes()
    copy = tmp_path / "short.medseg3d"
    copy.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="Get the file again"):
        read_all(copy)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], *, packed: bool = False) -> Path:
    """A valid archive with changed members."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def document(archive: dict[str, bytes], **changes: object) -> None:
    archive["model.json"] = json.dumps({**json.loads(archive["model.json"]), **changes}).encode()


def described(archive: dict[str, bytes], **changes: object) -> None:
    whole = json.loads(archive["model.json"])
    document(archive, description={**whole["description"], **changes})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.update({"../evil": b""}), "leads out of the archive"),
        (lambda m: m.update({"/etc/evil": b""}), "leads out of the archive"),
        (lambda m: m.update({"zoom/../../evil": b""}), "leads out of the archive"),
        (lambda m: m.update({"C:evil": b""}), "leads out of the archive"),
        (lambda m: m.update({"zoom/evil.py": b""}), "does not belong to the model"),
        (lambda m: m.update({"zoom/": b""}), "does not belong to the model"),
        (lambda m: m.pop("zoom/fold_0.safetensors"), "zoom/fold_0.safetensors is missing"),
        (lambda m: m.pop("README.md"), "README.md is missing"),
        (lambda m: m.pop("model.json"), "has no model.json"),
        (lambda m: m.update({"README.md": b"other words"}), "README.md is not what was written"),
        (lambda m: document(m, format_version=2), "format version 2, this medseg3d reads 1"),
        (lambda m: document(m, format="something"), "not a .medseg3d file"),
        (lambda m: document(m, digests={}), "is missing"),
        (lambda m: document(m, description=None), "description"),
        (lambda m: m.update({"model.json": b"[]"}), "not a .medseg3d file"),
        (lambda m: m.update({"model.json": b"{"}), "damaged"),
        (lambda m: m.update({"model.json": b"[" * 100_000}), "damaged"),
        (lambda m: described(m, members=[]), "it has no network"),
        (lambda m: described(m, members=[{"configuration": "other", "folds": ["0"]}]), "no configuration 'other'"),
        (lambda m: described(m, members=[{"configuration": "zoom", "folds": ["../0"]}]), "cannot be the name"),
        (lambda m: described(m, members=[{"configuration": "zoom", "folds": ["0"]}]), "does not belong to the model"),
        (lambda m: described(m, members=[{"configuration": "zoom", "folds": ["0", "1"]}]), "is missing"),
    ],
)
def test_an_archive_that_is_no_model_is_refused(
    written: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], found: str
) -> None:
    with pytest.raises(InputError, match=found):
        read_all(rewritten(written, tmp_path / "changed.medseg3d", change))
    assert [path.name for path in tmp_path.iterdir()] == ["changed.medseg3d"], "reading never writes"


def test_packed_members_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is compressed"):
        read_all(rewritten(written, tmp_path / "packed.medseg3d", lambda _: None, packed=True))


def test_a_member_that_stands_there_twice_is_refused(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(written, tmp_path / "twice.medseg3d"))
    with zipfile.ZipFile(copy, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("README.md", "another")
    with pytest.raises(InputError, match=r"'README\.md' more than once"):
        open_model_file(copy)


def test_no_file_and_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_all(tmp_path / "none.medseg3d")
    (tmp_path / "text.medseg3d").write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a \.medseg3d file, or damaged"):
        open_model_file(tmp_path / "text.medseg3d")


def test_weights_that_do_not_fit_the_description_are_not_written(parts: ModelParts, tmp_path: Path) -> None:
    others = parts_of(parts.description, {**WEIGHTS, "zoom": {"0": {"weight": torch.ones(1)}}})
    with pytest.raises(PlanMismatchError, match="zoom, fold 0: the weights do not fit the network"):
        write_model_file(tmp_path / "x.medseg3d", others)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_earlier_file(parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_model_file(tmp_path / "x.medseg3d", parts)
    before = target.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_model_file(target, parts)
    assert [path.name for path in tmp_path.iterdir()] == ["x.medseg3d"]
    assert target.read_bytes() == before


def test_the_card_tells_people_what_they_must_know(parts: ModelParts, written: Path) -> None:
    card = model_card(parts.description)
    with zipfile.ZipFile(written) as archive:
        assert archive.read("README.md").decode() == card
    for words in (
        "Balls \\| of clay",
        "| 7 | core |",
        "| 0 | CT |",
        "| 3d_fullres | 3 (0, 10, all) | plain_unet | 2.5 × 1 × 1 | 4 × 8 × 8 | yes |",
        "spacing in mm (A, S, R)",
        "0.7500 over 6 cases",
        "only the largest object of shell is kept",
        "6 cases",
        "no medical device",
        "medseg3d predict -m",
        "count: 1",
    ):
        assert words in card
    assert "none" not in card.split("Also recorded")[1].split("##")[0]


def test_a_card_without_measures_says_so(parts: ModelParts) -> None:
    assert "Nothing is recorded about how good it is" in model_card(replace(parts.description, facts={}))
