"""The workers of a dask scheduler, on which cases are predicted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from medseg3d.errors import InputError


@contextmanager
def cluster_workers(address: str) -> Iterator[Executor]:
    """Run functions on the workers of the scheduler at ``address``. Raises :class:`InputError` where none answers, or without dask."""
    try:
        from distributed import Client  # an optional extra
    except ImportError:
        raise InputError("--cluster needs dask: pip install 'medseg3d[cluster]'.") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({error}).") from None
    with client:
        yield client.get_executor()
