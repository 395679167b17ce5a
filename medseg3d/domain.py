"""The datasets that a work folder serves: one without a name in the ordinary case, or several domains that share a network.

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
from medseg3d.work_folder import WorkFolder, work_folder

UNIVERSAL = "universal"
"""The name of the common network among the models."""
DOMAINS = "domains"
"""The folder of the domains' work folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A dataset and its work folder, with a name where several share a network.

    ``configuration`` is what all of these train, None where each plan decides. The common training leaves out a domain that ``is_added``:
    it joined a trained network.
    """

    name: str | None = None
    dataset: Path
    folder: WorkFolder
    configuration: str | None = None
    is_added: bool = False

    def is_at(self, dataset: Path) -> bool:
        """Its dataset lies in this folder."""
        return self.dataset.resolve() == dataset.resolve()

    def named(self, sentence: str) -> str:
        """A sentence, with the domain's name before it where it has one."""
        return sentence if self.name is None else f"{self.name}: {sentence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Universal(Checked):
    """``universal.json``: the configuration that all domains train, and where each domain's dataset lies.

    ``added`` are the domains that joined a trained network. The planner's numbers stand in ``planner.json`` beside it.
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


def is_universal(work: WorkFolder) -> bool:
    """Several datasets share the network of this work folder."""
    return (work.root / "universal.json").exists()


def read_domains(work: WorkFolder) -> tuple[Domain, ...]:
    """The domains of a universal work folder; raises :class:`InputError` where it serves one dataset only."""
    if not is_universal(work):
        raise InputError(f"{work.root}: is no work folder of several datasets. Make one: medseg3d plan A B C -w WORK --planner universal")
    record = read_record(work.root / "universal.json", Universal, "universal")
    return tuple(
        Domain(
            name=name,
            dataset=Path(dataset),
            folder=domain_folder(work, name),
            configuration=record.configuration,
            is_added=name in record.added,
        )
        for name, dataset in record.domains.items()
    )


def write_domains(work: WorkFolder, configuration: str, domains: Sequence[Domain]) -> None:
    """Write down which datasets a universal work folder serves, and what they train."""
    named = {domain.name or "": domain for domain in domains}
    record = Universal(
        configuration=configuration,
        domains={name: str(domain.dataset) for name, domain in named.items()},
        added=tuple(name for name, domain in named.items() if domain.is_added),
    )
    write_record(work.root / "universal.json", record, "universal")


def domains_of(dataset: Path, work: Path | None, name: str | None = None) -> tuple[Domain, ...]:
    """The domains that a command means: of a universal work folder the named one, that of ``dataset``, or all.

    The current folder, which is meant where no dataset is given, stands for all. Raises :class:`InputError` where there is none such.
    """
    folder = work_folder(dataset, work)
    if name is None and not is_universal(folder):
        return (Domain(dataset=dataset, folder=folder),)
    domains = read_domains(folder)
    if name is None:
        return domains if dataset == Path() else domains_at(domains, dataset)
    chosen = tuple(domain for domain in domains if domain.name == name)
    if not chosen:
        raise InputError(f"There is no domain {name!r}; the domains are {_listed(domains)}.")
    return chosen


def domain_of(dataset: Path, work: Path | None, name: str | None = None) -> Domain:
    """The only domain that a command means; of several that of the current folder. Raises :class:`InputError` where that is not clear."""
    domains = domains_of(dataset, work, name)
    return domains[0] if len(domains) == 1 else domains_at(domains, dataset)[0]


def domains_at(domains: Sequence[Domain], dataset: Path) -> tuple[Domain, ...]:
    """The domain whose dataset lies in a folder; raises :class:`InputError` where that is none of them."""
    found = tuple(domain for domain in domains if domain.is_at(dataset))
    if not found:
        raise InputError(
            f"{domains[0].folder.root.parent.parent}: serves {_listed(domains)}. Say which one is meant: --domain NAME, or give its "
            "dataset's folder."
        )
    return found[:1]


def refuse_part_of_several(folder: WorkFolder) -> None:
    """Raise :class:`InputError` where a work folder is that of a domain: the common training writes its weights, over any others."""
    whole = folder.root.resolve().parent.parent
    if folder.root.resolve().parent.name == DOMAINS and is_universal(WorkFolder(whole)):
        raise InputError(
            f"{folder.root}: belongs to the network of several datasets that is planned and trained with -w {whole}; a training of its own "
            f"here would be written over by the next common one. For a network of its own: medseg3d export {folder.root} -o "
            "MODEL.medseg3d, then plan the dataset into a new work folder with --inherit-plan MODEL.medseg3d, and train there with --init "
            "MODEL.medseg3d."
        )


def _listed(domains: Sequence[Domain]) -> str:
    return ", ".join(str(domain.name) for domain in domains)


def domain_folder(work: WorkFolder, name: str) -> WorkFolder:
    """The work folder of a domain."""
    return WorkFolder(work.root / DOMAINS / name)


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
