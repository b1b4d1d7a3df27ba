"""A stand-in for the tensorrt module of three versions, and for libcuda, on a machine with neither.

Names and numbers were recorded from the vendor's Python modules of 8.6.1, 10.3.0 and 11.4.0; what a version does not
have is not there. It refuses what TensorRT is known to refuse, writes down each call, and "engines" run in ONNX
Runtime, on the memory whose addresses they are given.
"""

import ctypes
import json
import types
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, numpy_helper

VERSIONS = ("8.6.1", "10.3.0", "11.4.0.106")
MEMBERS = {
    "8.6.1": {
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
        "BuilderFlag": {"FP16": 0, "INT8": 1, "TF32": 7},
        "TacticSource": {
            "CUBLAS": 0,
            "CUBLAS_LT": 1,
            "CUDNN": 2,
            "EDGE_MASK_CONVOLUTIONS": 3,
            "JIT_CONVOLUTIONS": 4,
        },
    },
    "10.3.0": {
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "BuilderFlag": {"FP16": 0, "INT8": 1, "TF32": 6},
        "TacticSource": {
            "CUBLAS": 0,
            "CUBLAS_LT": 1,
            "CUDNN": 2,
            "EDGE_MASK_CONVOLUTIONS": 3,
            "JIT_CONVOLUTIONS": 4,
        },
    },
    "11.4.0.106": {
        "NetworkDefinitionCreationFlag": {
            "STRONGLY_TYPED": 0,
            "PREFER_JIT_PYTHON_PLUGINS": 1,
            "PREFER_AOT_PYTHON_PLUGINS": 2,
        },
        "BuilderFlag": {"TF32": 6},
        "TacticSource": {"EDGE_MASK_CONVOLUTIONS": 0, "JIT_CONVOLUTIONS": 1},
    },
}
SAME_MEMBERS = {
    "MemoryPoolType": {"WORKSPACE": 0},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
    "DataType": {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5},
    "Severity": {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4},
}
ELEMENT_TYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT32: "INT32"}
Record = Callable[..., None]

LIBCUDA = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
static int context, stream, *current;
static int no_gpu(void) { char *text = getenv("FAKE_CUDA_ERROR"); return text ? atoi(text) : 0; }
int cuInit(unsigned flags) { return flags ? 1 : no_gpu(); }
int cuDeviceGet(int *device, int number) { *device = 7; return number != 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake GPU"); return device != 7; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return device != 7; }
int cuCtxSetCurrent(void *made) { current = made; return made != &context; }
int cuStreamCreate(void **made, unsigned flags) { *made = &stream; return flags != 0 || !current; }
int cuStreamSynchronize(void *which) { return which != &stream; }
int cuMemAlloc_v2(uint64_t *made, size_t size) { *made = (uint64_t)malloc(size); return size == 0 || !current; }
int cuMemFree_v2(uint64_t memory) { free((void *)memory); return memory == 0; }
int cuMemAllocHost_v2(void **made, size_t size) { *made = malloc(size); return size == 0 || !current; }
int cuMemFreeHost(void *memory) { free(memory); return memory == 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, void *from, size_t size, void *which)
{ memcpy((void *)to, from, size); return which != &stream; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *which)
{ memcpy(to, (void *)from, size); return which != &stream; }
"""
"""libcuda in C, whose "device" is the host's memory: wrong argument types crash here as they would there."""


def make(version: str, record: Record) -> types.ModuleType:
    """The module; ``record`` is called with each call's name and arguments."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    members = {**SAME_MEMBERS, **MEMBERS[version]}
    for name, values in members.items():
        setattr(trt, name, IntEnum(name, values))
    for base in (ILogger, Parser, Config, Profile, Cache, Builder, Runtime):
        setattr(trt, base.public, type(base.public, (base,), {"trt": trt, "record": staticmethod(record)}))
    for name in SAME_MEMBERS["Severity"]:
        setattr(trt.ILogger, name, trt.Severity[name])
    del trt.Severity
    return trt


def write_calls_to(path: str) -> Record:
    """A record that adds a line of JSON to a file for each call."""

    def record(*call: object) -> None:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")

    return record


class HostMemory(bytearray):
    """What TensorRT hands out bytes in: a buffer."""


class ILogger:
    public = "ILogger"

    def __init__(self):
        self.ready = True

    def error(self, text):
        self.log(self.trt.ILogger.WARNING, "only a warning")
        self.log(self.trt.ILogger.ERROR, text)


class Network:
    def __init__(self, trt, flags):
        self.trt, self.flags, self.onnx = trt, flags, None

    def has(self, name):
        known = self.trt.NetworkDefinitionCreationFlag
        return hasattr(known, name) and bool(self.flags >> known[name] & 1)


class ParserError:
    def __init__(self, text):
        self.text = text

    def __str__(self):
        return f"In node 0 (parseNode): INVALID_NODE: {self.text}"


class Parser:
    public = "OnnxParser"

    def __init__(self, network, logger):
        assert logger.ready
        self._network, self._errors = network, []
        self.record("OnnxParser")

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return ParserError(self._errors[index])

    def parse_from_file(self, path):
        self.record("parse_from_file", Path(path).name)
        model = onnx.load(path)
        self._errors = list(refusals(model, older=self.trt.__version__.startswith("8")))
        if self.trt.__version__.startswith("8") and not self._network.has("EXPLICIT_BATCH"):
            self._errors.append("the network must have an explicit batch")
        self._network.onnx = model
        return not self._errors


def refusals(model, older):
    """What TensorRT's parser does not take in quantised files."""
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) < 3 or constants[node.input[2]].any():
            yield "only symmetric quantization is supported"
        elif constants[node.input[2]].dtype != numpy.int8:
            yield f"{constants[node.input[2]].dtype} is not supported"
        if older and node.op_type == "DequantizeLinear" and node.input[0] in constants:
            yield "invalid weights type of Int8"


