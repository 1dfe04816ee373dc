"""Runs an exported graph with onnxruntime on torch tensors: nothing is copied, inputs and outputs are bound where they lie.

On the CPU a call returns when the graph has run. On a GPU it is queued: the graph runs on a stream of its own, which waits
for the caller's current one and which that one waits for, so whoever calls sees the order of a plain torch operation and
the host does not wait. Outputs are fresh tensors of torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.exported import GraphSpec, Port

EXTRA = "pip install 'stream-t1-runtime[onnx]'"
BFLOAT16 = 16  # as ONNX numbers its types; numpy has no such type
SHOWN = 300  # characters of onnxruntime's message in ours


class OrtGraph:
    """One graph behind ``runtime.types.Compiled``."""

    def __init__(self, path: Path, spec: GraphSpec, device: torch.device | str = "cpu") -> None:
        """Opens ``path``. RuntimeError in one line when onnxruntime is missing, or cannot run this graph here."""
        self.spec, self.device = spec, torch.device(device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.session = open_session(path, self.device, self.stream)
        theirs = {given.name for given in self.session.get_inputs()}
        if theirs != set(spec.inputs):
            raise RuntimeError(
                f"{path}: want inputs {sorted(spec.inputs)}, got {sorted(theirs)}; export it again"
            )

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs on the graph's device -> named outputs. ValueError names an input that does not fit."""
        axes = check_inputs(self.spec, inputs, self.device)
        if self.stream is None:
            return self._run(inputs, axes)
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        outputs = self._run(inputs, axes)
        here.wait_stream(self.stream)
        for tensor in (*inputs.values(), *outputs.values()):
            tensor.record_stream(
                self.stream
            )  # its memory is not given away while the graph reads it
        return outputs

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        outputs = {
            name: torch.empty(resolved(port, axes), dtype=torch_dtype(port), device=self.device)
            for name, port in self.spec.outputs.items()
        }
        binding = self.session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *self._place(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *self._place(tensor))
        try:
            self.session.run_with_iobinding(binding, self._options())
        except Exception as error:  # the library raises nothing narrower
            raise RuntimeError(f"onnxruntime: {self.spec.name}: {one_line(error)}") from None
        return outputs

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        """Device, number, type, shape and address, as a binding wants them."""
        import numpy

        kinds: dict[torch.dtype, Any] = {
            torch.float32: numpy.float32,
            torch.float16: numpy.float16,
            torch.bfloat16: BFLOAT16,
            torch.int64: numpy.int64,
        }
        place = self.device.type, self.device.index or 0
        return *place, kinds[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.RunOptions()
        if self.stream is not None:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


def open_session(path: Path, device: torch.device, stream: torch.cuda.Stream | None = None) -> Any:
    """An onnxruntime session with as many threads as torch has. RuntimeError in one line."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(f"onnxruntime is missing ({error}); run `{EXTRA}`") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while torch works take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if stream is not None:
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeError(
                f"onnxruntime: knows no {device} (it has {', '.join(onnxruntime.get_available_providers())}); "
                "run `pip install onnxruntime-gpu`, or take another reward.backend"
            )
        place = {"device_id": device.index or 0, "user_compute_stream": str(stream.cuda_stream)}
        providers = [("CUDAExecutionProvider", place)]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the library raises nothing narrower
        raise RuntimeError(f"onnxruntime: cannot open {path}: {one_line(error)}") from None


def check_inputs(
    spec: GraphSpec, inputs: Mapping[str, Tensor], device: torch.device
) -> dict[str, int]:
    """The size of every named axis. ValueError says which input has which wrong dtype, rank, size or place."""
    if set(inputs) != set(spec.inputs):
        raise ValueError(f"{spec.name}: want inputs {sorted(spec.inputs)}, got {sorted(inputs)}")
    axes: dict[str, int] = {}
    for name, port in spec.inputs.items():
        tensor, where = inputs[name], f"{spec.name}: input {name}"
        if tensor.dtype != torch_dtype(port):
            raise ValueError(f"{where}: want dtype torch.{port.dtype}, got {tensor.dtype}")
        if tensor.device.type != device.type:
            raise ValueError(f"{where}: want a tensor on {device}, got one on {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{where}: want a contiguous tensor, got strides {tensor.stride()}")
        shape = tuple(tensor.shape)
        for axis, size in zip(port.shape, shape, strict=False):
            if isinstance(axis, str):
                axes.setdefault(axis, size)
        if len(shape) != len(port.shape) or shape != resolved(port, axes):
            raise ValueError(f"{where}: want shape {list(port.shape)}, got {list(shape)}")
    return axes


def resolved(port: Port, axes: Mapping[str, int]) -> tuple[int, ...]:
    """A port's shape with its axes filled in."""
    return tuple(axis if isinstance(axis, int) else axes[axis] for axis in port.shape)


def torch_dtype(port: Port) -> torch.dtype:
    return getattr(torch, port.dtype)


def one_line(error: BaseException) -> str:
    """The beginning of a message, without its line ends."""
    return " ".join(str(error).split())[:SHOWN]
