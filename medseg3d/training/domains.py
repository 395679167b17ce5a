"""What one network is trained on: a dataset, or several (domains) that take turns. Batches of the right one come out.

A dataset of its own is a single domain without a name; everything then is as if there were no domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from medseg3d.errors import InputError
from medseg3d.execution import available_cores
from medseg3d.extensions import Registry
from medseg3d.label_codes import LabelCodes
from medseg3d.losses import LOSSES, LossFunction, LossSettings, find_loss, make_loss
from medseg3d.losses.label_kinds import CountVoxels, counter_of, has_ignored, loss_of_codes
from medseg3d.networks.build import NETWORKS, output_size
from medseg3d.patches.augmentation import AugmentationPolicy, augmentation_policy
from medseg3d.patches.case_choice import CaseChoice
from medseg3d.patches.further_augmentations import AUGMENTATIONS, further_augmentations
from medseg3d.patches.loading import PatchLoader
from medseg3d.patches.sampling import PatchSource, SoftCase, generator
from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.preprocessing.preprocess_case import in_order_of_values
from medseg3d.preprocessing.store import StoredCase
from medseg3d.team import ALONE, Team
from medseg3d.validation.box import BoxChoice

NO_NAME = ""
"""Of the only domain of a network that serves one dataset."""
VALIDATION_STREAM, DOMAIN_STREAM, CASES_STREAM = 1, 2, 3
"""Random numbers of their own beside those of the training patches, stream 0. Validation patches are those of epoch 0 every time, so
that epochs can be compared."""
CASES_COUNTED = 20
"""Class weights come from the voxels of so many training cases: shares hardly change with more."""


@dataclass(frozen=True, kw_only=True)  # no slots: what is made of it once is kept
class TrainingDomain:
    """A dataset as training sees it: its plan and configuration, and the cases of the fold."""

    name: str
    plan: Plan
    configuration: Configuration
    training: Sequence[StoredCase]
    validation: Sequence[StoredCase]
    previous: Mapping[str, Any] | None = None
    """By case the label map of the earlier stage of a cascade, indices on the grid of the stored case."""
    previous_weights: Mapping[str, str] = field(default_factory=dict)
    """By ``CONFIGURATION/FOLD`` the digests of the weights that made those label maps."""
    boxes: BoxChoice | None = None
    """Of a crop cascade, whose cases are boxes: how they were found."""

    def label(self, index: int) -> str:
        """The name of a label in lines and files; with the domain where there are several."""
        label = self.plan.labels.names[index]
        return f"{self.name}/{label}" if self.name else label

    @cached_property
    def codes(self) -> LabelCodes:
        """What the numbers of its stored label maps mean."""
        return LabelCodes(self.plan.labels)

    @cached_property
    def policy(self) -> AugmentationPolicy:
        """What augmentation may do to its patches."""
        configuration = self.configuration
        further = further_augmentations(configuration.training.augmentations, configuration.training.providers)
        if further and self.plan.labels.soft:
            raise InputError("training.augmentations: those of extensions move label maps, not soft labels. Leave them out of the planner.")
        made = augmentation_policy(
            configuration.patch_size,
            num_channels=len(self.plan.channels),
            mirror_axes=configuration.mirror_axes,
            masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
            left_right_axis=left_right_axis(self.plan, configuration),
            label_pairs=self.codes.pairs(),
            further=further,
            previous_labels=() if self.previous is None else in_order_of_values(self.plan.labels),
            previous_pairs=self.plan.labels.pairs,
        )
        soft = len(self.plan.labels.foreground) if self.plan.labels.soft else 0
        return replace(made, soft_labels=soft, reduction=configuration.training.augmentation_reduction)

    def margin(self) -> tuple[int, ...]:
        """Voxels at each end of a patch that get no logits."""
        patch = self.configuration.patch_size
        given = output_size(self.configuration.network, patch)
        return tuple((n - g) // 2 for n, g in zip(patch, given, strict=True))

    @cached_property
    def loss(self) -> LossFunction:
        """The plan's loss of the codes of its label maps, for one output."""
        training, labels = self.configuration.training, self.plan.labels
        provider = training.providers.get(training.loss, "")
        loss = find_loss(training.loss, provider)
        knows_ignored = loss.knows_ignored

        def make(region: int | None) -> LossFunction:
            settings = LossSettings(
                num_classes=labels.num_classes if region is None else 2,
                batch_dice=self.configuration.batch_dice,
                options=training.loss_options,
                has_ignored=knows_ignored and has_ignored(labels),
                spacing=self.configuration.spacing,
                patch_size=self.configuration.patch_size,
            )
            return make_loss(training.loss, settings, provider=provider, class_voxels=lambda: self._class_voxels(region))

        return loss_of_codes(labels, make, knows_ignored=knows_ignored, knows_soft=loss.knows_soft)

    @cached_property
    def count(self) -> CountVoxels:
        """The counts behind its pseudo-Dice."""
        return counter_of(self.plan.labels)

    def _class_voxels(self, region: int | None = None) -> tuple[float, ...]:
        """Of all classes, or outside and inside of a region."""
        counts = np.zeros(self.codes.num_codes)
        for case in self.training[:CASES_COUNTED]:
            labels: Any = case.labels
            counts += np.bincount(np.asarray(labels[:]).ravel(), minlength=len(counts))
        contents = self.codes.contents()
        if region is None:
            return tuple(float(count) for count in contents @ counts)
        annotated = counts[: self.codes.ignored].sum()
        inside = float(contents[region] @ counts)
        return (float(annotated - inside), inside)


