"""LiteRT (TensorFlow Lite) files, converted by litert-torch, quantized by ai-edge-quantizer.

The file's input is [B, H, W, C], as the kernels of phones have it. Its outputs have the network's own layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import (
    Extra,
    describe,
    eval_mode,
    export_program,
    first_line,
    flatten,
    quiet,
    require_fixed,
)
from deploy_prune.export.inputs import Given, batches, float32, several
from deploy_prune.export.transposed import Runtime, Transposed, rewrite_transposed
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

suffix: Final = ".tflite"
precisions: Final = ("fp32", "fp16", "int8")
runtime: Final = "litert"
extra: Final = Extra(name="litert", modules=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"))
packages: Final = ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
_FLOAT_ONLY: Final = frozenset(
    {"BATCH_MATMUL", "DIV", "GELU", "HARD_SWISH", "RSQRT", "SOFTMAX", "SQRT", "SQUARED_DIFFERENCE"}
)
"""LiteRT's XNNPACK delegate doesn't take them in int8 (github.com/google-ai-edge/LiteRT, tflite/delegates/xnnpack,
README, "Quantized inference"); in a vision transformer, batched products in int8 make 25 parts of one."""
_CHEAP: Final = frozenset({"ADD", "MEAN", "MUL", "RESHAPE", "SUB", "SUM", "TRANSPOSE"})
"""Their time is that of reading and writing, wherever they run."""
_LAYERS: Final = frozenset({"CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
"""Operations with weights."""
_MOVES: Final = frozenset({"CONCATENATION", "RESHAPE", "SLICE", "SPLIT", "STRIDED_SLICE", "TRANSPOSE"})
"""Their results are what they read, elsewhere."""
Scopes = dict[str, list[str]]
"""An operation's name -> where in the file there are such, as the quantizer's rules call them."""
_SIGNATURE, _INPUT = "serving_default", "args_"  # litert-torch's names


class _ChannelsLast(nn.Module):
    """The network with inputs [B, H, W, C] where they were [B, C, H, W], and its outputs in one tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.network(*(x.permute(0, 3, 1, 2) if _is_image(x) else x for x in inputs)))


def _is_image(x: Tensor) -> bool:
    """Whether a file's input has its channels last."""
    return x.dim() == 4 and x.is_floating_point()


def _to_file(x: Tensor) -> Tensor:
    return x.detach().cpu().permute(0, 2, 3, 1).contiguous() if _is_image(x) else x.detach().cpu().contiguous()


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Convert the network, in eval mode, to one .tflite file whose input and outputs are float32.

    Args:
        network: converted as it is; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the file's input shape, [B, H, W, C].
        path: the file; it appears under this name only when complete.
        precision: "fp32"; "fp16" (weights stored in half, a runtime may compute in half or in float); "int8" (weights
            per output channel and activations per tensor, all in int8).
        part: an open batch size is refused.
        calibration: for int8, inputs [N, C, H, W] as in training, N at least B; the activations' ranges come from them.

    Raises:
        MissingDependencyError: the extra is not installed.
        ExportError: another precision, an open batch size, no calibration for int8, or it can't be converted.
    """
    extra.require()
    require_fixed("A LiteRT file", precisions, precision, part, example, calibration)
    with eval_mode(network), _silent():
        program = export_program(network, example, part)
        plain = rewrite_transposed(program.module(check_guards=False), Runtime(has=_transposes, groups=False))
        content = _convert(plain, example)
        if precision == "fp16":
            content = _halve(content)
        elif precision == "int8":
            assert calibration is not None
            content = _quantize(content, calibration, [x.shape for x in several(example)])
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return describe(
        path,
        format="litert",
        precision=precision,
        input_shape=several(example)[0].shape,
        versions={package: version(package) for package in packages},
        layout="NHWC" if any(map(_is_image, several(example))) else "NCHW",
    )


def _transposes(given: Transposed) -> bool:
    """Whether TRANSPOSE_CONV computes it: it pads nothing, or so that an input gives stride outputs, and has no groups.

    Of others the converter makes none or wrong ones, or one for each group and a sum with the bias, rounded once more.
    Ordinary convolutions with groups run in LiteRT's slow reference kernels in int8.
    """
    each = zip(given.kernel, given.stride, given.padding, strict=True)
    padded = all(p == 0 or k - s == 2 * p for k, s, p in each)
    return given.groups == 1 and padded and not any(given.output_padding) and set(given.dilation) == {1}


def _convert(network: nn.Module, example: Given) -> bytes:
    """The network as a float32 file."""
    import litert_torch

    inputs = tuple(map(_to_file, several(example)))
    try:
        with torch.no_grad():
            wrapped = _ChannelsLast(network)
            wrapped.training = False
            converted = litert_torch.convert(wrapped, inputs)
        return bytes(converted.model_content())
    except Exception as error:  # the converter's exceptions have no common base but Exception
        message = f"litert-torch can't convert the network: {first_line(error)}"
        raise ExportError(message) from error


def _halve(content: bytes) -> bytes:
    """The file with its layers' weights in float16; each is turned into float32 where it is used."""
    from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer, qtyping

    quantizer = Quantizer(content)
    quantizer.add_weight_only_config(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
    )
    return _quantized(quantizer, None)


