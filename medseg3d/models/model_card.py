"""What a person should know before using a model: its parts in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from medseg3d.axes import CANONICAL
from medseg3d.extensions import needed_arguments, source_text
from medseg3d.image_profile import ImageProfile, Range
from medseg3d.labels import Labels
from medseg3d.models.parts import DICE, DICE_CASES, MemberDescription, ModelDescription
from medseg3d.plan import Configuration, Plan
from medseg3d.validation.postprocessing import Step
from medseg3d.wording import counted


def model_card(description: ModelDescription) -> str:
    """What a person should know before using the model, in Markdown."""
    plan = description.plan
    channels = ", ".join(plan.channels)
    sections = [
        f"# {_cell(plan.dataset)}: a segmentation model for 3D images",
        f"It takes {'an image' if len(plan.channels) == 1 else 'images'} ({_cell(channels)}) and gives a label map on the same grid.",
        "## What it segments",
        _table(("value in the file", "label"), [(value, name) for name, value in zip(plan.labels.names, plan.labels.values, strict=True)]),
    ]
    if plan.labels.regions:
        sections.append(
            "The network was trained on overlapping regions; where they overlap, the label that stands lower in the table wins."
        )
    sections += list(_incomplete_annotations(plan.labels))
    sections += [
        "## Input",
        _table(("channel", "expected"), list(enumerate(plan.channels))),
        _cell(plan.modality_reason),
        *([_look_of_training(plan.images)] if plan.images else []),
        "Images are resampled by the model itself; they need a correct voxel spacing"
        + (" and orientation." if plan.orientation == "canonical" else ", and their axes in the order of the training images."),
        "## Networks",
        _table(
            ("configuration", "networks (folds)", "family", f"spacing in mm ({axes_text(plan)})", "window in voxels", "mirroring"),
            [_network_row(plan.configurations[member.configuration], member) for member in description.stages],
        ),
        _use_of_networks(description),
        *_afterwards(description),
        "## How it was made",
        f"Trained on {counted(plan.num_training, 'case')} of {_cell(plan.dataset)}, planned by `{plan.planner}`"
        + (f" for a card of {plan.gpu_memory_gb:g} GB." if plan.gpu_memory_gb > 0 else "."),
        "## Measured",
        _measured(description),
        "## Intended use and limits",
        LIMITS,
        *_run(providers_of(description)),
    ]
    return "\n\n".join(sections) + "\n"


def _incomplete_annotations(labels: Labels) -> Iterator[str]:
    """What the label maps that it learned from did not say."""
    if labels.ignore is not None:
        yield f"Its training images were annotated in parts; voxels of the value {labels.ignore} were left out, and it never gives it."
    if labels.unannotated:
        lacking = {labels.names[index] for indices in labels.unannotated for index in indices}
        names = ", ".join(_cell(name) for name in labels.names if name in lacking)
        yield f"Not all of its training images were annotated for {names}; where one was not, the structure was left open in training."


def providers_of(description: ModelDescription) -> tuple[str, ...]:
    """The extensions without which the networks cannot be built, as the plan notes them."""
    networks = (description.plan.configurations[stage.configuration].network for stage in description.stages)
    return tuple(dict.fromkeys(network.provider for network in networks if network.provider))


TOLD = ("dataset", "training_cases", "planner", DICE, DICE_CASES)
"""Facts that the sentences of a card tell already."""
LIMITS = """For research. It is no medical device, and nobody has approved it for diagnosis or treatment: a person who can judge the images
must check every result.

