"""Whether each family compiles and exports: every family and kind of plan through ``torch.compile`` and ONNX, compared with eager.

Out: a Markdown table and ``exports.json``; where a step fails, the table holds what the tool said. Needs the packages onnx,
onnxscript and onnxruntime. Networks are small: what is tested is the graph, not speed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import machine, markdown_table, write_json

from medseg3d.errors import PlanError
from medseg3d.networks import NETWORKS, build_network
from medseg3d.plan import NetworkPlan

FLAT = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
PLANS: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "3,3,3": (((1, 1, 1), *((2, 2, 2),) * 3), (16, 24, 16)),
    "5,5,5": (((1, 1, 1), *((2, 2, 2),) * 5), (64, 64, 64)),
    "2,6,6": (FLAT, (8, 128, 128)),
    "7,7": (((1, 1), *((2, 2),) * 7), (256, 256)),
    "two stages": (((1, 1, 1), (2, 2, 2)), (8, 12, 8)),
    "6 slices": (((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)), (6, 32, 32)),
}
TOLERANCE = 1e-3
"""Largest root mean square difference in standard deviations of the logits; deep networks with fresh weights amplify rounding."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Differences from eager execution in standard deviations of the logits, or what went wrong."""

    family: str
    plan: str
    compiled: str
    onnx: str


def main() -> int:
    """All families and plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for exports.json")
    parser.add_argument("--families", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes = []
    for family in options.families:
        for name in options.plans:
            outcomes.append(outcome_of(family, name))
            print(outcomes[-1], flush=True)
            write_json(options.output / "exports.json", {"machine": machine(), "outcomes": [asdict(o) for o in outcomes]})
    print(markdown_table(("family", "pools", "torch.compile", "ONNX"), [(o.family, o.plan, o.compiled, o.onnx) for o in outcomes]))
    return 1 if any("differs" in (o.compiled + o.onnx) for o in outcomes) else 0


def outcome_of(family: str, name: str) -> Outcome:
    """Both ways, or why the family refuses the plan."""
    torch.manual_seed(0)
    try:
        network, image = make(family, name)
    except PlanError as error:
        refused = f"refused: {_first_line(error)}"
        return Outcome(family=family, plan=name, compiled=refused, onnx=refused)
    with torch.no_grad():
        expected = network(image)
    return Outcome(family=family, plan=name, compiled=compiled(network, image, expected), onnx=exported(network, image, expected))


def make(family: str, name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A small network of a family for a kind of plan, and an image for it."""
    strides, size = PLANS[name]
    num_stages = len(strides)
    plan = NetworkPlan(
        family=family,
        dimensions=len(size),  # type: ignore[arg-type]
        in_channels=2,
        num_classes=3,
        features=tuple(min(16, 8 + 2 * stage) for stage in range(num_stages)),
        kernel_sizes=tuple((1, 3, 3) if name in ("2,6,6", "6 slices") and stage < 2 else (3,) * len(size) for stage in range(num_stages)),
        strides=strides,
        encoder_blocks=(2,) * num_stages,
        decoder_blocks=(2,) * (num_stages - 1),
        deep_supervision=False,
    )
    return build_network(plan).eval(), torch.randn(1, 2, *size)


def compiled(network: torch.nn.Module, image: torch.Tensor, expected: torch.Tensor) -> str:
    """One graph through the default backend."""
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            found = torch.compile(network, fullgraph=True)(image)
    except Exception as error:  # whatever the compiler says is the finding
        return f"fails: {_first_line(error)}"
    return verdict(found, expected)


def exported(network: torch.nn.Module, image: torch.Tensor, expected: torch.Tensor) -> str:
    """Through torch's exporter and ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        try:
            torch.onnx.export(network, (image,), str(file), dynamo=True, verbose=False, input_names=["image"], output_names=["logits"])
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever the exporter says is the finding
            return f"fails: {_first_line(error)}"
        (found,) = session.run(None, {"image": image.numpy()})
    return verdict(torch.from_numpy(found), expected)


def verdict(found: torch.Tensor, expected: torch.Tensor) -> str:
    """The difference, marked where it is too large."""
    difference = float((found - expected).square().mean().sqrt() / expected.std())
    return f"{difference:.0e}" if difference <= TOLERANCE else f"differs by {difference:.0e}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
