"""The store of preprocessed cases: a folder per case with compressed chunks that a patch is read from in milliseconds.

```
<folder>/<case>/image.b2nd       (channel, n0, n1, n2) float16, or float32 where float16 would lose too much
                labels.b2nd      (n0, n1, n2) codes of the smallest unsigned integer type, label indices in most datasets
                soft.b2nd        (label, n0, n1, n2) float16 probabilities without the background, only of soft labels
                outside.b2nd     (n0, n1, n2) bool, only where a channel is normalized inside a mask
                foreground.npz   per label or region index an array (n, 3) of voxels that hold it; with an ignore label, annotated voxels
                case.json        what is needed to go back, the digest of what it was made from, and checksums of the other files
```
A case is written in a hidden folder and renamed when it is whole. All arrays are in network order. Checksums are compared when a case
is opened for the first time in a process.
"""

from __future__ import annotations

import errno
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import DamagedCaseError, InputError, StorageError
from medseg3d.files import abandoned, remove_leftovers, storage, storage_errors, temporary_for
from medseg3d.label_codes import LabelCodes
from medseg3d.preprocessing.chunked_array import ChunkedArray, save_array
from medseg3d.preprocessing.preprocess_case import PreprocessedCase, Restoration
from medseg3d.records import read_record, write_record

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ACCEPTED_LOSS = 1e-3
"""Root mean square rounding error of float16 in standard deviations of a channel, above which float32 is stored."""

MIN_FOREGROUND_VOXELS = 10_000
FOREGROUND_SHARE = 0.01
"""Per label ``max(10000, 1 %)`` voxels are kept to sample patches from (nnU-Net 2.8.1), fewer where there are fewer."""

FOREGROUND_SEED = 1234
ANNOTATED = "annotated"
"""Beside the labels in ``foreground.npz``."""