It knows images like those it was trained on. Another scanner, protocol, contrast phase, age group, body region or disease can make it
fail, silently: it always gives a label map, and does not say when it is unsure. A structure that is missing, operated on or badly
diseased may be drawn where it is not. Measure it on images of your own, with references, before relying on it."""


def axes_text(plan: Plan) -> str:
    """The network's axes in their order, each by its canonical letter, or by the name of the file's axis where images stay as stored."""
    letters = CANONICAL if plan.orientation == "canonical" else ("z", "y", "x")
    return ", ".join(letters[axis] for axis in plan.axis_order)


def step_text(step: Step, plan: Plan) -> str:
    """A postprocessing step in words."""
    label = "the foreground" if step.index is None else plan.labels.names[step.index]
    return {
        "keep_largest_foreground": "only the largest object of all labels together is kept",
        "keep_largest": f"only the largest object of {label} is kept",
        "fill_holes": f"holes in {label} are filled",
    }[step.operation]


def dice_text(facts: Mapping[str, float | int | str | None]) -> str | None:
    """The Dice of the cross-validation that is among the facts, in words; None where there is none."""
    dice, cases = facts.get(DICE), facts.get(DICE_CASES)
    if not isinstance(dice, float):
        return None
    return f"{dice:.4f}" + (f" over {counted(cases, 'case')}" if isinstance(cases, int) else "")


def _run(providers: tuple[str, ...]) -> list[str]:
    """The command, and what it needs that no model file holds."""
    extensions = needed_arguments(providers)
    command = shlex.join(["medseg3d", "predict", *extensions, "-m", "MODEL.medseg3d", "-i", "IMAGES", "-o", "LABELS"])
    calls = ", ".join(f"`medseg3d.use_extension({file!r})`" for file in extensions[1::2])
    sources = " and ".join(f"`{source_text(provider)}`" for provider in providers)
    needs = (
        f"**It needs code that is not in here**: {sources} (the name of a file and the first digits of its SHA-256, or a package and its "
        "version) builds the network. Ask whoever made the model for it, and read it before you run it."
        + (f" In Python, {calls} comes before the model is loaded." if calls else "")
    )
    return ["## How to run it", f"```sh\n{command}\n```", *([needs] if providers else [])]


def _afterwards(description: ModelDescription) -> list[str]:
    steps = [f"- {step_text(step, description.plan)}" for step in description.postprocessing.steps]
    return ["## After the networks", "\n".join(steps)] if steps else []


def _network_row(configuration: Configuration, member: MemberDescription) -> tuple[object, ...]:
    spacing = " × ".join(f"{value:g}" for value in configuration.spacing)
    window = " × ".join(map(str, configuration.patch_size))
    mirroring = "yes" if member.mirroring and configuration.mirror_axes else "no"
    return (
        configuration.name,
        f"{len(member.folds)} ({', '.join(member.folds)})",
        configuration.network.family,
        spacing,
        window,
        mirroring,
    )


def _look_of_training(images: ImageProfile) -> str:
    """What the training images look like; prediction warns of others."""

    def span(ranges: Sequence[Range]) -> str:
        return " x ".join(f"{known.low:.3g}" + (f" to {known.high:.3g}" if known.low < known.high else "") for known in ranges)

    stored = ", ".join(f"{code} ({count})" for code, count in images.orientations.items())
    return (
        f"The training images have voxels of {span(images.spacing)} mm and show {span(images.extent)} mm (each from the smallest to the "
        f"largest axis); they are stored as {stored}. An image that is unlike them is predicted with a warning, or refused with `--strict`."
    )


def _use_of_networks(description: ModelDescription) -> str:
    folds = "The networks of a configuration are averaged as logits"
    configurations = ", the configurations as probabilities" if len(description.members) > 1 else ""
    stages = f"; {', '.join(m.configuration for m in description.previous)} only serves as an earlier stage" if description.previous else ""
    levels = "".join(
        f" Of {stage.configuration} level {stage.levels.level} predicts, of {stage.levels.deepest} (`--level` names another): "
        f"{stage.levels.reason}. {stage.levels.table()}."
        for stage in description.stages
        if stage.levels is not None
    )
    return f"{folds}{configurations}{stages}. A spacing of two numbers is that of a 2D network, which sees the last two axes.{levels}"


def _measured(description: ModelDescription) -> str:
    dice = dice_text(description.facts)
    known = [
        f"Mean Dice of the labels in cross-validation: {dice}. Each case was predicted by networks that had not seen it; steps after the "
        "networks are not part of it."
        if dice
        else "Nothing is recorded about how good it is. Measure it before you use it."
    ]
    others = [f"- {name}: {_cell(value)}" for name, value in description.facts.items() if name not in TOLD and value is not None]
    return "\n\n".join([*known, *(["Also recorded:\n\n" + "\n".join(others)] if others else [])])


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    """On one line, and without what would end a cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
