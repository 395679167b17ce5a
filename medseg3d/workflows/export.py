"""Export: a trained model → one file to give away, networks as ONNX, or a MONAI bundle."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.files import remove_file, remove_leftovers, remove_tree, replacing, storage, storage_errors, temporary_for
from medseg3d.models.bundle import write_bundle
from medseg3d.models.model_file import ENDING, write_model_file
from medseg3d.models.parts import Configurations, ModelDescription, ModelParts
from medseg3d.models.pruning import pruned_parts
from medseg3d.models.sources import open_model
from medseg3d.networks.build import build_network, output_size
from medseg3d.options import FoldChoice, LevelOptions
from medseg3d.plan import Plan
from medseg3d.records import to_plain, write_record
from medseg3d.version import __version__

logger = logging.getLogger(__name__)

Format = Literal["medseg3d", "onnx", "monai"]

OPSET = 18
"""The oldest that torch's exporter writes without converting."""
NUM_WINDOWS = 3
"""Random windows that an exported network is compared on."""
MIN_AGREEMENT = 0.999
"""Share of voxels that must get the same label; rounding alone moves fewer than one in ten thousand."""
MAX_ONNX_BYTES = 2**31 - 2**20
"""A protobuf holds less than 2 GiB, weights and graph together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far ONNX Runtime is from torch (both float32, on the CPU) on random windows: logits, and the share of equal labels.

    ``sha256`` is the file's, as ONNX has no checksum of its own.
    """

    file: str
    configuration: str
    fold: str
    max_difference: float
    mean_difference: float
    label_agreement: float
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """``parity.json`` beside exported networks."""

    networks: tuple[Parity, ...]
    num_windows: int
    opset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written; ``parity`` for ONNX only."""

    output: Path
    format: Format
    files: tuple[Path, ...]
    description: ModelDescription
    parity: tuple[Parity, ...] = ()


def export_model(
    source: Path,
    output: Path,
    *,
    format: Format | None = None,
    configuration: Configurations = None,
    folds: FoldChoice = None,
    level: str | int | None = None,
) -> ExportResult:
    """Export any model that ``load_model`` loads, atomically.

    ``format`` None takes the one that the output's name ends with. Of a work folder that is exported which ``load_model`` would load.
    Of a network with levels, ONNX and MONAI get the one that predicts alone; a ``.medseg3d`` file holds all, unless ``level`` names one.
    A file that is there is replaced, a folder that holds something is not. Raises :class:`InputError`, and
    :class:`UnsupportedError` where a format cannot hold the model, or its ONNX does not compute the same.
    """
    chosen = format or _format_of(output)
    wanted = LevelOptions(level=None if level is None else str(level)).wanted_level
    if chosen == "onnx":
        _check_onnx()
    if chosen == "medseg3d" and output.suffix != ENDING:
        raise InputError(f"{output}: the name of a single-file model ends with {ENDING}.")
    is_folder = not (chosen == "medseg3d" or (chosen == "onnx" and output.suffix == ".onnx"))
    _check_free(output, is_folder=is_folder)
    remove_leftovers(output.parent, name=output.name)
    parts = open_model(source, configuration=configuration, folds=folds)
    if wanted is not None or chosen != "medseg3d":
        parts = pruned_parts(parts, wanted)
    parity: tuple[Parity, ...] = ()
    if chosen == "medseg3d":
        files: tuple[Path, ...] = (write_model_file(output, parts),)
    elif not is_folder:
        files, parity = _one_onnx_file(parts, output)
    else:
        with _new_folder(output) as folder:
            if chosen == "onnx":
                written, parity = _onnx_folder(parts, folder)
            else:
                written = write_bundle(folder, parts, name=output.name)
        files = tuple(output / file.relative_to(folder) for file in written)
    logger.info("Exported %s as %s", source, output)
    return ExportResult(output=output, format=chosen, files=files, description=parts.description, parity=parity)


def _format_of(output: Path) -> Format:
    if output.suffix == ENDING:
        return "medseg3d"
    if output.suffix == ".onnx":
        return "onnx"
    raise InputError(
        f"{output}: say what to write there, --format onnx or --format monai (both folders), or name a file that ends with {ENDING}."
    )


def _check_free(output: Path, *, is_folder: bool) -> None:
    if not is_folder and output.is_dir():
        raise InputError(f"{output}: is a folder; name a file.")
    if is_folder and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: is there already. Name a new folder, or delete it first.")


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Exporting to ONNX needs {', '.join(missing)}: pip install 'medseg3d[onnx]'")


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside the output that takes its place when the block succeeds."""
    with storage_errors(output), temporary_for(output) as temporary:
        storage().make_folder(temporary)
        yield temporary
        remove_tree(output)  # it is empty
        storage().replace(temporary, output)


def _one_onnx_file(parts: ModelParts, output: Path) -> tuple[tuple[Path, ...], tuple[Parity, ...]]:
    networks = list(parts.networks())
    if len(networks) > 1:
        raise InputError(
            f"{output}: one file holds one network, the model has {len(networks)}. Name a folder with --format onnx, or one of them with "
            "-c and --fold."
        )
    measured = output.with_suffix(".parity.json")
    with replacing(output) as temporary:
        parity = replace(_export_onnx(parts, *networks[0], temporary), file=output.name)
        remove_file(measured)  # that of an older file must not lie beside this one
    report = _write_parity(measured, (parity,))
    return (output, report), (parity,)


