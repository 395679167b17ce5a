"""A training that begins with other weights takes what fits by label, channel and kernel, and leaves alone what it is told to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.labels import Labels
from medseg3d.networks.build import build_network
from medseg3d.networks.interfaces import interface_of
from medseg3d.options import TrainOptions
from medseg3d.plan import NetworkPlan, Plan
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.initial import AS_THEY_ARE, InitialWeights, Meanings, modules, take_over
from medseg3d.training.tuning import Tuning, freeze, tuned, tuning_for
from tests.networks.test_families import plan as network_plan
from tests.test_plan import NETWORK, PLAN


def domain(network: NetworkPlan = NETWORK, *, labels: tuple[str, ...] = (), channels: tuple[str, ...] = ()) -> TrainingDomain:
    names = labels or PLAN.labels.names
    network = replace(network, num_classes=len(names), in_channels=len(channels or PLAN.channels))
    plan: Plan = replace(PLAN, labels=Labels(names=names, values=tuple(range(len(names)))), channels=channels or PLAN.channels)
    configuration = replace(PLAN.configuration(None), network=network)
    return TrainingDomain(name=NO_NAME, plan=plan, configuration=configuration, training=(), validation=())


def network_of(each: TrainingDomain, seed: int) -> nn.Module:
    return build_network(each.configuration.network, generator=torch.Generator().manual_seed(seed))


def weights_of(each: TrainingDomain, seed: int = 1) -> InitialWeights:
    meanings = {each.name: Meanings.of(each.plan, each.configuration.network)}
    return InitialWeights(source="theirs", tensors=network_of(each, seed).state_dict(), meanings=meanings)


def begun(each: TrainingDomain, initial: InitialWeights, seed: int = 2) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Any]:
    """The fresh tensors, those after the take-over, and what it says."""
    network = network_of(each, seed)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    taken = take_over(network, initial, [each])
    return fresh, network.state_dict(), taken


RESNET = {"norm": "batch", "decoder_features": 4}
SMALL: dict[str, dict[str, Any]] = {"deeplab_v3": {"head_features": 8}, "fcn": {"classifier_kernel": 3}}

HEADS = ("decoder.heads.0.weight", "decoder.heads.0.bias")


def test_the_same_dataset_gives_the_same_network() -> None:
    theirs = weights_of(domain())
    _, after, taken = begun(domain(), theirs)
    assert all(torch.equal(after[name], tensor) for name, tensor in theirs.tensors.items())
    assert (set(taken.used), taken.unused, taken.fresh) == ({AS_THEY_ARE}, {}, ())


def test_heads_take_the_labels_that_both_have_and_leave_new_ones_fresh() -> None:
    theirs = weights_of(domain(labels=("background", "liver", "spleen")))
    fresh, after, taken = begun(domain(labels=("background", "kidney", "Liver", "aorta")), theirs)
    for name in HEADS:
        assert torch.equal(after[name][0], theirs.tensors[name][0])
        assert torch.equal(after[name][2], theirs.tensors[name][1])
        assert torch.equal(after[name][1], fresh[name][1])
        assert torch.equal(after[name][3], fresh[name][3])
    assert taken.used["labels background, Liver taken by name, kidney, aorta fresh"] == HEADS
    assert taken.fresh == ()


def test_heads_for_other_labels_stay_fresh_whatever_their_number() -> None:
    theirs = weights_of(domain(labels=("background", "liver", "spleen")))
    fresh, after, taken = begun(domain(labels=("background", "heart", "aorta")), theirs)
    assert all(torch.equal(after[name], fresh[name]) for name in HEADS)
    assert taken.unused == {"a head for other labels": HEADS}
    assert taken.fresh == HEADS


def test_stems_take_channels_by_name_and_the_mean_for_others() -> None:
    theirs = weights_of(domain(channels=("T1", "T2")))
    stem = "encoder.0.0.conv.weight"
    _, after, taken = begun(domain(channels=("t2", "T1")), theirs)
    assert torch.equal(after[stem], theirs.tensors[stem].flip(1))
    _, after, taken = begun(domain(channels=("T1", "FLAIR", "T2")), theirs)
    assert torch.equal(after[stem][:, 0], theirs.tensors[stem][:, 0])
    torch.testing.assert_close(after[stem][:, 1], theirs.tensors[stem].mean(1) * 2 / 3)
    assert stem in taken.used["channels FLAIR averaged over T1, T2"]


def test_an_image_that_is_the_same_in_all_channels_gives_the_responses_that_it_gave() -> None:
    theirs = weights_of(domain(channels=("red", "green", "blue")))
    stem = "encoder.0.0.conv.weight"
    for channels in (("CT",), ("a", "b")):
        _, after, _ = begun(domain(channels=channels), theirs)
        torch.testing.assert_close(after[stem].sum(1), theirs.tensors[stem].sum(1))


def test_weights_of_images_are_inflated_for_volumes_and_a_color_stem_for_any_channels(caplog: pytest.LogCaptureFixture) -> None:
    flat = network_plan("swiftnet", (4, 4, 4, 8), dimensions=2, channels=3, **RESNET)
    deep = network_plan("swiftnet", (4, 4, 4, 8), **RESNET)
    tensors = {f"model.{name}": tensor for name, tensor in published(build_network(flat)).items()}
    initial = InitialWeights(source="resnet.pth", tensors={**tensors, "model.fc.weight": torch.zeros(9, 8)}, is_foreign=True)
    with caplog.at_level(logging.WARNING, "medseg3d"):
        _, after, taken = begun(domain(deep), initial)
    conv = tensors["model.layer2.0.conv1.weight"]
    assert torch.equal(after["encoder.stages.1.0.convs.0.conv.weight"], conv.unsqueeze(2).expand(-1, -1, 3, -1, -1) / 3)
    torch.testing.assert_close(after["encoder.stem.conv.weight"].sum((1, 2)), tensors["model.conv1.weight"].sum(1))
    assert taken.unused["no such tensor here"] == ("model.fc.weight",)
    assert "channels MRI averaged over red, green, blue; inflated to 7 slices" in taken.used
    assert "not used (no such tensor here): model.fc" in caplog.text
    assert "not found, so fresh: " in caplog.text


def test_a_model_of_images_gives_a_volume_that_is_the_same_in_all_slices_what_it_gave_the_slice() -> None:
    flat = replace(NETWORK, dimensions=2, kernel_sizes=((3, 3), (3, 3)), strides=((1, 1), (2, 2)), options={"norm": "batch"})
    theirs, deep = build_network(flat).eval(), replace(NETWORK, kernel_sizes=((1, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (2, 2, 2)))
    each = domain(replace(deep, options={"norm": "batch"}))
    meanings = {NO_NAME: Meanings.of(each.plan, each.configuration.network)}
    network = network_of(each, 3).eval()
    taken = take_over(network, InitialWeights(source="flat", tensors=theirs.state_dict(), meanings=meanings), [each])
    assert taken.fresh == ()
    image = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        found = network(image.unsqueeze(2).expand(-1, -1, 12, -1, -1))
        torch.testing.assert_close(found[:, :, 6], theirs(image), rtol=1e-4, atol=1e-5)


def test_flat_kernels_of_thick_slices_serve_even_voxels() -> None:
    thick, even = domain(), domain(replace(NETWORK, kernel_sizes=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2))))
    theirs = weights_of(thick)
    _, after, taken = begun(even, theirs)
    stem, up = "encoder.0.0.conv.weight", "decoder.up.0.weight"
    torch.testing.assert_close(after[stem].sum(2, keepdim=True), theirs.tensors[stem])
    assert torch.equal(after[up][:, :, 0], theirs.tensors[up][:, :, 0])
    assert torch.equal(after[up][:, :, 1], theirs.tensors[up][:, :, 0])
    assert "inflated to 3 slices" in taken.used


def published(network: nn.Module) -> dict[str, Tensor]:
    """A ResNet's tensors under torchvision's names, for blocks of two convolutions."""
    found = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if name.startswith("encoder.stem."):
            found[f"{'conv1' if parts[2] == 'conv' else 'bn1'}.{parts[3]}"] = tensor
        elif name.startswith("encoder.stages.") and parts[4] == "convs":
            kind = "conv" if parts[6] == "conv" else "bn"
            found[f"layer{int(parts[2]) + 1}.{parts[3]}.{kind}{int(parts[5]) + 1}.{parts[7]}"] = tensor
        elif name.startswith("encoder.stages."):
            found[f"layer{int(parts[2]) + 1}.{parts[3]}.downsample.{int(parts[5] == 'norm')}.{parts[6]}"] = tensor
    return found


def test_weights_without_a_tensor_that_fits_are_refused() -> None:
    with pytest.raises(PlanMismatchError, match=r"none of its tensors fits this network.*--inherit-plan"):
        begun(domain(), InitialWeights(source="a.pth", tensors={"a": torch.zeros(2, 2)}, is_foreign=True))


def test_a_domain_begins_with_the_parts_of_the_one_with_most_labels_in_common() -> None:
    small = network_plan("u2net", (4, 8))
    one = weights_of(domain(small, labels=("background", "liver", "spleen")))
    common = InitialWeights(
        source="theirs",
        tensors={name.replace("domains.only.", f"domains.{each}."): tensor for name, tensor in one.tensors.items() for each in ("a", "b")},
        meanings={"a": Meanings(channels=("MRI",), outputs=("background", "heart")), "b": one.meanings[NO_NAME]},
    )
    _, after, taken = begun(domain(small, labels=("background", "spleen")), common)
    head = "domains.only.head.weight"
    assert torch.equal(after[head], one.tensors[head][[0, 2]])
    assert all(name.startswith("domains.a.") for name in taken.unused["no such tensor here"])


@pytest.mark.parametrize("family", ["unet_plus_plus", "deeplab_v3", "fcn", "u2net"])
def test_channels_and_labels_are_found_in_every_family(family: str) -> None:
    deep = family == "deeplab_v3"
    plan = network_plan(family, (8, 16, 32), channels=2, classes=5, deep=deep, **SMALL.get(family, {}))
    found = interface_of({NO_NAME: plan})
    shapes = {name: tuple(tensor.shape) for name, tensor in build_network(plan).state_dict().items()}
    assert found.channels
    assert any(name.endswith("bias") for name in found.outputs) or found.outputs
    assert all(shapes[name][axis] == 2 for name, axis in found.channels.items())
    assert all(shapes[name][axis] == 5 for name, axis in found.outputs.items())


def test_modules_stand_for_their_tensors() -> None:
    assert modules([f"encoder.{stage}.0.conv.weight" for stage in range(9)], most=2) == "encoder.0, encoder.1 and 7 more"


# ---- parts that keep their weights, and rates


def test_frozen_parts_keep_their_weights_and_their_statistics() -> None:
    network = build_network(replace(NETWORK, options={"norm": "batch"}))
    norms = freeze(network, ["encoder.*", "decoder.up"])
    names = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert names == [name for name in dict(network.named_parameters()) if name.startswith(("encoder.", "decoder.up."))]
    assert set(norms) == {module for name, module in network.named_modules() if name.startswith("encoder.") and name.endswith(".norm")}


def test_a_pattern_that_fits_nothing_and_one_that_fits_all_are_refused() -> None:
    with pytest.raises(InputError, match=r"--freeze encodr\.\*: no parameter has such a name\. The network has encoder, decoder"):
        freeze(build_network(NETWORK), ["encodr.*", "decoder"])
    with pytest.raises(InputError, match=r"--freeze \*: nothing is left to learn"):
        freeze(build_network(NETWORK), ["*"])


def test_rates_of_the_command_line_stand_before_the_plans() -> None:
    (each,) = tuned([domain()], Tuning(layer_rates={"encoder": 0.1}, learning_rate=0.5))
    assert (each.configuration.training.learning_rate, each.configuration.training.layer_learning_rates) == (0.5, {"encoder": 0.1})
    assert tuned([each], Tuning()) == [each]


def test_a_run_goes_on_as_it_was_begun_and_refuses_anything_else() -> None:
    saved = Tuning(freeze=("encoder.*",), layer_rates={"decoder": 0.5})
    here = Path("fold_0")
    assert tuning_for(TrainOptions(), saved, here) == saved
    assert tuning_for(TrainOptions(freeze="encoder.*"), saved, here) == saved
    assert tuning_for(TrainOptions(freeze="encoder.*"), None, here) == Tuning(freeze=("encoder.*",))
    with pytest.raises(InputError, match=r"--freeze decoder: fold_0 holds a run that was begun with encoder\.\*\. Leave --freeze out"):
        tuning_for(TrainOptions(freeze=("decoder",)), saved, here)
    with pytest.raises(InputError, match=r"--layer-rates decoder=0\.1: .* begun with none"):
        tuning_for(TrainOptions(layer_rates={"decoder": 0.1}), Tuning(), here)


def test_rates_that_are_no_factors_are_refused() -> None:
    with pytest.raises(InputError, match=r"--layer-rates .*expected factors of at least 0"):
        TrainOptions(layer_rates={"encoder": -1})