def _quantize(content: bytes, calibration: Given, shapes: Sequence[Sequence[int]]) -> bytes:
    """The file in int8: ranges of activations from the calibration inputs; the input and outputs stay float32."""
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer, qtyping
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    operations = qtyping.TFLOperationName
    quantizer = Quantizer(content)
    quantizer.add_static_config(".*", operations.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for kept in (operations.INPUT, operations.OUTPUT):
        quantizer.update_quantization_recipe(".*", kept, algorithm_key=AlgorithmName.NO_QUANTIZE)
    layers, moves = last_layers(content)
    for name, scopes in layers.items():
        quantizer.add_dynamic_config(_any_of(scopes), operations(name), num_bits=8)
    for kept in (moves, kept_in_float(content)):
        for name, scopes in kept.items():  # one rule an operation: each rule is tried on every tensor
            quantizer.update_quantization_recipe(
                _any_of(scopes), operations(name), algorithm_key=AlgorithmName.NO_QUANTIZE
            )
    recipe = RecipeManager()
    recipe.load_quantization_recipe(quantizer.get_quantization_recipe())
    fed = [  # the converter makes 64-bit integers 32-bit ones
        {
            f"{_INPUT}{i}": _to_file(x.int() if x.dtype is torch.int64 else x).numpy()
            for i, x in enumerate(float32(batch))
        }
        for batch in batches(several(calibration), shapes)
    ]
    try:
        with redirect_stderr(StringIO()):  # a progress bar
            # Not the default, a moving average of each batch's extremes: it cuts off what only some inputs reach.
            calibrator = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
            calibrator.calibrate({_SIGNATURE: fed}, recipe)
    except Exception as error:  # as above
        message = f"ai-edge-quantizer can't calibrate the network: {first_line(error)}"
        raise ExportError(message) from error
    return _quantized(quantizer, calibrator.get_model_qsvs())


def kept_in_float(content: bytes) -> Scopes:
    """Operations of a float file that int8 makes slower and less exact: each kind's scopes, in file order.

    They are those without an int8 kernel in XNNPACK, which would run alone in LiteRT's slow reference kernels, and the
    cheap ones between them, so that a norm is computed in float as a whole: its variance doesn't fit in 8 bits.
    A cheap operation is between if all that it reads, or all that reads it, is kept in float. A sum is also kept if
    anything that reads it is: what a transformer's layers add to and pass on has outliers that 8 bits can't hold.
    """
    kept = Scopes()
    for graph, texts, scopes in _graphs(content):
        for i in in_float(texts, _reads(graph)):
            kept.setdefault(texts[i], []).append(scopes[i])
    return kept


def last_layers(content: bytes) -> tuple[Scopes, Scopes]:
    """Layers whose results reach outputs as they are, perhaps moved; and what moves them.

    Outputs stay float: a last layer with 8-bit weights rounds what it reads as it runs, and its result isn't rounded.
    Channels of very different scale, as boxes and classes are, would else have one scale of 8 bits.
    """
    layers, moves = Scopes(), Scopes()
    for graph, texts, scopes in _graphs(content):
        outputs = {int(t) for t in graph.outputs}
        gives = [any(int(t) in outputs for t in op.outputs) for op in graph.operators]
        for i in at_the_end(texts, _reads(graph), gives):
            (layers if texts[i] in _LAYERS else moves).setdefault(texts[i], []).append(scopes[i])
    return layers, moves


def at_the_end(names: Sequence[str], reads: Sequence[Sequence[int]], gives: Sequence[bool]) -> list[int]:
    """Layers and moves after which there is nothing but moves.

    ``reads``: the operations, all before it, whose results each one reads. ``gives``: which ones give an output.
    """
    read_by = _read_by(reads)
    last = set[int]()
    for i in reversed(range(len(names))):
        is_read = all(r in last and names[r] in _MOVES for r in read_by[i]) and bool(read_by[i] or gives[i])
        if is_read and names[i] in _LAYERS | _MOVES:
            last.add(i)
    return sorted(last)


def _read_by(reads: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each operation, those that read its results."""
    found: list[list[int]] = [[] for _ in reads]
    for index, sources in enumerate(reads):
        for source in sources:
            found[source].append(index)
    return found


def _reads(graph: Any) -> list[list[int]]:
    """For each operation, those whose results it reads."""
    maker = {int(t): i for i, op in enumerate(graph.operators) for t in op.outputs}
    return [[maker[int(t)] for t in op.inputs if int(t) in maker] for op in graph.operators]


def _graphs(content: bytes) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Every graph of a file, and its operations' names ("" if they have none) and scopes."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model(content)
    names = [flatbuffer.TFL_OP_CODE_TO_NAME.get(code.builtinCode) for code in model.operatorCodes]
    texts = ["" if name is None else str(name.value) for name in names]
    for graph in model.subgraphs:
        scopes = [flatbuffer.get_op_scope(op, graph.tensors) for op in graph.operators]
        yield graph, [texts[op.opcodeIndex] for op in graph.operators], scopes


def _any_of(scopes: Sequence[str]) -> str:
    """A pattern that these scopes match alone."""
    return f"^(?:{'|'.join(map(re.escape, scopes))})$"


def in_float(names: Sequence[str], reads: Sequence[Sequence[int]]) -> list[int]:
    """Which operations stay in float, given each one's name and the operations whose results it reads."""
    read_by = _read_by(reads)
    chosen = {i for i, name in enumerate(names) if name in _FLOAT_ONLY}
    chosen |= {reader for i in chosen if names[i] == "RSQRT" for reader in read_by[i] if names[reader] in _CHEAP}
    grown = True
    while grown:
        between = {
            i
            for i, name in enumerate(names)
            if (name in _CHEAP and any(side and chosen.issuperset(side) for side in (reads[i], read_by[i])))
            or (name == "ADD" and not chosen.isdisjoint(read_by[i]))
        }
        grown = not between <= chosen
        chosen |= between
    return sorted(chosen)


def _quantized(quantizer: Any, ranges: Any) -> bytes:
    try:
        with redirect_stderr(StringIO()):  # a progress bar that enable_progress_bar leaves on
            done = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # as above
        message = f"ai-edge-quantizer can't quantize the network: {first_line(error)}"
        raise ExportError(message) from error
    return bytes(done.quantized_model)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the converter's progress bars off the terminal, too."""
    shown = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = "n"
    try:
        with quiet():
            yield
    finally:
        if shown is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = shown


_PROGRESS: Final = "LITERT_TORCH_SHOW_PROGRESS"