def _onnx_folder(parts: ModelParts, folder: Path) -> tuple[tuple[Path, ...], tuple[Parity, ...]]:
    parities = []
    for configuration, fold in parts.networks():
        parities.append(_export_onnx(parts, configuration, fold, folder / f"{configuration}_fold_{fold}.onnx"))
    report = _write_parity(folder / "parity.json", tuple(parities))
    return (*(folder / parity.file for parity in parities), report), tuple(parities)


def _write_parity(path: Path, networks: tuple[Parity, ...]) -> Path:
    return write_record(path, ParityReport(networks=networks, num_windows=NUM_WINDOWS, opset=OPSET), "parity")


def _export_onnx(parts: ModelParts, configuration: str, fold: str, path: Path) -> Parity:
    """One network, any number of windows at once; raises :class:`UnsupportedError` where the labels differ from torch's."""
    plan = parts.description.plan
    chosen = plan.configurations[configuration]
    network = build_network(chosen.network).eval()
    network.load_state_dict(dict(parts.tensors(configuration, fold)))
    if sum(tensor.nbytes for tensor in network.state_dict().values()) > MAX_ONNX_BYTES:
        raise UnsupportedError(f"{configuration}: one ONNX file holds less than 2 GiB. Export to {ENDING}.")
    windows = torch.randn(NUM_WINDOWS, chosen.network.in_channels, *chosen.patch_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated calls
        try:
            program = torch.onnx.export(
                network,
                (windows[:2],),  # a batch of one would be taken for a constant
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),  # a name; with torch.export.Dim some networks come out with a batch of exactly two
            )
        except torch.onnx.OnnxExporterError as error:
            raise UnsupportedError(f"{configuration}: torch's exporter cannot express this network in ONNX. Export to {ENDING}.") from error
    if program is None:
        raise UnsupportedError(f"{configuration}: torch's exporter gave no ONNX program. Export to {ENDING}.")
    program.model.metadata_props.update(onnx_metadata(plan, configuration, fold))
    program.save(str(path), external_data=False)
    storage().finish(path)
    parity = _checked_parity(network, windows, path, configuration, fold, is_regions=bool(plan.labels.regions))
    with path.open("rb") as file:
        return replace(parity, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def onnx_metadata(plan: Plan, configuration: str, fold: str) -> dict[str, str]:
    """What an ONNX file says about its network, each value as JSON; lists over axes are in the network's order."""
    chosen = plan.configurations[configuration]
    values = {
        "made_by": f"medseg3d {__version__}",
        "configuration": configuration,
        "fold": fold,
        "labels": dict(zip(plan.labels.names, plan.labels.values, strict=True)),
        "regions": plan.labels.regions,
        "channels": plan.channels,
        "orientation": plan.orientation,
        "axis_order": plan.axis_order,
        "spacing": chosen.spacing,
        "window": chosen.patch_size,
        "output_window": output_size(chosen.network, chosen.patch_size),
        "normalization": [to_plain(rule) for rule in chosen.normalization],
        "resampling": to_plain(chosen.resampling),
        "mirror_axes": chosen.mirror_axes,
        "plan": to_plain(plan),
    }
    return {name: json.dumps(value) for name, value in values.items()}


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without its warnings that torchvision, which no network here uses, is not installed."""
    exporter = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        exporter.setLevel(before)


def _checked_parity(
    network: torch.nn.Module, windows: torch.Tensor, path: Path, configuration: str, fold: str, *, is_regions: bool
) -> Parity:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest, total, agreeing, num_logits, num_labels = 0.0, 0.0, 0, 0, 0
    for batch in (windows[:1], windows[1:]):  # of two sizes: the file is for any
        with torch.inference_mode():
            expected = network(batch)
        try:
            found = torch.from_numpy(session.run(["logits"], {"image": batch.numpy()})[0])
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise UnsupportedError(
                f"{configuration}: torch's exporter does not leave the number of windows open ({error}). Export to {ENDING}."
            ) from error
        difference = (found - expected).abs()
        same = ((found > 0) == (expected > 0)) if is_regions else (found.argmax(1) == expected.argmax(1))
        largest = max(largest, float(difference.max()))
        total += float(difference.double().sum())
        agreeing += int(same.sum())
        num_logits += difference.numel()
        num_labels += same.numel()
    parity = Parity(
        file=path.name,
        configuration=configuration,
        fold=fold,
        max_difference=largest,
        mean_difference=total / num_logits,
        label_agreement=agreeing / num_labels,
    )
    if parity.label_agreement < MIN_AGREEMENT or not math.isfinite(largest):
        raise UnsupportedError(
            f"{configuration}, fold {fold}: ONNX Runtime gives the same label as torch to {100 * parity.label_agreement:.2f} % of the "
            f"voxels of random windows, expected at least {100 * MIN_AGREEMENT:g} %. Nothing was written; export to {ENDING}."
        )
    return parity
