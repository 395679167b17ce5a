"""A plan with numbers that no network or dataset has is refused where it is read, before anything is built; ours are read as they are."""

from __future__ import annotations

import json
import resource
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg3d.domain import Universal
from medseg3d.errors import InputError, PlanError, PlanMismatchError
from medseg3d.labels import Labels
from medseg3d.models.checkpoints import save_tensors
from medseg3d.models.loading import load_model
from medseg3d.models.model_file import open_model_file, write_model_file
from medseg3d.models.parts import MemberDescription, ModelDescription, ModelParts
from medseg3d.networks.build import build_network
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan
from medseg3d.planning.planner import load_planner, planner_names
from medseg3d.records import from_plain, read_record, to_plain, write_record
from medseg3d.validation.postprocessing import Postprocessing, Step
from tests.in_memory import parts_of

NETWORK = NetworkPlan(
    family="plain_unet",
    dimensions=3,
    in_channels=1,
    num_classes=3,
    features=(4, 8),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
PLAN = Plan(
    dataset="Balls",
    planner="default",
    orientation="canonical",
    axis_order=(0, 1, 2),
    channels=("MRI",),
    modality_reason="",
    labels=Labels(names=("background", "left", "right"), values=(0, 3, 7), pairs=((1, 2),)),
    num_training=6,
    gpu_memory_gb=8.0,
    configurations={
        "3d_fullres": Configuration(
            name="3d_fullres",
            spacing=(1.5, 1.0, 1.0),
            median_shape=(12.0, 20.0, 18.0),
            patch_size=(8, 16, 16),
            batch_size=2,
            batch_dice=False,
            network=NETWORK,
            normalization=(Normalization(scheme="ct", mean=0.0, std=1.0, lower=-1.0, upper=1.0),),
            resampling=Resampling(),
            training=TrainingPlan(),
            mirror_axes=(0, 1),
            data="fullres",
        )
    },
    recommended="3d_fullres",
    recommended_reason="",
    fingerprint_digest="",
)
Change = Callable[[dict[str, Any]], object]
IN = "configurations.3d_fullres"


def configuration(key: str, value: object) -> Change:
    return lambda plan: plan["configurations"]["3d_fullres"].update({key: value})


def network(key: str, value: object) -> Change:
    return lambda plan: plan["configurations"]["3d_fullres"]["network"].update({key: value})


def training(key: str, value: object) -> Change:
    return lambda plan: plan["configurations"]["3d_fullres"]["training"].update({key: value})


def labels(**values: object) -> Change:
    return lambda plan: plan["labels"].update(values)


HOSTILE: dict[str, tuple[Change, str]] = {
    "a million blocks": (
        network("encoder_blocks", [10**6, 1]),
        f"{IN}.network.encoder_blocks.0: .*less than or equal to 200, found 1000000",
    ),
    "no blocks": (network("decoder_blocks", [0]), "decoder_blocks.0: .*greater than or equal to 1, found 0"),
    "features of a million": (network("features", [10**6, 8]), "features.0: .*8192, found 1000000"),
    "negative features": (network("features", [-4, 8]), "features.0: .*found -4"),
    "more weights than memory": (
        lambda plan: (network("features", [8192, 8192])(plan), network("encoder_blocks", [200, 200])(plan)),
        "8192.* make 9.7e.11 weights, up to 4e.09 can be",
    ),
    "a kernel of a thousand": (network("kernel_sizes", [[1, 3, 1000], [3, 3, 3]]), "kernel_sizes.0.2: .*63, found 1000"),
    "a kernel of two axes": (network("kernel_sizes", [[3, 3], [3, 3, 3]]), r"kernel_sizes\[0\] is \(3, 3\), expected 3 numbers"),
    "a stride of zero": (network("strides", [[1, 1, 1], [0, 2, 2]]), "strides.1.0: .*found 0"),
    "lists of other lengths": (network("strides", [[1, 1, 1]]), "strides has 1 entries, expected 2"),
    "a thousand stages": (
        lambda plan: [
            network(key, [plan["configurations"]["3d_fullres"]["network"][key][0]] * 1000)(plan)
            for key in ("features", "strides", "kernel_sizes", "encoder_blocks")
        ],
        "features has 1000 entries, expected one per stage, 1 to 16",
    ),
    "no stage": (network("features", []), "features has 0 entries"),
    "a dimension of 4": (network("dimensions", 4), "network.dimensions: .*found 4"),
    "a billion channels": (network("in_channels", 10**9), "in_channels: .*found 1000000000"),
    "other channels than the plan": (network("in_channels", 3), "network.in_channels is 3, expected 1"),
    "other classes than labels": (network("num_classes", 9), "network.num_classes is 9, expected 3"),
    "an option without end": (network("options", {"dropout": float("inf")}), "options.dropout.*finite"),
    "an integer of 1,000 digits": (network("in_channels", 10**1000), "in_channels"),
    "a patch of a million": (configuration("patch_size", [8, 16, 10**6]), "patch_size.2: .*65536, found 1000000"),
    "a patch beyond every memory": (configuration("patch_size", [65536, 65536, 65536]), "feature maps of .* up to 2e.10 can be"),
    "a patch of two axes": (configuration("patch_size", [16, 16]), r"patch_size is \(16, 16\), expected 3 numbers"),
    "a patch that cannot be halved": (
        configuration("patch_size", [8, 16, 15]),
        r"expected multiples of the network's total stride \(1, 2, 2\)",
    ),
    "a patch of zero": (configuration("patch_size", [0, 16, 16]), "patch_size.0: .*found 0"),
    "a spacing of zero": (configuration("spacing", [0.0, 1.0, 1.0]), "spacing.0: .*greater than .*, found 0.0"),
    "a spacing that is no number": (configuration("spacing", [float("nan"), 1.0, 1.0]), "spacing.0: .*finite number"),
    "an infinite spacing": (configuration("spacing", [float("inf"), 1.0, 1.0]), "spacing.0: .*finite number"),
    "a batch of zero": (configuration("batch_size", 0), "batch_size: .*found 0"),
    "a batch of a billion": (configuration("batch_size", 10**9), "batch_size: .*found 1000000000"),
    "a spline of order 99": (configuration("resampling", {"image_order": 99}), "resampling.image_order: .*5, found 99"),
    "a negative order": (configuration("resampling", {"logits_order": -1}), "resampling.logits_order: .*found -1"),
    "a mean that is no number": (
        configuration("normalization", [{"scheme": "ct", "mean": float("nan"), "std": 1, "lower": 0, "upper": 1}]),
        "normalization.0.mean: .*finite number",
    ),
    "ct without statistics": (configuration("normalization", [{"scheme": "ct"}]), "normalization.0: ct needs mean, std, lower and upper"),
    "bounds in the wrong order": (
        configuration("normalization", [{"scheme": "ct", "mean": 0, "std": 1, "lower": 2, "upper": 1}]),
        "normalization.0: .*bounds 2.0 to 1.0",
    ),
    "a normalization too many": (configuration("normalization", [{"scheme": "zscore"}] * 2), "normalization has 2 entries, expected 1"),
    "mirroring along a fourth axis": (configuration("mirror_axes", [3]), "mirror_axes.0: .*2, found 3"),
    "mirroring twice": (configuration("mirror_axes", [1, 1]), r"mirror_axes are \(1, 1\)"),
    "a path as a name of data": (configuration("data", "../../../etc"), "data is '../../../etc'"),
    "a path as a name": (configuration("name", "../2d"), "name is '../2d'"),
    "an earlier stage that is itself": (configuration("previous_stage", "3d_fullres"), "previous_stage leads back to 3d_fullres"),
    "a share above 1": (training("foreground_oversampling", 2.0), "foreground_oversampling: .*found 2.0"),
    "no epochs": (training("epochs", 0), "training.epochs: .*found 0"),
    "a learning rate that is no number": (training("learning_rate", float("nan")), "learning_rate: .*finite number"),
    "an axis twice": (lambda plan: plan.update(axis_order=[0, 0, 2]), r"axis_order is \(0, 0, 2\)"),
    "an axis that is not there": (lambda plan: plan.update(axis_order=[0, 1, 5]), r"axis_order is \(0, 1, 5\)"),
    "an unknown recommendation": (lambda plan: plan.update(recommended="4d"), "recommended is '4d'"),
    "no configuration": (lambda plan: plan.update(configurations={}), "recommended is"),
    "a label twice": (labels(values=[0, 3, 3]), "labels.values"),
    "a label of 70 bits": (labels(values=[0, 3, 2**70]), "labels.values"),
    "fewer names than labels": (labels(names=["background"]), "labels has 1 names and 3 values"),
    "a pair beyond the labels": (labels(pairs=[[1, 9]]), "labels.pairs"),
    "a pair with the background": (labels(pairs=[[0, 1]]), "labels.pairs"),
    "a region too few": (labels(regions=[[3]]), "labels.regions has 1 entries, expected 2"),
    "a frame that is no frame": (lambda plan: plan["frame"].update(directions=[[0, 0, 0]] * 3), "frame is"),
}


def changed(change: Change) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(PLAN)
    change(plain)
    return plain


@pytest.mark.fault("D", "a plan with absurd numbers", "refused where it is read; the field, what was found and what is allowed are named")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_plan_with_absurd_numbers_is_refused(what: str, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    head = {"format": "medseg3d/plan", "format_version": 1, "made_by": "a test"}
    (tmp_path / "plan.json").write_text(json.dumps({**head, **changed(change)}), encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_record(tmp_path / "plan.json", Plan, "plan")
    assert str(raised.value).startswith(str(tmp_path / "plan.json"))
    assert len(str(raised.value)) < 2500


def test_a_plan_of_ours_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_record(write_record(tmp_path / "plan.json", PLAN, "plan"), Plan, "plan") == PLAN


@pytest.mark.fault("D", "weights whose plan has absurd numbers", "refused before a network is built")
@pytest.mark.parametrize("what", ["a million blocks", "features of a million", "a patch beyond every memory", "more weights than memory"])
def test_weights_with_an_absurd_plan_are_refused_before_anything_is_built(what: str, tmp_path: Path) -> None:
    card = {"plans": {"": changed(HOSTILE[what][0])}, "configurations": {"": "3d_fullres"}, "fold": "0", "facts": {}}
    save_tensors(tmp_path / "weights.safetensors", dict(build_network(NETWORK).state_dict()), {"format_version": 2, "card": card})
    began = time.perf_counter()
    with pytest.raises(InputError, match=HOSTILE[what][1]):
        load_model(tmp_path / "weights.safetensors", device="cpu")
    assert time.perf_counter() - began < 5


@pytest.mark.fault("D", "a small weights file whose plan asks for gigabytes", "refused before memory is taken for it")
def test_shapes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    large = replace(PLAN.configuration(None).network, features=(4096, 4096))
    plan = replace(PLAN, configurations={"3d_fullres": replace(PLAN.configuration(None), network=large)})
    card = {"plans": {"": to_plain(plan)}, "configurations": {"": "3d_fullres"}, "fold": "0", "facts": {}}
    save_tensors(tmp_path / "weights.safetensors", dict(build_network(NETWORK).state_dict()), {"format_version": 2, "card": card})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PlanMismatchError, match="do not fit the network of the plan"):
        load_model(tmp_path / "weights.safetensors", device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; the network has 7 GB


@pytest.mark.parametrize(("name", "next_step"), [("3d_crop_fullres", "medseg3d docs cascades"), ("3d_full", "Name one of these")])
def test_a_configuration_that_was_not_planned_is_refused_with_what_to_do(name: str, next_step: str) -> None:
    with pytest.raises(PlanMismatchError, match=f"has no configuration '{name}'; it has 3d_fullres. .*{next_step}"):
        PLAN.configuration(name)


def model_parts(**changes: Any) -> ModelParts:
    members = (MemberDescription(configuration="3d_fullres", folds=("0",)),)
    description = ModelDescription(**{"plan": PLAN, "members": members, **changes})
    return parts_of(description, {"3d_fullres": {"0": build_network(NETWORK).state_dict()}})


def test_a_model_file_with_an_absurd_plan_is_refused(tmp_path: Path) -> None:
    file = write_model_file(tmp_path / "a.medseg3d", model_parts())
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["model.json"])
    document["description"]["plan"]["configurations"]["3d_fullres"]["network"]["encoder_blocks"] = [10**6, 1]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**members, "model.json": json.dumps(document).encode()}.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"encoder_blocks\.0: .*found 1000000"):
        open_model_file(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"postprocessing": Postprocessing(steps=(Step(operation="keep_largest", index=9),))}, "the label of index 9, expected 1 to 2"),
        ({"postprocessing": Postprocessing(steps=(Step(operation="fill_holes", index=-1),))}, "the label of index -1"),
        (
            {"plan": replace(PLAN, configurations={"3d_fullres": replace(PLAN.configuration(None), previous_stage="3d_lowres")})},
            "3d_fullres needs 3d_lowres as its earlier stage",
        ),
    ],
)
def test_a_description_that_does_not_fit_its_plan_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_model_file(tmp_path / "a.medseg3d", model_parts(**changes))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("network", "base_features", "1000000"),
        ("network", "kernel_edge", "1001"),
        ("network", "encoder_blocks", "[1000000]"),
        ("network", "width_multiplier", "inf"),
        ("memory", "gpu_memory_gb", "nan"),
        ("memory", "reference_3d", "-1"),
        ("batch", "min_size", "100000000"),
        ("batch", "max_dataset_share", "nan"),
        ("patch", "initial_edge_3d", "10000000"),
        ("spacing", "resolution_multiplier", "nan"),
        ("lowres", "spacing_step", "inf"),
        ("training", "learning_rate", "nan"),
        ("training", "epochs", "0"),
        ("resampling", "image_order", "7"),
    ],
)
def test_a_planner_with_absurd_numbers_is_refused(table: str, key: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(f'extends = "default"\n[{table}]\n{key} = {value}\n', encoding="utf-8")
    with pytest.raises(PlanError, match=rf"{table}\.{key}"):
        load_planner(tmp_path / "my.toml")


@pytest.mark.parametrize("name", planner_names())
def test_our_planners_lie_within_the_ranges(name: str) -> None:
    assert load_planner(name).name == name


@pytest.mark.parametrize("domains", [{}, {"../../a": "/x"}, {"a/b": "/x"}])
def test_a_universal_record_names_folders_within_its_own(domains: dict[str, str]) -> None:
    with pytest.raises(InputError, match="domains are named"):
        from_plain({"configuration": "3d_fullres", "domains": domains}, Universal, "universal.json")
    with pytest.raises(InputError, match="added names"):
        from_plain({"configuration": "3d_fullres", "domains": {"a": "/x"}, "added": ["b"]}, Universal, "universal.json")


def test_a_plan_without_extensions_is_written_as_it_was_before_there_were_any() -> None:
    written = to_plain(PLAN)
    for configuration in written["configurations"].values():
        assert "provider" not in configuration["network"]
        assert not {"augmentations", "providers"} & set(configuration["training"])
    assert from_plain(written, Plan, "plan") == PLAN


def test_a_plan_with_parts_of_extensions_says_where_they_are_from() -> None:
    name, configuration = next(iter(PLAN.configurations.items()))
    network = replace(configuration.network, provider="file mine.py 0123")
    training = replace(configuration.training, augmentations={"blurred": {"sigma": 1.0}}, providers={"blurred": "file mine.py 0123"})
    changed = replace(PLAN, configurations={**PLAN.configurations, name: replace(configuration, network=network, training=training)})
    written = to_plain(changed)["configurations"][name]
    assert written["network"]["provider"] == "file mine.py 0123"
    assert written["training"]["augmentations"] == {"blurred": {"sigma": 1.0}}
    assert from_plain(to_plain(changed), Plan, "plan") == changed