def following(domains: Sequence[TrainingDomain], recipe: TrainingPlan | None) -> list[TrainingDomain]:
    """The domains with what a run changed of the first one's training numbers; all else of each one's plan stays."""
    if recipe is None:
        return list(domains)
    plan = domains[0].configuration.training
    changed = {each.name: getattr(recipe, each.name) for each in fields(plan) if getattr(recipe, each.name) != getattr(plan, each.name)}
    return [
        replace(domain, configuration=replace(domain.configuration, training=replace(domain.configuration.training, **changed)))
        for domain in domains
    ]


def running_parts(configurations: Iterable[Configuration]) -> dict[str, str]:
    """Which extensions the networks, losses and augmentations of these are from here, without those that are built in or not known.

    A warning names each that is of another version than the plan notes.
    """
    found: dict[str, str] = {}
    for configuration in configurations:
        network, training = configuration.network, configuration.training
        named: list[tuple[Registry[Any], str, str]] = [(NETWORKS, network.family, network.provider)]
        named += [(LOSSES, training.loss, training.providers.get(training.loss, ""))]
        named += [(AUGMENTATIONS, name, training.providers.get(name, "")) for name in training.augmentations]
        for registry, name, noted in named:
            if name in registry and (provider := registry.provider(name)):
                registry.find(name, provider=noted)
                found[f"{registry.noun} {name}"] = provider
    return found


def left_right_axis(plan: Plan, configuration: Configuration) -> int | None:
    """The patch axis that runs most from left to right; None where the plan does not know, or a 2D slice does not have it."""
    if plan.orientation != "canonical":
        return None
    cosines = plan.frame.left_right
    axis = plan.axis_order.index(max((2, 1, 0), key=lambda axis: cosines[axis])) - (3 - configuration.dimensions)
    return axis if axis >= 0 else None


def patch_loader(
    domain: TrainingDomain,
    *,
    batch_size: int,
    seed: int,
    on_gpu: bool,
    is_augmented: bool = True,
    is_validation: bool = False,
    team: Team = ALONE,
    case_dice: Mapping[str, float] | None = None,
) -> PatchLoader:
    """The batches of a domain: of its training cases, to be augmented, or of its validation cases with random numbers of their own.

    Of each batch only the samples of this process of a ``team``. ``case_dice`` is how well the training cases are known by now.
    """
    training = domain.configuration.training
    choice = CaseChoice(
        is_even=training.balanced_cases,
        is_by_label=training.balanced_classes,
        hard_share=training.hard_cases,
        dice={} if case_dice is None else case_dice,
    )
    return PatchLoader(
        _sources(domain, domain.validation if is_validation else domain.training),
        patch_size=domain.configuration.patch_size,
        batch_size=batch_size,
        seed=seed,
        stream=VALIDATION_STREAM if is_validation else 0,
        foreground_share=training.foreground_oversampling,
        margin=domain.margin(),
        policy=domain.policy if is_augmented and not is_validation else None,
        previous=domain.previous,
        prefetch=6 if on_gpu else 3,
        num_threads=min(4, available_cores()) if on_gpu else 1,  # a CPU needs its cores for the network
        pin_memory=on_gpu,
        samples=team.part(batch_size),
        choice=CaseChoice() if is_validation else choice,
    )


def _sources(domain: TrainingDomain, cases: Sequence[StoredCase]) -> Sequence[PatchSource]:
    """The cases as patches are read from them."""
    return [SoftCase(case) for case in cases] if domain.plan.labels.soft else cases


def training_case_loader(domain: TrainingDomain, *, batch_size: int, seed: int, team: Team) -> PatchLoader:
    """Patches of the training cases as they are, every case in turn, with random numbers of their own."""
    return PatchLoader(
        _sources(domain, domain.training),
        patch_size=domain.configuration.patch_size,
        batch_size=batch_size,
        seed=seed,
        stream=CASES_STREAM,
        foreground_share=domain.configuration.training.foreground_oversampling,
        margin=domain.margin(),
        previous=domain.previous,
        samples=team.part(batch_size),
        choice=CaseChoice(is_even=True),
    )


def draw_domain(domains: Sequence[TrainingDomain], *, seed: int, epoch: int, iteration: int) -> int:
    """Which domain a step belongs to, a function of its arguments alone: in turn, or by chance in proportion to the training cases, or
    so that each gets the same work: as many voxels pass the network.
    """
    if len(domains) == 1:
        return 0
    if domains[0].configuration.training.domain_sampling == "round_robin":
        return iteration % len(domains)
    if domains[0].configuration.training.domain_sampling == "proportional":
        shares = np.array([len(domain.training) for domain in domains], float)
    else:
        shares = np.array([1 / (math.prod(d.configuration.patch_size) * d.configuration.batch_size) for d in domains])
    return int(generator(seed, DOMAIN_STREAM, epoch, iteration).choice(len(domains), p=shares / shares.sum()))