class Store:
    """Preprocessed cases in ``folder``; ``patch_size`` (network order, 2 or 3 numbers) shapes the chunks that are written.

    A store is a map-style dataset of torch: ``len(store)``, and ``store[i]`` is the image ``(channel, n0, n1, n2)`` float32 and the
    label map ``(n0, n1, n2)`` int64 of the case ``store.names()[i]``, as tensors in network order. Labels are indices of the plan's
    labels, 0 the background; of regions, ignored voxels and cases that lack structures codes (:mod:`medseg3d.label_codes`).
    """

    def __init__(self, folder: Path | str, *, patch_size: Sequence[int] | None = None) -> None:
        self.folder = Path(folder)
        self.patch_size = tuple(patch_size) if patch_size is not None else None

    def write(self, case: PreprocessedCase, digest: str, stamp: str = "") -> None:
        """Write a case atomically, in place of an older one. Raises :class:`StorageError` where the disk is full.

        ``digest`` and ``stamp`` as in :class:`StoredRecord`.
        """
        target = self.folder / case.name
        with storage_errors(target), temporary_for(target) as temporary:
            storage().make_folder(temporary)
            self._write_files(temporary, case, digest, stamp)
            with temporary_for(target, OLD) as doomed:
                if target.is_dir():
                    storage().replace(target, doomed)
                try:
                    storage().replace(temporary, target)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        logger.info("%s: another process has written this case meanwhile.", target)
                        return
                    if doomed.is_dir():
                        storage().replace(doomed, target)
                    raise

    def _write_files(self, folder: Path, case: PreprocessedCase, digest: str, stamp: str) -> None:
        save_array(folder / "image.b2nd", compact(case.image), self.patch_size)
        foreground: dict[str, np.ndarray] = {}
        if case.labels is not None:
            save_array(folder / "labels.b2nd", case.labels, self.patch_size)
            found = foreground_index(case.labels, np.random.default_rng([FOREGROUND_SEED, zlib.crc32(case.name.encode())]), case.codes)
            foreground = {ANNOTATED if label == 0 else str(label): voxels for label, voxels in found.items()}
        if case.outside is not None:
            save_array(folder / "outside.b2nd", case.outside, self.patch_size)
        if case.soft is not None:
            save_array(folder / "soft.b2nd", case.soft.astype(np.float16), self.patch_size)
        np.savez(folder / "foreground.npz", **foreground)  # type: ignore[arg-type]
        storage().finish(folder / "foreground.npz")
        written = sorted(folder.iterdir())
        record = StoredRecord(
            name=case.name,
            digest=digest,
            restoration=case.restoration,
            sizes={path.name: path.stat().st_size for path in written},
            checksums={path.name: file_checksum(path) for path in written},
            stamp=stamp,
        )
        write_record(folder / "case.json", record, "case", is_sealed=True)

    def read(self, name: str, *, in_memory: bool = False) -> StoredCase:
        """Open a case; with ``in_memory`` its arrays are decoded at once. Raises :class:`InputError` where there is none.

        Raises :class:`DamagedCaseError` where its files are not as they were written.
        """
        folder = self.folder / str(name)
        if name not in self:
            raise InputError(f"{folder}: there is no preprocessed case here. Run medseg3d preprocess.")
        case = StoredCase(folder, self.checked(name))
        return case.load() if in_memory else case

    def checked(self, name: str) -> StoredRecord:
        """The record of a case whose files are as they were written; the first time in a process they are read for it.

        Raises :class:`DamagedCaseError`.
        """
        folder = self.folder / name
        try:
            record = read_record(folder / "case.json", StoredRecord, "case")
        except InputError as error:
            raise DamagedCaseError(_damage(name, str(error))) from error
        if record.name != name:
            raise DamagedCaseError(_damage(name, f"{folder} holds {record.name}"))
        for file, size in record.sizes.items():
            reason = _wrong_with(folder / file, size, record.checksums.get(file))
            if reason is not None:
                raise DamagedCaseError(_damage(name, reason))
        return record

    def set_stamp(self, name: str, stamp: str) -> None:
        """Note that the raw files with this stamp are those that a case was made from; raises as :meth:`checked`."""
        write_record(self.folder / name / "case.json", replace(self.checked(name), stamp=stamp), "case", is_sealed=True)

    def is_current(self, name: str, digest: str) -> bool:
        """The case is there, undamaged, and was made from what ``digest`` stands for; a damaged one is told."""
        if name not in self:
            return False
        try:
            return self.checked(name).digest == digest
        except DamagedCaseError as error:
            logger.warning("%s It is made again.", str(error).removesuffix(AGAIN))
            return False

    def version(self, name: str) -> tuple[int, int] | None:
        """Changes when a case is written again; None where it is not there."""
        try:
            status = (self.folder / name / "case.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def names(self) -> tuple[str, ...]:
        """The cases that are there, sorted; raises :class:`InputError` where the folder is not there."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: there is no store of preprocessed cases here. Run medseg3d preprocess.")
        return tuple(sorted(p.parent.name for p in self.folder.glob("*/case.json") if not p.parent.name.startswith(".")))

    def __contains__(self, name: object) -> bool:
        """Whether a case of that name is there."""
        return (self.folder / str(name) / "case.json").exists()

    def __len__(self) -> int:
        """The number of cases."""
        return len(self.names())

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label map of a case; raises ``IndexError`` beyond the last one, and :class:`InputError` for one without labels."""
        import torch

        case = self.read(self.names()[index])
        if case.labels is None:
            raise InputError(f"{case.name}: the preprocessed case has no label map. Read it with store.read({case.name!r}).")
        return torch.from_numpy(case.image[:].astype(np.float32)), torch.from_numpy(case.labels[:].astype(np.int64))

    def remove_leftovers(self) -> None:
        """Delete what a crash has left; what another process is writing stays."""
        remove_leftovers(self.folder)
        for path in abandoned(self.folder, kind=OLD):
            # a crash between the two renames of a replacement: the old case is whole, and better than none
            with suppress(InputError, OSError):
                target = self.folder / read_record(path / "case.json", StoredRecord, "case").name
                if not target.exists():
                    storage().replace(path, target)
        remove_leftovers(self.folder, kind=OLD)


OLD = "old"
"""In the temporary name of a case that is being replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """``case.json``: ``digest`` stands for the raw files and the part of the plan that the case was made from.

    ``sizes`` are those of the other files in bytes: where the power failed, files may be there without their content. Cases that were
    stored by older versions have no ``checksums``. ``stamp`` are sizes and times of the raw files: while it is the same, they need not
    be read to know that the case is up to date.
    """

    name: str
    digest: str
    restoration: Restoration
    sizes: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    stamp: str = ""

    @property
    def files_digest(self) -> str:
        """The part of the digest that stands for the raw files."""
        return self.digest.partition("-")[0]


AGAIN = " Run medseg3d preprocess, which makes it again from its images."


def _damage(name: str, reason: str) -> str:
    return f"{name}: the preprocessed case is damaged ({reason.removesuffix('.')}).{AGAIN}"


def file_checksum(path: Path) -> str:
    """CRC-32 of a file's content in hexadecimal: it finds what disks and copies do, at the speed of memory."""
    from isal import isal_zlib

    checksum = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(READ_BYTES):
            checksum = isal_zlib.crc32(block, checksum)
    return f"{checksum:08x}"


READ_BYTES = 4 << 20
_seen: dict[Path, tuple[int, int, str]] = {}
"""Files whose checksum this process has compared already, with their size, time and checksum then."""


def _wrong_with(path: Path, size: int, checksum: str | None) -> str | None:
    """What is wrong with a file of a case, in words; it is read once in a process."""
    try:
        status = path.stat()
        if status.st_size != size:
            return f"{path} has {status.st_size} bytes instead of {size}"
        key = (size, status.st_mtime_ns, checksum or "")
        if checksum is None or _seen.get(path) == key:
            return None
        if file_checksum(path) != checksum:
            return f"{path} does not have the checksum that it was written with"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    _seen[path] = key
    return None


class StoredCase:
    """One case of a store. ``image``, ``labels`` (or None) and ``outside`` (or None) are sliced like arrays, from any thread."""

    def __init__(self, folder: Path, record: StoredRecord) -> None:
        self.folder = folder
        self.name = record.name
        self.digest = record.digest
        self.restoration = record.restoration
        self.image: ChunkedArray | np.ndarray = ChunkedArray(folder / "image.b2nd")
        self.labels: ChunkedArray | np.ndarray | None = _optional(folder / "labels.b2nd")
        self.outside: ChunkedArray | np.ndarray | None = _optional(folder / "outside.b2nd")
        self.soft: ChunkedArray | np.ndarray | None = _optional(folder / "soft.b2nd")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The spatial shape, network order."""
        return (self.image.shape[1], self.image.shape[2], self.image.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays when they are decoded."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in (self.image, self.labels, self.outside, self.soft) if a is not None)

    @property
    def foreground(self) -> dict[int, np.ndarray]:
        """Per label or region index that occurs (background apart) voxels ``(n, 3)`` that hold it, int16 or int32."""
        return {index: voxels for index, voxels in self._sampled.items() if index}

    @property
    def annotated(self) -> np.ndarray | None:
        """Voxels ``(n, 3)`` that somebody has annotated; None in a dataset without an ignore label."""
        return self._sampled.get(0)

    @cached_property
    def _sampled(self) -> dict[int, np.ndarray]:
        try:
            with np.load(self.folder / "foreground.npz", allow_pickle=False) as archive:
                return {0 if label == ANNOTATED else int(label): archive[label] for label in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"{self.folder}: foreground.npz cannot be read ({error}). Delete the folder and preprocess again."
            ) from error

    def load(self) -> StoredCase:
        """A copy of this case that holds its arrays decoded in memory."""
        loaded = StoredCase(self.folder, StoredRecord(name=self.name, digest=self.digest, restoration=self.restoration))
        loaded.image = self.image[:]
        loaded.labels = None if self.labels is None else self.labels[:]
        loaded.outside = None if self.outside is None else self.outside[:]
        loaded.soft = None if self.soft is None else self.soft[:]
        return loaded


def _optional(path: Path) -> ChunkedArray | None:
    return ChunkedArray(path) if path.exists() else None


def compact(image: np.ndarray) -> np.ndarray:
    """The image in float16, or as it is where a channel would overflow or lose more than :data:`ACCEPTED_LOSS`."""
    half = np.empty(image.shape, np.float16)
    for channel, out in zip(image, half, strict=True):
        std = float(channel.std())
        squares = 0.0
        for rows, out_rows in zip(channel, out, strict=True):
            with np.errstate(over="ignore"):
                out_rows[...] = rows
            loss = (out_rows.astype(np.float32) - rows).ravel()
            squares += float(loss @ loss)
        if not math.sqrt(squares / channel.size) <= ACCEPTED_LOSS * std and squares > 0:
            return image
    return half


def foreground_index(labels: np.ndarray, generator: np.random.Generator, codes: LabelCodes | None = None) -> dict[int, np.ndarray]:
    """Per label index that occurs (background apart) a random sample of its voxels ``(n, 3)``, without replacement.

    With ``codes`` that are no indices, the labels or regions that they stand for, and under 0 the voxels that somebody has annotated
    where others are not. Structures that a case was not annotated for are left out.
    """
    dtype = np.int16 if max(labels.shape) <= np.iinfo(np.int16).max else np.int32
    if codes is not None and not codes.are_indices:
        return {index: _sample(places, labels.shape, generator, dtype) for index, places in _places(labels, codes)}
    places = np.flatnonzero(labels)
    values = labels.ravel()[places]
    counts = np.bincount(values)
    places = places[np.argsort(values, kind="stable")]
    ends = np.cumsum(counts)
    result = {}
    for label in np.flatnonzero(counts):
        total = int(counts[label])
        result[int(label)] = _sample(places[ends[label] - total : ends[label]], labels.shape, generator, dtype)
    return result


def _places(labels: np.ndarray, codes: LabelCodes) -> Iterator[tuple[int, np.ndarray]]:
    """By index the flat places of a label or region, where there are any."""
    lacking, contents = codes.lacking_in(labels), codes.contents()
    if codes.ignored is not None and (annotated := np.flatnonzero(labels != codes.ignored)).size:
        yield 0, annotated
    for index in codes.labels.foreground:
        if index not in lacking and (places := np.flatnonzero(contents[index][labels])).size:
            yield index, places


def _sample(places: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator, dtype: type[np.integer]) -> np.ndarray:
    total = len(places)
    wanted = max(min(MIN_FOREGROUND_VOXELS, total), math.ceil(total * FOREGROUND_SHARE))
    chosen = np.sort(generator.choice(total, wanted, replace=False, shuffle=False))
    return np.stack(np.unravel_index(places[chosen], shape), 1).astype(dtype)
