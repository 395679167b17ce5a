"""Losses and counts of codes: what a stored label map means (:mod:`medseg3d.label_codes`) becomes what a loss understands.

Every loss is one of logits with a softmax and of labels that name one class per voxel. Here it serves the others as well:

- *regions*: the mean over regions of the loss with two classes, of the logits ``[0, z]`` and binary labels. Its cross-entropy is the binary
  one, its Dice that of the sigmoid: nnU-Net's loss of regions, where it is Dice plus cross-entropy.
- *structures that a case was not annotated for*: they are merged into the background, whose probability becomes the sum (marginal loss,
  Shi 2021, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation"); a region is left out of such a case.
- *soft labels*: probabilities ``(batch, class, …)`` take the place of codes; a loss that does not know them gets the most probable label.
- *voxels that nobody has annotated*: labels are ``IGNORED``, and the logits say background for sure, without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.losses.loss import IGNORED, LossFunction
from medseg3d.losses.supervision import Counts, count_voxels

SURE = 1e4
"""A logit of so much less than the others is a probability of exactly 0 in float32."""

MakeLoss = Callable[[int | None], LossFunction]
"""The loss of a region by its index, with two classes, or of all classes for None."""


def loss_of_codes(labels: Labels, make: MakeLoss, *, knows_ignored: bool, knows_soft: bool = False) -> LossFunction:
    """The loss of logits and codes; that of indices itself for an ordinary dataset, that of probabilities for soft labels."""
    codes = LabelCodes(labels)
    if labels.soft and not knows_soft:
        of_indices = make(None)
        return lambda logits, soft: of_indices(logits, soft.argmax(1) if soft.is_floating_point() else soft)
    if codes.are_indices:
        return make(None)
    if labels.regions:
        return _of_regions(codes, [make(index) for index in labels.foreground], knows_ignored)
    of_classes, meaning = make(None), _Meaning(codes)

    def loss(logits: Tensor, coded: Tensor) -> Tensor:
        read = meaning.read(coded)
        merged = merge_unannotated(logits.float(), read.lacking) if labels.unannotated else logits.float()
        return _where_known(of_classes, merged, read.values, read.is_ignored, knows_ignored)

    return loss


def has_ignored(labels: Labels) -> bool:
    """Whether a loss can meet voxels that do not count: ignored ones, and of regions all of a case that was not annotated for them."""
    return labels.ignore is not None or bool(labels.regions and labels.unannotated)


def _of_regions(codes: LabelCodes, losses: Sequence[LossFunction], knows_ignored: bool) -> LossFunction:
    meaning = _Meaning(codes)

    def loss(logits: Tensor, coded: Tensor) -> Tensor:
        read = meaning.read(coded)
        values = []
        for index, of_region in enumerate(losses, start=1):
            score = logits[:, index - 1].float()
            is_ignored = read.ignored_for(index)
            values.append(
                _where_known(of_region, torch.stack((torch.zeros_like(score), score), 1), read.holds(index), is_ignored, knows_ignored)
            )
        return torch.stack(values).mean()

    return loss


def _where_known(of_labels: LossFunction, logits: Tensor, labels: Tensor, is_ignored: Tensor | None, knows_ignored: bool) -> Tensor:
    """The loss over the voxels that are not ignored."""
    labels = labels.long()
    if is_ignored is None:
        return of_labels(logits, labels)
    sure = torch.full_like(logits[:1, :, ...], -SURE)
    sure[:, 0] = SURE
    logits = torch.where(is_ignored[:, None], sure, logits)
    return of_labels(logits, labels.masked_fill(is_ignored, IGNORED if knows_ignored else 0))


def merge_unannotated(logits: Tensor, lacking: Tensor) -> Tensor:
    """Logits whose softmax gives the background the probabilities of all classes that a sample lacks, and these none.

    ``lacking`` is bool ``(batch, class)``, never true for the background.
    """
    shape = (*lacking.shape, *(1,) * (logits.ndim - 2))
    hidden = lacking.view(shape)
    is_merged = hidden.clone()
    is_merged[:, 0] = True
    background = logits.masked_fill(~is_merged, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat((background, logits[:, 1:].masked_fill(hidden[:, 1:], -SURE)), 1)


@dataclass(frozen=True, slots=True)
class _Read:
    """Codes, read: the place of each voxel's value, what each sample lacks ``(batch, class)``, and which voxels are ignored."""

    values: Tensor
    lacking: Tensor
    is_ignored: Tensor | None
    contents: Tensor

    def holds(self, index: int) -> Tensor:
        """Whether voxels belong to a region."""
        found: Tensor = self.contents[index][self.values]
        return found

    def ignored_for(self, index: int) -> Tensor | None:
        """Voxels that say nothing of a region; None where the dataset has none."""
        if not self.lacking.shape[1]:
            return self.is_ignored
        lacks = self.lacking[:, index].view(-1, *(1,) * (self.values.ndim - 1)).expand(self.values.shape)
        return lacks if self.is_ignored is None else lacks | self.is_ignored


class _Meaning:
    """The tables of :class:`LabelCodes` on a device."""

    def __init__(self, codes: LabelCodes) -> None:
        self.codes = codes
        self._contents = torch.from_numpy(codes.contents()[:, : codes.num_values].copy())
        self._lacking = torch.from_numpy(codes.lacking() if codes.labels.unannotated else codes.lacking()[:, :0])

    def read(self, coded: Tensor) -> _Read:
        """Codes ``(batch, n0, …)`` of any integer type."""
        coded, ignored, count = coded.long(), self.codes.ignored, self.codes.num_values
        is_ignored = None if ignored is None else coded == ignored
        known = coded if is_ignored is None else coded.masked_fill(is_ignored, 0)
        sets = torch.div(known, count, rounding_mode="floor").flatten(1).amax(1)  # of voxels beyond the volume it is 0
        return _Read(
            values=known % count,
            lacking=self._lacking.to(coded.device)[sets],
            is_ignored=is_ignored,
            contents=self._contents.to(coded.device),
        )


CountVoxels = Callable[[Tensor, Tensor], Counts]
"""(logits, labels) → the counts behind a pseudo-Dice, by class."""


def counter_of(labels: Labels) -> CountVoxels:
    """Counts true and false voxels of each class or region by its index; ignored voxels and unannotated structures are left out."""
    codes = LabelCodes(labels)
    if labels.soft:
        return lambda logits, soft: count_voxels(logits, soft.argmax(1))
    if codes.are_indices:
        return count_voxels
    meaning, num_classes = _Meaning(codes), labels.num_classes

    def count(logits: Tensor, coded: Tensor) -> Counts:
        with torch.no_grad():
            read = meaning.read(coded)
            predicted = None if labels.regions else _most_probable(logits.float(), read.lacking)
            rows = [torch.zeros(3, dtype=torch.int64, device=logits.device)]
            for index in range(1, num_classes):
                there = logits[:, index - 1] > 0 if predicted is None else predicted == index
                truth, left_out = read.holds(index), read.ignored_for(index)
                if left_out is not None:
                    there, truth = there & ~left_out, truth & ~left_out
                rows.append(torch.stack(((there & truth).sum(), (there & ~truth).sum(), (~there & truth).sum())))
            hits, false_positives, false_negatives = torch.stack(rows).unbind(1)
            return Counts(true_positives=hits, false_positives=false_positives, false_negatives=false_negatives)

    return count


def _most_probable(logits: Tensor, lacking: Tensor) -> Tensor:
    """The arg-max; an unannotated class may be what it likes to be, so that it is no false positive of another."""
    return (merge_unannotated(logits, lacking) if lacking.shape[1] else logits).argmax(1)
