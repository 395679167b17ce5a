"""The record of a universal work folder: which datasets share one network.

```
universal.json
domains/<name>/…                     an ordinary work folder for each dataset
models/universal/fold_<k>/…          the network of all of them, and the state of its training
```
After training, each domain's work folder holds the part of the network that it uses as ordinary weights, so that everything that
works on a work folder works on a domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.records import Checked, read_record, write_record
from medseg3d.work_folder import WorkFolder

UNIVERSAL = "universal"
"""The name of the common network among the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Universal(Checked):
    """``universal.json``: the configuration that all domains train, and where each domain's dataset lies.

    ``added`` are the domains that joined a trained network; the common training leaves them out. The planner's numbers stand in
    ``planner.json`` beside it.
    """

    configuration: str
    domains: dict[str, str]
    added: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        """Names of domains are names of folders and of modules."""
        wrong = [name for name in self.domains if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", name)]
        if wrong or not self.domains:
            yield f"domains are named {wrong!r:.100}, expected one at least, of letters, digits, _ and -"
        if unknown := set(self.added) - set(self.domains):
            yield f"added names {sorted(unknown)!r:.100}, which are no domains"

    @property
    def joint(self) -> tuple[str, ...]:
        """The domains that are trained together."""
        return tuple(name for name in self.domains if name not in self.added)

    def dataset(self, domain: str) -> Path:
        """The folder of a domain's dataset; raises :class:`InputError` for a name that is none of the domains."""
        if domain not in self.domains:
            raise InputError(f"There is no domain {domain!r}; the domains are {', '.join(self.domains)}.")
        return Path(self.domains[domain])

    def domain_at(self, dataset: Path) -> str | None:
        """The domain whose dataset lies in a folder."""
        wanted = dataset.resolve()
        return next((name for name, folder in self.domains.items() if Path(folder).resolve() == wanted), None)


def is_universal(work: WorkFolder) -> bool:
    """Several datasets share the network of this work folder."""
    return (work.root / "universal.json").exists()


def read_universal(work: WorkFolder) -> Universal:
    """The record of a work folder; raises :class:`InputError` where it serves one dataset only."""
    if not is_universal(work):
        raise InputError(f"{work.root}: is no work folder of several datasets. Make one: medseg3d plan A B C -w WORK --planner universal")
    return read_record(work.root / "universal.json", Universal, "universal")


def write_universal(work: WorkFolder, universal: Universal) -> None:
    """Write the record."""
    write_record(work.root / "universal.json", universal, "universal")


def domain_folder(work: WorkFolder, domain: str) -> WorkFolder:
    """The work folder of a domain."""
    return WorkFolder(work.root / "domains" / domain)


def domain_names(datasets: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """A name for each dataset: its folder's, with what a module's name cannot be replaced, numbered where two are alike.

    >>> domain_names([Path("a/Heart"), Path("b/Heart"), Path("c/Left Atrium.v2")])
    ['Heart', 'Heart_2', 'Left_Atrium_v2']
    """
    from torch.nn import ModuleDict

    names: list[str] = []
    for dataset in datasets:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", dataset.resolve().name).strip("_") or "domain"
        if hasattr(ModuleDict, stem) or stem == "training":  # torch keeps such names for itself
            stem = f"{stem}_domain"
        name, number = stem, 1
        while name in (*names, *taken):
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names


def resolve_domain(work: Path | None, dataset: Path, domain: str | None) -> tuple[Path, Path | None]:
    """Dataset and work folder that a command means: those of a domain where the work folder is universal.

    The domain is the named one, or that of ``dataset``. Raises :class:`InputError` where it is not clear which one is meant.
    """
    if work is None or not is_universal(WorkFolder(work)):
        if domain is not None:
            read_universal(WorkFolder(work if work is not None else dataset))
        return dataset, work
    universal = read_universal(WorkFolder(work))
    chosen = domain or universal.domain_at(dataset)
    if chosen is None:
        raise InputError(
            f"{work}: serves {', '.join(universal.domains)}. Say which one is meant: --domain NAME, or give its dataset's folder."
        )
    return universal.dataset(chosen), domain_folder(WorkFolder(work), chosen).root
