"""Compressed arrays on the disk that a patch is read from in milliseconds."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.errors import StorageError
from medseg3d.files import storage

CHUNK_BYTES = 6 << 20
"""Largest chunk: one is decompressed in a millisecond or two, and a patch touches few of them."""

BLOCK_BYTES = 128 << 10
"""Blocks inside a chunk fit the second-level cache, and only the blocks that a patch touches are decompressed."""

DEFAULT_CHUNK = (64, 128, 128)
"""Chunk edges where no patch size is given."""


class ChunkedArray:
    """A compressed array on the disk that is sliced like a numpy array; every thread has a handle of its own.

    Slices are starts and stops; what is read is a new array.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        handle = self._handle()
        self.shape: tuple[int, ...] = tuple(int(n) for n in handle.shape)
        self.dtype: np.dtype = np.dtype(handle.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read and decompress a region."""
        return np.asarray(self._handle()[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array."""
        return np.asarray(self[:], dtype)

    def __getstate__(self) -> Path:
        """Worker processes open handles of their own."""
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def _handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            import blosc2

            try:
                handle = blosc2.open(str(self.path), mode="r", dparams={"nthreads": 1})
            except (OSError, RuntimeError, ValueError) as error:
                raise StorageError(f"{self.path}: cannot be read ({error}). Delete its folder and preprocess again.") from error
            self._local.handle = handle
        return handle


def save_array(path: Path, array: np.ndarray, patch_size: tuple[int, ...] | None) -> None:
    """Write an array as a :class:`ChunkedArray` reads it; not atomically."""
    import blosc2

    chunks, blocks = chunk_shapes(array.shape, array.dtype.itemsize, patch_size)
    # shuffled bytes of float16 shrink by a third more than unshuffled ones and decompress as fast
    compression = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    compressed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=compression, dparams={"nthreads": 1})
    # written by ourselves: blosc2 hides why a write failed, and a full disk must be told from a defect
    storage().write(path, compressed.to_cframe())


def chunk_shapes(shape: Sequence[int], itemsize: int, patch_size: Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks of about the patch's shape and blocks of half its edges, within their limits of bytes; one channel each.

    >>> chunk_shapes((1, 300, 300, 300), 2, (128, 128, 128))
    ((1, 128, 128, 128), (1, 32, 32, 64))
    """
    patch = tuple(patch_size or DEFAULT_CHUNK)
    patch = (1,) * (3 - len(patch)) + patch
    spatial = [min(n, p) for n, p in zip(shape[-3:], patch, strict=True)]
    lead = (1,) * (len(shape) - 3)
    return (*lead, *_shrunk(spatial, CHUNK_BYTES // itemsize)), (*lead, *_shrunk(spatial, BLOCK_BYTES // itemsize))


def _shrunk(shape: Sequence[int], max_voxels: int) -> tuple[int, ...]:
    edges = list(shape)
    while math.prod(edges) > max_voxels:
        longest = edges.index(max(edges))  # the first of equals: rows stay long, which compresses better
        edges[longest] = -(-edges[longest] // 2)
    return tuple(edges)
