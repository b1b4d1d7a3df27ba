"""Run a TensorRT engine from Python. Needs numpy and tensorrt 8.6 to 11; device memory comes from libcuda itself."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy

NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
    "INT32": "int32",
    "INT64": "int64",
}
"""TensorRT's types by name. Its own ``nptype`` needs ``numpy.bool``, which numpy 1.24 to 1.26 lack, in 8.6."""
POINTER, SIZE = ctypes.c_uint64, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuStreamCreate": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuMemAlloc_v2": (ctypes.POINTER(POINTER), SIZE),
    "cuMemFree_v2": (POINTER,),
    "cuMemAllocHost_v2": (ctypes.POINTER(ctypes.c_void_p), SIZE),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemcpyHtoDAsync_v2": (POINTER, ctypes.c_void_p, SIZE, ctypes.c_void_p),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, POINTER, SIZE, ctypes.c_void_p),
}
"""The parts of libcuda that are used, with their arguments (docs.nvidia.com, "CUDA Driver API"); each returns 0 if all
is well."""


class Cuda:
    """GPU 0 with its primary context, current in this thread, and one stream.

    Raises:
        RuntimeError: there is no libcuda or no GPU; or, from any call, libcuda's error number.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            message = "There is no NVIDIA driver here (libcuda.so.1), which a TensorRT engine needs."
            raise RuntimeError(message) from None
        for name, arguments in SIGNATURES.items():
            getattr(self._library, name).argtypes = arguments
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), 0)
        self.device, self.stream = device, stream

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of SIGNATURES."""
        code = getattr(self._library, name)(*arguments)
        if code:
            message = f"{name} failed with CUDA error {code}."
            raise RuntimeError(message)

    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self.device)
        return text.value.decode()


class Buffer:
    """One tensor of the engine: device memory, and page-locked host memory seen as a numpy array."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
        self._cuda = cuda
        self.nbytes = int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize
        self.device, self._host = POINTER(), ctypes.c_void_p()
        cuda.call("cuMemAlloc_v2", ctypes.byref(self.device), max(self.nbytes, 1))
        cuda.call("cuMemAllocHost_v2", ctypes.byref(self._host), max(self.nbytes, 1))
        memory = (ctypes.c_byte * self.nbytes).from_address(int(self._host.value or 0))
        self.array: numpy.ndarray[Any, Any] = numpy.ndarray(shape, dtype, buffer=memoryview(memory))

    def to_device(self) -> None:
        """Start to copy the array to the GPU."""
        self._cuda.call("cuMemcpyHtoDAsync_v2", self.device, self._host, self.nbytes, self._cuda.stream)

    def to_host(self) -> None:
        """Start to copy the GPU's memory to the array."""
        self._cuda.call("cuMemcpyDtoHAsync_v2", self._host, self.device, self.nbytes, self._cuda.stream)

    def free(self) -> None:
        """Give both memories back; the array must not be used afterwards."""
        self._cuda.call("cuMemFree_v2", self.device)
        self._cuda.call("cuMemFreeHost", self._host)


class Model:
    """A folder with engine.plan and model.json, loaded to be run on GPU 0.

    Args:
        path: the folder.
        threads: taken for the sake of the other runtimes; the GPU has no use for it.
        layout: of the engine's input, "NCHW" or "NHWC".

    Raises:
        RuntimeError: no engine has been built, there is no GPU, or TensorRT refuses the engine.
    """

    def __init__(self, path: str, threads: int, layout: str) -> None:
        folder = Path(path)
        plan = folder / "engine.plan"
        if not plan.is_file():
            message = (
                f"{folder} has no engine.plan: TensorRT engines belong to the device that they are built on."
                " Run `python3 build_engine.py` in that folder on the device first."
            )
            raise RuntimeError(message)
        self._outputs = json.loads((folder / "model.json").read_text(encoding="utf-8"))["outputs"]
        self._layout = layout
        self._cuda = Cuda()
        self._load(plan)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if name not in self._outputs]
        if len(inputs) != 1 or len(names) != len(self._outputs) + 1:
            message = f"{plan} has the tensors {', '.join(names)}, model.json other ones: build the engine again."
            raise RuntimeError(message)
        self._input = inputs[0]
        self._buffers: dict[str, Buffer] = {}

    def feed(self, *inputs: numpy.ndarray[Any, Any]) -> None:
        """Bring the one input [B, ...] to the GPU."""
        (x,) = inputs
        if self._layout == "NHWC":
            x = x.transpose(0, 2, 3, 1)
        if self._input not in self._buffers or self._buffers[self._input].array.shape != x.shape:
            self._make_room(x.shape)
        buffer = self._buffers[self._input]
        buffer.array[...] = x
        buffer.to_device()
        self._cuda.call("cuStreamSynchronize", self._cuda.stream)

    def run(self) -> list[numpy.ndarray[Any, Any]]:
        """Infer once on what was fed, copies of the outputs to the host included; in the network's order, float32."""
        if not self._context.execute_async_v3(self._cuda.stream.value):
            message = f"TensorRT could not start the inference. {self._complaints()}"
            raise RuntimeError(message)
        for name in self._outputs:
            self._buffers[name].to_host()
        self._cuda.call("cuStreamSynchronize", self._cuda.stream)
        return [self._buffers[name].array.astype("float32") for name in self._outputs]

    def _load(self, plan: Path) -> None:
        """Deserialise the engine. The log, runtime and engine stay, since TensorRT does not keep what it needs."""
        import tensorrt

        self._log = make_log(tensorrt)
        self._runtime = tensorrt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._context = self._engine and self._engine.create_execution_context()
        if not self._context:
            message = (
                f"TensorRT {tensorrt.__version__} on {self._cuda.name()} can't load {plan}: an engine runs only with"
                f" the version and on the kind of GPU that built it; build it again here. {self._complaints()}"
            )
            raise RuntimeError(message)

    def _make_room(self, shape: tuple[int, ...]) -> None:
        """Allocate the memory of every tensor for inputs of this shape, and tell the engine where it is."""
        if not self._context.set_input_shape(self._input, shape):
            message = f"The engine takes no inputs of shape {shape}. {self._complaints()}"
            raise RuntimeError(message)
        while self._buffers:
            self._buffers.popitem()[1].free()
        for name in (self._input, *self._outputs):
            size = tuple(int(extent) for extent in self._context.get_tensor_shape(name))
            if min(size, default=1) < 0:
                message = f"The size of the output {name} depends on the input's values, which is not supported."
                raise RuntimeError(message)
            buffer = Buffer(self._cuda, size, NUMPY_TYPES[self._engine.get_tensor_dtype(name).name])
            self._buffers[name] = buffer
            self._context.set_tensor_address(name, buffer.device.value)

    def _complaints(self) -> str:
        return " | ".join(self._log.lines[-5:])


def make_log(tensorrt: Any) -> Any:
    """A TensorRT logger that keeps errors in its ``lines`` and prints nothing."""
    kept = (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR)

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                self.lines.append(msg)

    return Log()


def versions() -> dict[str, str]:
    """What runs the engine."""
    import tensorrt

    return {"tensorrt": tensorrt.__version__, "gpu": Cuda().name()}
