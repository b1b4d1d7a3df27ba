"""Core ML packages (.mlpackage folders), written by coremltools; they run only on Apple's systems.

So on other machines a package's latency stays unmeasured, and its parity is checked on its contents: ``compare`` sets
every layer's weights beside the network's and computes the package's program with torch (see ``mil``). In int8 only
weights are quantised: to calibrate activations, coremltools has to run the model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import Extra, describe, eval_mode, first_line, flatten, quiet
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.mil import compare
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

__all__ = ["compare", "extra", "packages", "precisions", "runtime", "suffix", "write"]

suffix: Final = ".mlpackage"
precisions: Final = ("fp32", "fp16", "int8")
runtime: Final = None
extra: Final = Extra(name="coreml", modules=("coremltools",))
packages: Final = ("torch", "coremltools")
_DATED: Final = "com.github.apple.coremltools.conversion_date"
"""The one entry of the package's metadata that changes from day to day."""
_LEFT_OUT: Final = {"common::fuse_conv_bias", "common::fuse_conv_scale", "common::fuse_matmul_weight_bias"}
"""Passes of coremltools 9.0 that give wrong results: the first adds a per-channel constant that is subtracted, the
others take c / y for y / c and c - y for y - c (github.com/apple/coremltools, pull requests 2776 and 2801)."""
_TYPES: Final = {True: numpy.float32, False: numpy.int32}
"""Core ML has no 64-bit integers."""
_SPEC: Final = Path("Data") / "com.apple.CoreML" / "model.mlmodel"


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Convert the network, in eval mode, to an ML program for iOS 16 and macOS 13; outputs: out0, out1 ...

    Args:
        network: a module, or a GraphModule of torch.export; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the input's shape.
        path: the package; it appears under this name only when complete.
        precision: "fp32"; "fp16": weights and arithmetic in half precision; "int8": weights of more than 2048 values
            in 8 bits with a scale per output channel, the rest as in fp16.
        part: an open batch size is refused.
        calibration: not needed, as activations aren't quantised.

    Raises:
        ExportError: another precision, an open batch size, torch can't export it, or coremltools can't convert it.
        MissingDependencyError: coremltools is not installed.
    """
    if precision not in precisions:
        message = (
            f"A Core ML package can't be written in {precision}: set the target's 'precision' to fp32, fp16 or int8."
        )
        raise ExportError(message)
    if part.dynamic_batch:
        message = "A Core ML package is written for one batch size: set 'dynamic_batch: false' under export."
        raise ExportError(message)
    extra.require()
    with eval_mode(network), torch.no_grad(), _silent():
        traced, num_outputs = _trace(network, example)
        model = _convert(traced, example, num_outputs, precision)
        with atomic(path) as temporary:
            model.save(str(temporary))
            _settle(temporary)
    versions = {"torch": torch.__version__, "coremltools": version("coremltools")}
    return describe(
        path, format="coreml", precision=precision, input_shape=several(example)[0].shape, versions=versions
    )


class _Outputs(nn.Module):
    """The network with its outputs as a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.network(*inputs))


def _trace(network: nn.Module, example: Given) -> tuple[Any, int]:
    """The traced network, and how many outputs it has. The export before refuses what a trace would take for fixed."""
    try:
        program = torch.export.export(_Outputs(network), several(example))
        traced = torch.jit.trace(_Outputs(program.module(check_guards=False)), several(example), check_trace=False)
    except Exception as error:  # whatever the network's own code raises
        message = f"torch can't export the network for Core ML: {first_line(error)}"
        raise ExportError(message) from error
    return traced, len(program.graph_signature.user_outputs)


def _convert(traced: Any, example: Given, num_outputs: int, precision: str) -> Any:
    import coremltools
    from coremltools.optimize import coreml

    exact, inputs = precision == "fp32", several(example)
    names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    passes = coremltools.PassPipeline()
    passes.remove_passes(_LEFT_OUT)
    try:
        model = coremltools.convert(
            traced,
            inputs=[
                coremltools.TensorType(name=name, shape=tuple(x.shape), dtype=_TYPES[x.is_floating_point()])
                for name, x in zip(names, inputs, strict=True)
            ],
            outputs=[coremltools.TensorType(name=f"out{i}", dtype=numpy.float32) for i in range(num_outputs)],
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT32 if exact else coremltools.precision.FLOAT16,
            minimum_deployment_target=coremltools.target.iOS16,
            pass_pipeline=passes,
            skip_model_load=True,
        )
        if precision == "int8":
            each = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
            model = coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=each))
    except Exception as error:  # coremltools' errors have no common base but Exception
        message = f"coremltools can't convert the network: {first_line(error)}"
        raise ExportError(message) from error
    return model


def _settle(package: Path) -> None:
    """Make the package's bytes follow from its contents: no date, no random identifiers, sorted maps."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / _SPEC).read_bytes())
    spec.description.metadata.userDefined.pop(_DATED, None)
    (package / _SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    manifest = package / "Manifest.json"
    text = manifest.read_text(encoding="utf-8")
    entries = json.loads(text)["itemInfoEntries"]
    for number, name in enumerate(sorted(entries, key=lambda key: str(entries[key]["path"])), start=1):
        text = text.replace(name, f"00000000-0000-4000-8000-{number:012d}")
    manifest.write_text(json.dumps(json.loads(text), indent=4, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep progress bars off the terminal, too."""
    with quiet(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        yield
