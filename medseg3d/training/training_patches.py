"""Stored cases and a plan → the augmented batches that training draws, for a loop of your own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medseg3d.patches.augmentation import augment
from medseg3d.plan import Plan
from medseg3d.preprocessing.store import Store
from medseg3d.training.domains import NO_NAME, TrainingDomain, patch_loader


def training_patches(
    store: Store,
    plan: Plan,
    configuration: str | None = None,
    *,
    cases: Sequence[str] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    is_augmented: bool = True,
    device: str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches without end: image ``(batch, channel, …)`` float32 and label indices ``(batch, …)`` int64, on ``device``.

    Patch, augmentation and oversampling of foreground are those of the plan's ``configuration`` (the recommended one for None), and
    the batches are those of ``medseg3d train`` with the same cases, batch size, seed and epoch lengths, on the same kind of
    device. ``cases`` are names, all of the store for None. An epoch has the plan's ``iterations_per_epoch``;
    ``first_epoch`` is where the numbering begins, so that a run can be continued. Without ``is_augmented`` patches are placed in the same
    way and left as they are.
    """
    chosen = plan.configuration(configuration)
    stored = [store.read(name) for name in (store.names() if cases is None else cases)]
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=chosen, training=stored, validation=())
    place = torch.device(device)
    loader = patch_loader(
        domain,
        batch_size=batch_size or chosen.batch_size,
        seed=seed,
        on_gpu=place.type == "cuda",
        is_augmented=is_augmented,
    )
    for epoch in itertools.count(first_epoch):
        for batch in loader.batches(epoch, chosen.training.iterations_per_epoch):
            yield augment(batch, domain.policy, place)
