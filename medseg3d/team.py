"""The processes that train one network together: what each of them is, what they agree on, and sums over the batch that they share.

A batch is drawn whole, by its seed, and each process takes its own samples of it (:attr:`Team.part`). Whatever divides sums that were taken
over a batch passes them through :func:`pooled` first, so that the quotient is that of the whole batch. In a process that trains alone
:func:`pooled` and :func:`gathered` give back what they get.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as processes
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from medseg3d.execution import available_cores

Value = TypeVar("Value")
TIMEOUT = datetime.timedelta(hours=12)
"""How long a process waits for the others, which may preprocess a dataset meanwhile. Where one ends, who started them ends them all."""
FAILURES = "medseg3d/failures"
"""The key of the common store that counts the processes that failed: only the first one says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process among those that train together: the ``rank``-th of ``size``, and the ``local_rank``-th of those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """The one that writes files and tells how far the work is."""
        return self.rank == 0

    def part(self, num_samples: int) -> range:
        """Which of a number of samples, or cases, are this process's: as many as another's, or one more or less.

        >>> [list(Team(rank=rank, size=3).part(7)) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        """
        return range(num_samples * self.rank // self.size, num_samples * (self.rank + 1) // self.size)

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives in each process; the first calls it before the others do, and finds nothing done yet."""
        if self.size == 1 or self.is_first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            processes.barrier()

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives in the first process, in all of them; only that one calls it."""
        if self.size == 1:
            return make()
        held: list[Any] = [make() if self.is_first else None]
        processes.broadcast_object_list(held, src=0)
        value: Value = held[0]
        return value

    def from_first_alone(self, make: Callable[[], Value]) -> Value:
        """:meth:`from_first` for work that fills all cores of the machine, as the others wait meanwhile."""
        if self.size == 1:
            return make()
        with _all_cores():
            return self.from_first(make)

    def collected(self, value: Value) -> list[Value]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        processes.all_gather_object(held, value)
        return held

    def summed(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the processes, the same bits in all of them."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        processes.all_reduce(total)
        return [float(value) for value in total]

    def summed_tensor(self, values: Tensor) -> Tensor:
        """A tensor of counts, summed over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        processes.all_reduce(total)
        return total

    @contextmanager
    def sharing(self, num_samples: int) -> Iterator[float]:
        """Meanwhile :func:`pooled` and :func:`gathered` are of a batch of so many samples; gives this process's share of them."""
        global _shared
        before = _shared
        share = len(self.part(num_samples)) / num_samples if self.size > 1 else 1.0
        _shared = _Shared(team=self, share=share, num_samples=num_samples) if self.size > 1 else before
        try:
            yield share
        finally:
            _shared = before


ALONE = Team()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    team: Team
    share: float
    num_samples: int


_shared: _Shared | None = None


def pooled(sums: Tensor) -> Tensor:
    """Sums over the samples of this process, added up over all that share the batch.

    The gradient is right for a loss that comes of pooled sums alone, and so is one number in all processes: of it each process counts
    its share (of the samples), and the gradients of all processes are added up.
    """
    return sums if _shared is None else _pooled(sums, _shared.share)


def pooled_inside(sums: Tensor) -> Tensor:
    """:func:`pooled` in the middle of a network, where each process goes on with the sums in its own way, as in a batch norm."""
    return sums if _shared is None else _pooled(sums, None)


def gathered(samples: Tensor) -> Tensor:
    """``(batch, …)`` of this process → that of the whole batch, for a loss that is one number in all processes, as for :func:`pooled`."""
    if _shared is None:
        return samples
    whole: Tensor = _Gathered.apply(samples, _shared)  # type: ignore[no-untyped-call]
    return whole


@contextmanager
def whole_batch() -> Iterator[None]:
    """Meanwhile what is at hand is the whole batch, as :func:`gathered` gives it, and :func:`pooled` gives back what it gets."""
    global _shared
    before, _shared = _shared, None
    try:
        yield
    finally:
        _shared = before


def is_shared() -> bool:
    """Whether this process has a part of a batch only."""
    return _shared is not None


def _pooled(sums: Tensor, share: float | None) -> Tensor:
    total: Tensor = _Pooled.apply(sums, share)  # type: ignore[no-untyped-call]
    return total


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, sums: Tensor, share: float | None) -> Tensor:
        context.share = share
        total = sums.detach().clone()
        processes.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if context.share is not None:
            return gradient / context.share, None
        total = gradient.clone()
        processes.all_reduce(total)
        return total, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, samples: Tensor, shared: _Shared) -> Tensor:
        team = shared.team
        parts = [Team(rank=rank, size=team.size).part(shared.num_samples) for rank in range(team.size)]
        longest = max(map(len, parts))  # all must send as much as each other
        sent = samples.new_zeros((longest, *samples.shape[1:]))
        sent[: len(samples)] = samples.detach()
        received = [torch.empty_like(sent) for _ in parts]
        processes.all_gather(received, sent)
        context.part, context.share = parts[team.rank], shared.share
        return torch.cat([each[: len(part)] for each, part in zip(received, parts, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[context.part.start : context.part.stop] / context.share, None


@contextmanager
def joined_team(environment: Mapping[str, str], *, gpu: torch.device | None) -> Iterator[Team]:
    """Be one of the processes that ``torchrun``, or ``--devices``, has started, as the environment says; each has a ``gpu``, or none.

    The cores of a machine are divided among its processes. The first that fails says why; see :func:`speaks_first`.
    """
    place = int(environment.get("LOCAL_RANK", environment["RANK"]))
    size = int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]))
    _take_cores(place, size)
    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    global _store
    _store = store
    if gpu is not None:
        torch.cuda.set_device(gpu)
    backend = "gloo" if gpu is None else "cpu:gloo,cuda:nccl"
    processes.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Team(rank=rank, size=world, local_rank=place)
    finally:
        processes.destroy_process_group()


_store: Any = None


def speaks_first() -> bool:
    """Whether this process is the first of its team that failed, and so the one that says why; the others only miss it."""
    try:
        return _store is None or int(_store.add(FAILURES, 1)) == 1
    except RuntimeError:  # whoever held the store has ended, and has said why
        return False


def is_loss_of_others(error: RuntimeError) -> bool:
    """Whether an error says that another process of the team has ended."""
    return any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "TCPStore", "Connection reset", "Connection closed"))


_cores: list[int] = []
"""Of this machine, before they were divided among its processes."""


@contextmanager
def _all_cores() -> Iterator[None]:
    """Threads that are started meanwhile run on all cores; afterwards all is as before."""
    if not _cores:
        yield
        return
    own, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, _cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
        torch.set_num_threads(threads)


def _take_cores(place: int, size: int) -> None:
    """Keep to this process's cores of the machine; where there are fewer than processes, some share one."""
    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(max(1, available_cores() // size))
        return
    global _cores
    cores = _cores = sorted(os.sched_getaffinity(0))
    own = [cores[index] for index in Team(rank=place, size=size).part(len(cores))] or [cores[place % len(cores)]]
    os.sched_setaffinity(0, own)
