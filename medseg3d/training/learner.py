"""The network of a training with what teaches it: domains and a device go in, network, optimizer and scaler come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from medseg3d.devices import Device
from medseg3d.label_codes import LabelCodes
from medseg3d.networks.build import build_network, build_universal, sharing_of
from medseg3d.networks.class_memory import memories
from medseg3d.networks.family import Sharing
from medseg3d.patches.augmentation import augment
from medseg3d.plan import TrainingPlan
from medseg3d.precision import checked_precision
from medseg3d.team import Team
from medseg3d.training.domains import NO_NAME, TrainingDomain, patch_loader
from medseg3d.training.growth import grown_batch, grown_domains
from medseg3d.training.optimizers import optimizer_of
from medseg3d.training.pooled_norm import pool_batch_norms
from medseg3d.training.probe import trusted_precision
from medseg3d.training.step import Learner, Replica, scaler_for
from medseg3d.training.tuning import freeze, frozen_norms


def make_learner(
    domains: Sequence[TrainingDomain], device: Device, *, seed: int, added: str | None = None, frozen: Sequence[str] = ()
) -> Learner:
    """Fresh weights, by the training numbers of the first domain; with ``added`` only the parts of that domain are trainable, and
    without those that ``frozen`` names."""
    settings, sharing = domains[0].configuration.training, sharing_between(domains)
    torch.manual_seed(seed)
    network = _build(domains).to(device.device)
    if domains[0].name == NO_NAME and not domains[0].codes.are_indices:
        _tell(network, domains[0].codes)
    if added is not None and sharing is not None:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(sharing.domain_of(name) == added)
    norms = freeze(network, frozen)
    return Learner(
        network=network,
        optimizer=optimizer_of(network, settings),
        scaler=scaler_for(device),
        device=device,
        gradient_clip=settings.gradient_clip,
        normalizes_gradients=settings.unit_gradients,
        shared=() if sharing is None else tuple(sharing.shared_parameters(network)),
        frozen_norms=norms,
    )


def learner_following(learner: Learner, recipe: TrainingPlan | None) -> Learner:
    """With the optimizer of a run's own training numbers, before its first step."""
    return learner if recipe is None else replace(learner, optimizer=optimizer_of(learner.network, recipe))


def sharing_between(domains: Sequence[TrainingDomain]) -> Sharing | None:
    """How one network serves the domains; None for a single dataset, whose network is its own."""
    return None if domains[0].name == NO_NAME else sharing_of({domain.name: domain.configuration.network for domain in domains})


def _build(domains: Sequence[TrainingDomain]) -> nn.Module:
    networks = {domain.name: domain.configuration.network for domain in domains}
    return build_network(networks[NO_NAME]) if NO_NAME in networks else build_universal(networks)


def _tell(network: nn.Module, codes: LabelCodes) -> None:
    """What labels mean, for what a network itself does with them: memories of classes, heads that learn boundaries."""
    network.label_codes = codes  # type: ignore[assignment]
    for memory in memories(network):
        memory.contents = torch.from_numpy(codes.contents()[1 if codes.labels.regions else 0 :].copy())


def replicated(learner: Learner, team: Team) -> Learner:
    """The learner as one process of a team has it, with the weights of the first; as it is where it is alone."""
    if team.size == 1:
        return learner
    pool_batch_norms(learner.network)
    network = nn.parallel.DistributedDataParallel(
        learner.network,
        find_unused_parameters=True,  # the coarsest head of deep supervision has the weight 0, and a step is of one domain
        gradient_as_bucket_view=True,
    )
    norms = tuple(frozen_norms(learner.network)) if learner.frozen_norms else ()
    return replace(learner, replica=Replica(team=team, network=network), frozen_norms=norms)


def in_trusted_precision(
    learner: Learner, domains: Sequence[TrainingDomain], batch_sizes: Sequence[int], *, seed: int, is_trained: bool
) -> Learner:
    """The learner in its precision where that trains every domain right, otherwise in float32: tried on first batches."""
    device, network = learner.device, learner.network
    for domain, size in zip(domains, batch_sizes, strict=True):
        batch = patch_loader(domain, batch_size=size, seed=seed, on_gpu=device.is_gpu).make_batch(0, 0)
        image, _ = augment(batch, domain.policy, device.device)
        for grown in grown_domains(domain) if domain.configuration.training.patch_growth else [domain]:
            patch = grown.configuration.patch_size
            device = trusted_precision(device, grown.configuration, grown_batch(size, domain.configuration.patch_size, patch))
        if domain.name:
            network.domain = domain.name  # type: ignore[assignment]
        device = checked_precision(network, image[:1], device, is_trained=is_trained)
    return learner.on(device)
