"""The numbers of preprocessing, network and training in full, as a paper's supplement states them: enough to do it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.wording import counted


def preprocessing_details(plan: Plan, chosen: Configuration) -> str:
    """Intensities by channel, and the splines along fine and coarse axes."""
    channels = []
    for name, each in zip(plan.channels, chosen.normalization, strict=False):
        if each.scheme == "ct":
            channels.append(f"{name}: clipped to {each.lower:g} … {each.upper:g}, minus {each.mean:g}, divided by {each.std:g}")
        elif each.scheme == "zscore":
            where = "the voxels inside of the non-zero region" if each.use_mask else "all voxels of the cropped image"
            channels.append(f"{name}: minus the mean, divided by the standard deviation of {where}")
        else:
            channels.append(f"{name}: {each.scheme}")
    resampling = chosen.resampling
    return (
        f"Intensities: {'; '.join(channels)}. Resampling: splines of order {resampling.image_order} for images, {resampling.label_order} "
        "for "
        f"labels one by one, {resampling.logits_order} for logits; where the spacings differ by {resampling.separate_threshold:g} times or "
        f"more, the coarse axis by itself with orders {resampling.image_coarse_order}, {resampling.label_coarse_order} and "
        f"{resampling.logits_coarse_order}. No image was left out as an outlier, and no step was manual."
    )


def network_details(plan: Plan, chosen: Configuration) -> str:
    """Stage by stage, and what goes in and comes out."""
    network = chosen.network
    stages = [
        f"{width} features, kernel {_times(kernel)}, stride {_times(stride)}, {counted(blocks, 'block')}"
        for width, kernel, stride, blocks in zip(
            network.features, network.kernel_sizes, network.strides, network.encoder_blocks, strict=False
        )
    ]
    options = ", ".join(f"{name} {value}" for name, value in network.options.items())
    last = "a sigmoid for each region" if plan.labels.regions else "a softmax"
    return (
        f"Input: {counted(network.in_channels, 'channel')} of {_times(chosen.patch_size)} voxels. Encoder stages: {'; '.join(stages)}. "
        "Decoder: "
        f"blocks per stage, coarse to fine, {', '.join(map(str, network.decoder_blocks))}. Output: {counted(network.num_classes, 'map')}, "
        f"{last}{', at every decoder stage while training (deep supervision)' if network.deep_supervision else ''}."
        + (f" Options of the family: {options}." if options else "")
    )


def training_details(chosen: Configuration, training: TrainingPlan) -> str:
    """Every number of the training, augmentations with probabilities and ranges, and when it stops."""
    options = ", ".join(f"{name} {value:g}" for name, value in training.loss_options.items())
    momentum = f", momentum {training.momentum:g}" if training.optimizer in ("sgd", "muon") else ""
    further = "; ".join(f"{name} ({', '.join(f'{k} {v:g}' for k, v in own.items())})" for name, own in training.augmentations.items())
    parts = [
        f"Loss {training.loss}{f' ({options})' if options else ''}"
        f"{', Dice over the batch' if chosen.batch_dice else ', Dice per sample'}; optimizer {training.optimizer}, learning rate "
        f"{training.learning_rate:g}{momentum}, weight decay {training.weight_decay:g}, schedule "
        f"{training.schedule}, "
        f"warm-up {training.warmup:g} of the run, gradients clipped to a norm of {training.gradient_clip:g}; "
        f"{counted(training.iterations_per_epoch, 'step')} an epoch; no dropout but what the network's options name",
        f"Convergence was watched by the loss and the pseudo-Dice of {training.validation_iterations} batches of the "
        "validation cases "
        "after every epoch; training ended after the number of epochs, or the time, that was set before, never by a look at the validation",
        augmentation_details(chosen, training),
    ]
    if further:
        parts.append(f"Further augmentations: {further}")
    if training.layer_learning_rates:
        rates = ", ".join(f"{name} × {value:g}" for name, value in training.layer_learning_rates.items())
        parts.append(f"Factors on the learning rate: {rates}")
    return f"{'. '.join(parts)}."


def augmentation_details(chosen: Configuration, training: TrainingPlan) -> str:
    """Probabilities and ranges, in the order in which the changes are made."""
    from medseg3d.patches import augmentation as a

    policy = a.augmentation_policy(chosen.patch_size, num_channels=1, mirror_axes=chosen.mirror_axes)
    keep = 1.0 - training.augmentation_reduction
    low, high = a.SCALE_RANGE
    changes = [
        f"rotation up to {math.degrees(policy.max_angle):.0f}°{' in the slice plane' if policy.is_slicewise else ''} ({a.P_ROTATION:g})",
        f"scaling by {low:g} to {high:g} ({a.P_SCALE:g})",
        f"Gaussian noise with a standard deviation up to {a.NOISE_RANGE[1]:g} ({a.P_NOISE:g})",
        f"blur of {a.BLUR_RANGE[0]:g} to {a.BLUR_RANGE[1]:g} voxels ({a.P_BLUR:g}, each channel {a.P_BLUR_CHANNEL:g})",
        f"brightness × {a.BRIGHTNESS_RANGE[0]:g} to {a.BRIGHTNESS_RANGE[1]:g} ({a.P_BRIGHTNESS:g})",
        f"contrast × {a.CONTRAST_RANGE[0]:g} to {a.CONTRAST_RANGE[1]:g} ({a.P_CONTRAST:g})",
        f"resolution × {a.LOW_RESOLUTION_RANGE[0]:g} to {a.LOW_RESOLUTION_RANGE[1]:g} ({a.P_LOW_RESOLUTION:g})",
        f"gamma {a.GAMMA_RANGE[0]:g} to {a.GAMMA_RANGE[1]:g} ({a.P_GAMMA:g}; of the inverted image {a.P_GAMMA_INVERTED:g})",
        f"mirroring along {_axes(chosen.mirror_axes)} ({a.P_MIRROR:g} each)",
    ]
    reduced = f", each but mirroring {keep:.0%} as often" if training.augmentation_reduction else ""
    return f"Augmentations (with their probabilities per patch{reduced}): {', '.join(changes)}"


def _axes(axes: Sequence[int]) -> str:
    return f"the patch's axes {', '.join(str(axis + 1) for axis in axes)}" if axes else "no axis"


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)
