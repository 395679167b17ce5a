"""Stored cases and a plan → the augmented batches that training draws, for a loop of your own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral

from torch import Tensor

from medseg3d.devices import choose_device, is_gpu
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.options import BatchOptions
from medseg3d.patches.augmentation import augment
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.preprocess_case import data_digest
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.training.domains import NO_NAME, TrainingDomain, patch_loader
from medseg3d.wording import listed


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

    Of regions, ignored voxels and cases that lack structures the labels are codes (:mod:`medseg3d.label_codes`), which
    ``TrainingDomain.loss`` reads; of soft labels they are float32 probabilities ``(batch, class, …)``.

    Patch, augmentation and oversampling of foreground are those of the plan's ``configuration`` (the recommended one for None), and
    the batches are those of ``medseg3d train`` with the same cases, batch size, seed and epoch lengths, on the same kind of
    device. ``cases`` are names, all of the store for None. An epoch has the plan's ``iterations_per_epoch``;
    ``first_epoch`` is where the numbering begins, so that a run can be continued. Without ``is_augmented`` patches are placed in the same
    way and left as they are. Raises :class:`InputError` for arguments that cannot be, such as a store of other data than the
    configuration's.
    """
    BatchOptions(batch_size=batch_size, seed=seed)  # refuses what the command line refuses
    if not isinstance(first_epoch, Integral) or first_epoch < 0:
        raise InputError(f"training_patches: first_epoch is {first_epoch}, expected a whole number of at least 0.")
    chosen = plan.configuration(configuration)
    if chosen.previous_stage is not None:
        raise UnsupportedError(
            f"{chosen.name} learns from label maps of {chosen.previous_stage}, which medseg3d train makes. Take a configuration of one "
            "stage, such as 3d_fullres, for a loop of your own."
        )
    place = choose_device(device).device
    stored = _read(store, cases, plan, chosen)
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=chosen, training=stored, validation=())
    loader = patch_loader(
        domain,
        batch_size=chosen.batch_size if batch_size is None else batch_size,
        seed=seed,
        on_gpu=is_gpu(place),
        is_augmented=is_augmented,
    )
    epochs = (loader.batches(epoch, chosen.training.iterations_per_epoch) for epoch in itertools.count(first_epoch))
    return (augment(batch, domain.policy, place) for batches in epochs for batch in batches)


def _read(store: Store, cases: Sequence[str] | None, plan: Plan, configuration: Configuration) -> list[StoredCase]:
    """The named cases, all for None, which are preprocessed as the configuration wants it."""
    if not isinstance(store, Store):
        raise InputError(f"training_patches: found {store!r}, expected a store, such as medseg3d.Store(FOLDER).")
    if isinstance(cases, str) or not isinstance(cases, Iterable | None):
        raise InputError(f"training_patches: cases is {cases!r}, expected a list of names, such as [{str(cases)!r}].")
    names = store.names() if cases is None else tuple(cases)
    if not names:
        raise InputError(f"{store.folder}: no case to take patches from. Name at least one in cases, or run medseg3d preprocess.")
    stored = [store.read(name) for name in names]
    wanted = data_digest(plan, configuration)
    if others := [case.name for case in stored if not case.digest.endswith(f"-{wanted}")]:
        raise InputError(
            f"{store.folder}: {listed(others, most=5)} preprocessed for another configuration or plan than {configuration.name} of this "
            f"plan. Take the store of its data ({configuration.data}), or preprocess again."
        )
    if without := [case.name for case in stored if case.labels is None]:
        raise InputError(f"{store.folder}: {listed(without, most=5)} without a label map, which training needs.")
    return stored
