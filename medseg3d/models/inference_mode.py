"""How the networks of a model go over an image beside the sliding window: at several scales, flipped along chosen axes, or at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medseg3d.axes import CANONICAL
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.networks.build import output_size
from medseg3d.plan import Plan
from medseg3d.prediction.predict_case import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceMode:
    """``scales`` are factors of the image's size, whose probabilities are averaged; ``flips`` the names of axes, None for the plan's.

    ``is_whole`` gives the networks the whole image instead of windows.
    """

    scales: tuple[float, ...] = ()
    flips: tuple[str, ...] | None = None
    is_whole: bool = False

    @property
    def identity(self) -> str:
        """What of it changes a prediction; empty for the sliding window."""
        scales = f";scales={','.join(f'{scale:g}' for scale in self.scales)}" if self.scales not in ((), (1.0,)) else ""
        flips = "" if self.flips is None else f";flips={','.join(self.flips)}"
        return scales + flips + (";whole image" if self.is_whole else "")


def in_mode(members: Sequence[Member], plan: Plan, mode: InferenceMode) -> tuple[Member, ...]:
    """The members that predict in a mode: one for each scale. Earlier stages of cascades stay as they are.

    Raises :class:`InputError` for an axis that is unknown or that a network was trained without flipping along, and
    :class:`UnsupportedError` for a network that gives logits for the middle of its window only, where it should see the whole image.
    """
    chosen = list(members)
    if mode.flips is not None:
        chosen = [_flipped(member, plan, mode.flips) for member in chosen]
    if mode.is_whole:
        chosen = [_whole(member) for member in chosen]
    scales = mode.scales or (1.0,)
    return tuple(_scaled(member, scale) for member in chosen for scale in scales)


def _scaled(member: Member, scale: float) -> Member:
    """Its images are resampled to a spacing that is finer by the factor."""
    if scale == 1:
        return member
    configuration = member.configuration
    spacing = tuple(edge / scale for edge in configuration.spacing)
    return replace(member, configuration=replace(configuration, name=f"{configuration.name} at scale {scale:g}", spacing=spacing))


def _flipped(member: Member, plan: Plan, flips: Sequence[str]) -> Member:
    configuration = member.configuration
    names = CANONICAL if plan.orientation == "canonical" else ("z", "y", "x")
    unknown = [name for name in flips if name not in names]
    if unknown:
        raise InputError(f"--flips {' '.join(unknown)}: no such axis; expected some of {', '.join(names)}.")
    lead = 3 - configuration.dimensions
    axes = [axis for name in flips if (axis := plan.axis_order.index(names.index(name)) - lead) >= 0]
    unsafe = [names[plan.axis_order[axis + lead]] for axis in axes if axis not in configuration.mirror_axes]
    if unsafe:
        raise InputError(
            f"--flips {' '.join(unsafe)}: {configuration.name} was trained without mirroring along that axis, so it does not know flipped "
            "images."
        )
    return replace(member, configuration=replace(configuration, mirror_axes=tuple(sorted(axes))), mirroring=bool(axes))


def _whole(member: Member) -> Member:
    network, patch = member.configuration.network, member.configuration.patch_size
    if output_size(network, patch) != patch:
        raise UnsupportedError(
            f"--whole-image: {network.family} gives logits for the middle of its window only. Leave --whole-image out: windows cover the "
            "image."
        )
    return replace(member, is_whole=True)