class Config:
    public = "IBuilderConfig"

    def __init__(self):
        trt = self.trt
        self.flags, self.profiles, self.cache = {trt.BuilderFlag.TF32}, [], None
        self.sources = sum(1 << source for source in trt.TacticSource)

    def set_memory_pool_limit(self, pool, pool_size):
        self.record("set_memory_pool_limit", pool.name, pool_size)

    def set_flag(self, flag):
        self.flags.add(flag)
        self.record("set_flag", flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag)
        self.record("clear_flag", flag.name)

    def get_tactic_sources(self):
        return self.sources

    def set_tactic_sources(self, tactic_sources):
        self.record("set_tactic_sources", [s.name for s in self.trt.TacticSource if tactic_sources >> s & 1])
        return True

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        self.record("add_optimization_profile")
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        return self.trt.ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = ignore_mismatch or not cache.data or cache.data.startswith(self.trt.__version__.encode())
        self.record("set_timing_cache", len(cache.data), fits)
        self.cache = cache if fits else self.cache
        return fits

    def get_timing_cache(self):
        return self.cache


class Cache:
    public = "ITimingCache"

    def __init__(self, data):
        self.data = data

    def serialize(self):
        return HostMemory(self.trt.__version__.encode() + b" timings")


class Profile:
    public = "IOptimizationProfile"

    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = (min, opt, max)
        self.record("set_shape", input, min, opt, max)


class Builder:
    public = "Builder"

    def __init__(self, logger):
        assert logger.ready
        self._logger = logger
        self.record("Builder")

    def create_network(self, flags=0):
        network = Network(self.trt, flags)
        known = self.trt.NetworkDefinitionCreationFlag
        assert flags < 1 << len(known), "unknown flag"
        self.record("create_network", [flag.name for flag in known if network.has(flag.name)])
        return network

    def create_builder_config(self):
        self.record("create_builder_config")
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self):
        return self.trt.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        self.record("build_serialized_network")
        why = self.why_not(network, config)
        if why:
            self._logger.error(why)
            return None
        (profile,) = config.profiles or [None]
        head = {"version": self.trt.__version__, "shapes": profile and profile.shapes}
        return HostMemory(json.dumps(head).encode() + b"\n" + network.onnx.SerializeToString())

    def why_not(self, network, config):
        flags, graph = self.trt.BuilderFlag, network.onnx.graph
        typed = network.has("STRONGLY_TYPED") or not hasattr(flags, "FP16")
        half = any(entry.data_type == TensorProto.FLOAT16 for entry in graph.initializer)
        quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
        if not typed and half and flags.FP16 not in config.flags:
            return "the network has fp16 tensors and FP16 is not allowed"
        if not typed and quantised and flags.INT8 not in config.flags:
            return "the network has Q/DQ layers and INT8 is not allowed"
        if typed and any(hasattr(flags, name) and flags[name] in config.flags for name in ("FP16", "INT8")):
            return "a strongly typed network takes no precision flags"
        if is_open(graph) and not config.profiles:
            return "network has dynamic inputs, but no optimization profile"
        return None


def is_open(graph):
    return any(extent.dim_param for extent in graph.input[0].type.tensor_type.shape.dim)


class Runtime:
    public = "Runtime"

    def __init__(self, logger):
        self._logger = logger
        self.record("Runtime")

    def deserialize_cuda_engine(self, serialized_engine):
        head, _, body = bytes(serialized_engine).partition(b"\n")
        try:
            about = json.loads(head)
        except ValueError:
            about = {"version": "no"}
        if about["version"] != self.trt.__version__:
            self._logger.error(f"version tag mismatch: {about['version']} engine")
            return None
        return Engine(self.trt, self.record, about, onnx.load_from_string(body))


class Engine:
    """Its outputs come in another order than the network's, as a real engine's may."""

    def __init__(self, trt, record, about, model):
        self.trt, self.record, self.about, self.model = trt, record, about, model
        self._tensors = {entry.name: entry for entry in (*model.graph.input, *reversed(model.graph.output))}

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name):
        return self.trt.DataType[ELEMENT_TYPES[self._tensors[name].type.tensor_type.elem_type]]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        import onnxruntime

        self._engine, self._addresses, self._shape = engine, {}, None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            engine.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    def set_input_shape(self, name, shape):
        low, _, high = (self._engine.about["shapes"] or {}).get(name) or [self._session.get_inputs()[0].shape] * 3
        fits = name == self._name and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self._shape = tuple(shape) if fits else None
        return fits

    def get_tensor_shape(self, name):
        if name == self._name:
            return self._shape
        outputs = self._session.run([name], {self._name: numpy.zeros(self._shape, "float32")})
        return outputs[0].shape

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        self._engine.record("set_tensor_address", name)
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle, "the default stream"
        self._engine.record("execute_async_v3")
        size = int(numpy.prod(self._shape))
        x = numpy.ctypeslib.as_array((ctypes.c_float * size).from_address(self._addresses[self._name]))
        names = [entry.name for entry in self._session.get_outputs()]
        outputs = self._session.run(names, {self._name: x.reshape(self._shape).copy()})
        for name, y in zip(names, outputs, strict=True):
            data = numpy.ascontiguousarray(y)
            ctypes.memmove(self._addresses[name], data.ctypes.data, data.nbytes)
        return True
