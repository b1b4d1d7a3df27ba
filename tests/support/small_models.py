"""ONNX files that are small enough for any device, and networks that say what their input is."""

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy_prune.export.artifact import describe

WEIGHT = numpy.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype("float32")


def convolution(path, batch=2, channels_last=False):
    """An ONNX file: a 3x3 convolution 3 -> 5, and the mean of its input."""
    x = "x" if not channels_last else "t"
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if channels_last else []
    nodes += [
        helper.make_node("Conv", [x, "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", [x], ["m"], keepdims=0, axes=[1, 2, 3]),
    ]
    shape = [batch, 8, 6, 3] if channels_last else [batch, 3, 8, 6]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5, 8, 6]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, [batch]),
        ],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    size = batch if isinstance(batch, int) else 1
    layout = "NHWC" if channels_last else "NCHW"
    return describe(path, format="onnx", precision="fp32", input_shape=(size, 3, 8, 6), versions={}, layout=layout)


class Configured(nn.Flatten):
    """A network that says what it was made for, as timm's do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}


class Sized(nn.Flatten):
    """A network that has its input's side as an attribute, as torchvision's ViT has."""

    def __init__(self, num_classes: int, side: object = 40) -> None:
        super().__init__()
        self.image_size = side
