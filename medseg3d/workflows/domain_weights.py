"""Between the file of a common network and the work folders of its domains: each domain gets its part, an added one joins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from medseg3d.domain import Domain
from medseg3d.errors import PlanMismatchError
from medseg3d.files import write_text
from medseg3d.models.checkpoints import FORMAT_VERSION, ModelCard, load_tensors, read_card, save_tensors
from medseg3d.networks.build import build_network, sharing_of
from medseg3d.records import read_record, to_plain, write_record
from medseg3d.reporting.figures import progress_figure
from medseg3d.training.state import BEST, HISTORY, STATE, TrainingState, read_history
from medseg3d.workflows.splits import own_fold, plan_digest, read_split


def export_domains(domains: Sequence[Domain], target: Path, common: Path, fold: str, added: str | None) -> None:
    """Give each domain that the fold is one of its own its part of the best weights; an added domain joins the common file first."""
    weights, state = target / BEST, target / STATE
    if not weights.exists() or not state.exists():
        return
    if added is not None:
        _join(common / BEST, weights, added)
    reached = read_record(state, TrainingState, "training")
    for domain in domains:
        if own_fold(domain, fold) == fold:
            exported = export_domain(domain, common / BEST, fold, reached)
            _export_history(target, exported.parent, str(domain.name))


def export_domain(domain: Domain, weights: Path, fold: str, state: TrainingState) -> Path:
    """Write the part of a common network that a domain uses as ordinary weights into the domain's work folder.

    The tensors are the common ones, bit for bit, under the names that the network of a single dataset has.
    """
    card, name = read_card(weights), str(domain.name)
    tensors, _ = load_tensors(weights)
    made, configuration = card.plans[name], card.plans[name].configuration(card.configurations[name])
    with torch.device("meta"):
        wanted = build_network(configuration.network).state_dict()
    sharing = sharing_of({name: configuration.network})
    renamed = {sharing.renamed(key, sharing.only): tensor for key, tensor in tensors.items() if sharing.domain_of(key) in (None, name)}
    missing = [key for key in wanted if key not in renamed]
    if missing:
        raise PlanMismatchError(f"{weights}: lacks {missing[0]} of the domain {name}. Train again with --restart.")
    target = domain.folder.fold(configuration.name, fold)
    own = ModelCard(plans={"": made}, configurations={"": configuration.name}, fold=fold, facts=card.facts)
    used = {key: renamed[key] for key in wanted}
    if not _holds(target / BEST, own, used):  # what is there already keeps its time stamp, and its measures with it
        save_tensors(target / BEST, used, {"format_version": FORMAT_VERSION, "card": to_plain(own)})
    digest = plan_digest(made, configuration, read_split(domain.folder, fold))
    own_state = replace(state, configuration=configuration.name, fold=fold, plan_digest=digest)
    write_record(target / STATE, own_state, "training", is_sealed=True)
    return target / BEST


def _holds(file: Path, card: ModelCard, tensors: dict[str, torch.Tensor]) -> bool:
    """The file holds these weights."""
    if not file.exists() or read_card(file) != card:
        return False
    kept, _ = load_tensors(file)
    return kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensor) for key, tensor in tensors.items())


def _export_history(common: Path, target: Path, name: str) -> None:
    """The epochs of a common training as one domain saw them: its own labels, and their mean."""
    lines = []
    for epoch in read_history(common):
        dice = cast(dict[str, float | None], epoch["pseudo_dice"])
        own = {label.removeprefix(f"{name}/"): value for label, value in dice.items() if label.startswith(f"{name}/")}
        present = [value for value in own.values() if value is not None]
        mean = sum(present) / len(present) if present else None
        lines.append(json.dumps({**epoch, "pseudo_dice": own, "pseudo_dice_mean": mean, "pseudo_dice_smoothed": None}))
    if lines:
        write_text(target / HISTORY, "\n".join(lines) + "\n")
        progress_figure(read_history(target), target / "progress.png", title=f"{name} in the universal network")


def _join(base: Path, trained: Path, added: str) -> None:
    """Put an added domain's tensors and plan beside those of the common network, none of which changes."""
    tensors, _ = load_tensors(base)
    new, _ = load_tensors(trained)
    card, own = read_card(base), read_card(trained)
    domain_of = sharing_of(own.networks).domain_of
    changed = [key for key, tensor in new.items() if domain_of(key) is None and not torch.equal(tensor, tensors[key])]
    if changed:  # a defect, never the user's doing; better no file than a network that forgot something
        raise RuntimeError(f"training {added} changed {changed[0]}, which belongs to all domains")
    joined = replace(
        card,
        plans={**card.plans, added: own.plans[added]},
        configurations={**card.configurations, added: own.configurations[added]},
    )
    kept = {key: tensor for key, tensor in tensors.items() if domain_of(key) != added}
    kept |= {key: tensor for key, tensor in new.items() if domain_of(key) == added}
    save_tensors(base, kept, {"format_version": FORMAT_VERSION, "card": to_plain(joined)})
