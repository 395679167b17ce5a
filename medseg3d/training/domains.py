"""What one network is trained on: a dataset, or several (domains) that take turns. Batches of the right one come out.

A dataset of its own is a single domain without a name; everything then is as if there were no domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg3d.execution import available_cores
from medseg3d.losses import LossFunction, LossSettings, find_loss, make_loss
from medseg3d.networks.build import build_network, build_universal, output_size, sharing_of
from medseg3d.networks.family import Sharing
from medseg3d.patches.augmentation import AugmentationPolicy, Batch, augmentation_policy
from medseg3d.patches.further_augmentations import further_augmentations
from medseg3d.patches.loading import PatchLoader
from medseg3d.patches.sampling import generator
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.store import StoredCase

NO_NAME = ""
"""Of the only domain of a network that serves one dataset."""
VALIDATION_STREAM, DOMAIN_STREAM = 1, 2
"""Random numbers of their own beside those of the training patches, stream 0. Validation patches are those of epoch 0 every time, so
that epochs can be compared."""
NORM_MEMORY = 0.95
"""Of the running norms of gradients: they follow the last twenty steps of a domain."""
LARGEST_RISE = 10
"""A single step counts as so many times the running norm at most: what follows a spike would be too small for long otherwise."""
CASES_COUNTED = 20
"""Class weights come from the voxels of so many training cases: shares hardly change with more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDomain:
    """A dataset as training sees it: its plan and configuration, and the cases of the fold."""

    name: str
    plan: Plan
    configuration: Configuration
    training: Sequence[StoredCase]
    validation: Sequence[StoredCase]

    def label(self, index: int) -> str:
        """The name of a label in lines and files; with the domain where there are several."""
        label = self.plan.labels.names[index]
        return f"{self.name}/{label}" if self.name else label

    def policy(self) -> AugmentationPolicy:
        """What augmentation may do to its patches."""
        configuration = self.configuration
        return augmentation_policy(
            configuration.patch_size,
            num_channels=configuration.network.in_channels,
            mirror_axes=configuration.mirror_axes,
            masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
            left_right_axis=left_right_axis(self.plan, configuration),
            label_pairs=self.plan.labels.pairs,
            further=further_augmentations(configuration.training.augmentations, configuration.training.providers),
        )

    def margin(self) -> tuple[int, ...]:
        """Voxels at each end of a patch that get no logits."""
        patch = self.configuration.patch_size
        given = output_size(self.configuration.network, patch)
        return tuple((n - g) // 2 for n, g in zip(patch, given, strict=True))

    def loss(self) -> LossFunction:
        """The plan's loss for one output."""
        training = self.configuration.training
        provider = training.providers.get(training.loss, "")
        settings = LossSettings(
            num_classes=self.plan.labels.num_classes,
            batch_dice=self.configuration.batch_dice,
            options=training.loss_options,
            class_voxels=self._class_voxels() if find_loss(training.loss, provider).weighs_classes else None,
        )
        return make_loss(training.loss, settings)

    def _class_voxels(self) -> tuple[float, ...]:
        counts = np.zeros(self.plan.labels.num_classes)
        for case in self.training[:CASES_COUNTED]:
            labels: Any = case.labels
            counts += np.bincount(np.asarray(labels[:]).ravel(), minlength=len(counts))
        return tuple(float(count) for count in counts)


def left_right_axis(plan: Plan, configuration: Configuration) -> int | None:
    """The patch axis that runs most from left to right; None where the plan does not know, or a 2D slice does not have it."""
    if plan.orientation != "canonical":
        return None
    cosines = plan.frame.left_right
    axis = plan.axis_order.index(max((2, 1, 0), key=lambda axis: cosines[axis])) - (3 - configuration.dimensions)
    return axis if axis >= 0 else None


def build_for(domains: Sequence[TrainingDomain]) -> nn.Module:
    """The network of a dataset, or the universal one of several."""
    if len(domains) == 1 and domains[0].name == NO_NAME:
        return build_network(domains[0].configuration.network)
    return build_universal({domain.name: domain.configuration.network for domain in domains})


def sharing_between(domains: Sequence[TrainingDomain]) -> Sharing | None:
    """How the network serves them; None for a single dataset."""
    return sharing_of({domain.name: domain.configuration.network for domain in domains}) if domains[0].name != NO_NAME else None


def run_network(network: nn.Module, image: Tensor, domain: TrainingDomain) -> Tensor | list[Tensor]:
    """The outputs of a domain."""
    outputs: Tensor | list[Tensor] = network(image, domain.name) if domain.name else network(image)
    return outputs


def patch_loader(
    domain: TrainingDomain, *, batch_size: int, seed: int, on_gpu: bool, policy: AugmentationPolicy | None, is_validation: bool = False
) -> PatchLoader:
    """The batches of a domain: of its training cases, or of its validation cases with random numbers of their own."""
    return PatchLoader(
        domain.validation if is_validation else domain.training,
        patch_size=domain.configuration.patch_size,
        batch_size=batch_size,
        seed=seed,
        stream=VALIDATION_STREAM if is_validation else 0,
        foreground_share=domain.configuration.training.foreground_oversampling,
        margin=domain.margin(),
        policy=policy,
        prefetch=6 if on_gpu else 3,
        num_threads=min(4, available_cores()) if on_gpu else 1,  # a CPU needs its cores for the network
        pin_memory=on_gpu,
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


def with_unit_gradients(
    network: nn.Module, domain: int, norms: tuple[float, ...], shared: Sequence[nn.Parameter] = ()
) -> tuple[float, ...]:
    """Divide the gradients of a step by the running norm of its domain's gradients; the norms with this step's.

    Adam remembers the squares of a thousand steps: once the gradients have fallen to a part of those of the first steps, its steps are too
    small by as much. And of several datasets, those that are not learned yet would decide where the ``shared`` weights go, whose
    norm counts there. ``norms`` are 0 for domains without a step yet. Gradients that are not finite are left to those who skip them.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    common = [parameter.grad for parameter in shared if parameter.grad is not None]  # none where a domain is added
    norm = float(torch.nn.utils.get_total_norm(common or gradients))
    if not math.isfinite(norm) or norm == 0:
        return norms
    known = norms[domain]
    running = norm if known == 0 else NORM_MEMORY * known + (1 - NORM_MEMORY) * min(norm, LARGEST_RISE * known)
    torch._foreach_div_(gradients, running)
    return (*norms[:domain], running, *norms[domain + 1 :])


def freeze_all_but(network: nn.Module, domain: str, sharing: Sharing) -> None:
    """Leave only the parts of one domain trainable: the shared tensors and the other domains' keep their bits."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(sharing.domain_of(name) == domain)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Image and labels of a batch without augmentation."""
    return batch.image.to(device), batch.labels.to(device).long()
