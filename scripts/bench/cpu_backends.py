"""One window through a network on the CPU: torch, ours (prepacked weights, fewer products), torch.compile, OpenVINO, ONNX Runtime.

In: a model (work folder, .medseg3d, nnU-Net result folder). Out: a Markdown table of seconds per window and of the largest difference
of the logits from torch's in float32. A backend that is not installed is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import machine, markdown_table

from medseg3d.devices import use_all_cores
from medseg3d.models.loading import load_model
from medseg3d.networks.packed import packed

Run = Callable[[], torch.Tensor]


def main() -> int:
    """Measure all backends side by side: every round runs each of them once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = load_model(options.model, device="cpu", precision="float32")
    use_all_cores()
    (network, *_), configuration = model.members[0].networks, model.members[0].configuration
    window = torch.randn(1, len(model.plan.channels), *configuration.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = network(window)
        runs = dict(backends(network, window))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        differences = {name: float((run() - exact).abs().max()) for name, run in runs.items()}
        for _ in range(options.rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    first = float(np.median(seconds["torch float32"]))
    rows = [
        (name, f"{np.median(each):.3f}", f"{first / np.median(each):.2f}", f"{differences[name]:.1e}") for name, each in seconds.items()
    ]
    print(machine())
    print(markdown_table(("backend", "seconds per window", "times as fast", "largest difference"), rows))
    return 0


def backends(network: torch.nn.Module, window: torch.Tensor) -> Iterator[tuple[str, Run]]:
    """Each backend as a function without arguments."""

    def in_bfloat16(module: torch.nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(window).float()

    yield "torch float32", lambda: network(window)
    yield "torch bfloat16", lambda: in_bfloat16(network)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        prepacked = packed(network, dtype)
        run = partial(in_bfloat16, prepacked) if precision == "bfloat16" else partial(prepacked, window)
        yield f"ours {precision}", run
    compiled = torch.compile(network)
    yield "torch.compile float32", lambda: compiled(window)
    yield "torch.compile bfloat16", lambda: in_bfloat16(compiled)
    with torch.inference_mode(False):
        plain = torch.randn(window.shape)
        program = torch.export.export(network, (plain,))
        yield from openvino_backends(program, window)
        yield from onnx_backend(network, plain, window)


def openvino_backends(program: torch.export.ExportedProgram, window: torch.Tensor) -> Iterator[tuple[str, Run]]:
    """OpenVINO in both precisions."""
    try:
        import openvino
    except ImportError:
        return
    converted = openvino.convert_model(program)
    for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        compiled = openvino.Core().compile_model(
            converted, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        )
        request = compiled.create_infer_request()
        yield f"OpenVINO {name}", lambda request=request: torch.from_numpy(request.infer([window.numpy()])[0])


def onnx_backend(network: torch.nn.Module, plain: torch.Tensor, window: torch.Tensor) -> Iterator[tuple[str, Run]]:
    """ONNX Runtime's own kernels."""
    try:
        import onnxruntime
    except ImportError:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(network, (plain,), file, dynamo=True, input_names=["image"], verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        yield "ONNX Runtime float32", lambda: torch.from_numpy(session.run(None, {"image": window.numpy()})[0])


if __name__ == "__main__":
    sys.exit(main())
