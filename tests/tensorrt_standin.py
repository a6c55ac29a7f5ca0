"""A stand-in for TensorRT and CUDA, for machines without a GPU: it refuses what they refuse.

"Device" memory is reached by address alone, engines are ONNX files in ONNX Runtime with optimisation profiles.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import onnxruntime

OK, OUT_OF_MEMORY, INVALID_VALUE, NOT_WHILE_CAPTURING, CAPTURE_BROKEN = 0, 2, 1, 900, 901


class Cuda:
    """cuda.bindings.runtime, of one stream for each engine."""

    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self):
        self.blocks = {}
        self.room = float("inf")
        self.uploaded = []
        self.streams, self.graphs, self.executables = set(), set(), {}
        self.capturing = None
        """Stream being captured; what is enqueued there is noted in `noted`, or None after something forbidden."""
        self.noted = None
        self.begun = self.launched = 0
        self.cannot_instantiate = self.captured_are_wrong = False
        self._last_error = OK
        self._handles = 0

    def _handle(self):
        self._handles += 1
        return self._handles

    def fail(self, error):
        """An error, which also ends the worth of a capture under way."""
        self.noted, self._last_error = None, error
        return error

    def cudaGetLastError(self):
        error, self._last_error = self._last_error, OK
        return (error,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        self.streams.add(stream := self._handle())
        return OK, stream

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if self.capturing:
            return (self.fail(NOT_WHILE_CAPTURING),)
        return (OK,)

    def cudaMalloc(self, size):
        if self.capturing:
            return self.fail(NOT_WHILE_CAPTURING), None
        if sum(map(len, self.blocks.values())) + size > self.room:
            return OUT_OF_MEMORY, None
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return OK, address

    def cudaFree(self, address):
        if self.capturing:
            return (self.fail(NOT_WHILE_CAPTURING),)
        del self.blocks[address]
        return (OK,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        # Of pageable memory, which no capture takes.
        if self.capturing == stream:
            return (self.fail(NOT_WHILE_CAPTURING),)
        if size > len(self.blocks[target if kind == 1 else source]):
            return (INVALID_VALUE,)
        if kind == 1:
            self.uploaded.append(size)
        ctypes.memmove(target, source, size)
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        if self.capturing:
            return (self.fail(NOT_WHILE_CAPTURING),)
        self.capturing, self.noted = stream, []
        self.begun += 1
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        if self.capturing != stream:
            return INVALID_VALUE, None
        noted, self.capturing, self.noted = self.noted, None, None
        if noted is None:
            return CAPTURE_BROKEN, None
        graph = _Graph(noted)
        self.graphs.add(graph)
        return OK, graph

    def cudaGraphInstantiate(self, graph, flags):
        if self.cannot_instantiate or graph not in self.graphs:
            return INVALID_VALUE, None
        executable = self._handle()
        self.executables[executable] = graph.noted
        return OK, executable

    def cudaGraphDestroy(self, graph):
        self.graphs.remove(graph)
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        del self.executables[executable]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        if executable not in self.executables or self.capturing:
            return (INVALID_VALUE,)
        if not self.captured_are_wrong:
            for launch in self.executables[executable]:
                launch()
        self.launched += 1
        return (OK,)


class _Graph:
    def __init__(self, noted):
        self.noted = noted


class Context:
    """IExecutionContext. Captured graphs hold addresses and what the context was set to when they were captured."""

    def __init__(self, engine, cuda, graphs_of_its_own):
        self.engine, self.cuda, self.graphs_of_its_own = engine, cuda, graphs_of_its_own
        self.active_optimization_profile = 0
        self.shapes, self.addresses = {}, {}
        # Work left by changes is done by the next run.
        self.changes, self.flushed = 0, False
        self.alone, self.profiles_run = 0, set()

    def _changed(self):
        self.changes, self.flushed = self.changes + 1, False
        return True

    def set_optimization_profile_async(self, profile, stream):
        self.active_optimization_profile = profile
        self.shapes.clear()
        self.addresses.clear()
        return self._changed()

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self._changed()

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self._changed()

    def execute_async_v3(self, stream):
        if self.cuda._last_error:
            return False  # somebody else's, as if it were of its own kernels
        if self.cuda.capturing != stream:
            self._compute(dict(self.shapes), dict(self.addresses))
            self.flushed, self.alone = True, self.alone + 1
            return True
        if not self.flushed or self.graphs_of_its_own or self.engine.refuses == "enqueue":
            self.cuda.fail(NOT_WHILE_CAPTURING)
            return False
        if self.engine.refuses == "end":
            self.cuda.fail(NOT_WHILE_CAPTURING)
            return True
        shapes, addresses, changes = dict(self.shapes), dict(self.addresses), self.changes

        def launch():
            assert self.changes == changes, "the context was changed: what the graph does is undefined"
            self._compute(shapes, addresses)

        self.cuda.noted.append(launch)
        return True

    def _compute(self, shapes, addresses):
        least, most = self.engine.ranges[self.active_optimization_profile]
        self.profiles_run.add(self.active_optimization_profile)
        session = self.engine.session
        given = {}
        for tensor in session.get_inputs():
            shape = shapes[tensor.name]
            assert least <= shape[0] <= most
            block = self.cuda.blocks[addresses[tensor.name]]
            given[tensor.name] = np.frombuffer(block, np.float32, int(np.prod(shape))).reshape(shape)
        for tensor, made in zip(session.get_outputs(), session.run(None, given), strict=True):
            block = self.cuda.blocks[addresses[tensor.name]]
            assert made.nbytes <= len(block)
            ctypes.memmove(block, np.ascontiguousarray(made).ctypes.data, made.nbytes)


class Engine:
    def __init__(self, session, ranges, library, name):
        self.session, self.ranges, self.library = session, ranges, library
        self.refuses = library.refuses.get(name)
        self.names = [t.name for t in (*session.get_inputs(), *session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_mode(self, name):
        return "in" if name in {t.name for t in self.session.get_inputs()} else "out"

    def create_runtime_config(self):
        return SimpleNamespace(cuda_graph_strategy="disabled")

    def create_execution_context(self, config=None):
        if self.refuses == "context":
            return None
        own = config is not None and config.cuda_graph_strategy == "whole graph"
        self.library.contexts.append(Context(self, self.library.cuda, own))
        return self.library.contexts[-1]


class TensorRT:
    """tensorrt, or with `rtx` tensorrt_rtx, which alone has CUDA graphs of its own.

    ranges: graph -> least and most of each profile. refuses: graph -> "context", or, while capturing, "enqueue" or
    "end". An engine's file is the graph's name, a bar and its ONNX file.
    """

    class Logger:
        ERROR = 1

        def __init__(self, level):
            pass

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, ranges, cuda, rtx):
        self.ranges, self.cuda, self.refuses = ranges, cuda, {}
        self.contexts = []
        if rtx:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")

    def Runtime(self, logger):
        def deserialize(content):
            if content == b"not for here":
                return None
            name, graph = content.split(b"|", 1)
            name = name.decode()
            return Engine(onnxruntime.InferenceSession(graph), self.ranges[name], self, name)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)
