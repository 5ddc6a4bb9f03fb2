"""A graph in ONNX Runtime, with inputs and outputs in memory that the caller owns."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}
EXTRA = "anyformer[engine]"


def check_installed() -> None:
    """Raises ImportError, with the command that helps, unless ONNX Runtime and the packages that write graphs are
    there."""
    for name in ("onnxruntime", "onnx", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'engine="onnx" needs {name}, which cannot be imported ({error}): pip install "{EXTRA}"; or leave '
                "the engine out (engine=None)"
            ) from error


class Program:
    """A graph, ready to run.

    Args:
        threads: of its operators; 1 leaves all work to the caller's thread.

    Attributes:
        inputs: the names that the graph reads; others were not needed.
    """

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.force_spinning_stop", "1")  # no thread waits busily between calls
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.outputs = {value.name for value in self.session.get_outputs()}
        self.width = self.session.get_outputs()[0].shape[-1]  # of the scores
        self._binding = self.session.io_binding()
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._lock = threading.Lock()
        self._some = torch.zeros(1)  # for tensors without memory

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Computes; results are written into the tensors `outputs`, which can be those of inputs."""
        with self._lock:
            for name, tensor in inputs.items():
                if name in self.inputs:
                    self._bind(name, tensor, self._binding.bind_input)
            for name, tensor in outputs.items():
                if name in self.outputs:
                    self._bind(name, tensor, self._binding.bind_output)
            self.session.run_with_iobinding(self._binding)

    def _bind(self, name: str, tensor: Tensor, bind: object) -> None:
        assert tensor.is_contiguous(), name
        place = tensor.data_ptr() or self._some.data_ptr(), tuple(tensor.shape)
        if self._bound.get(name) != place:
            bind(name, "cpu", 0, TYPES[tensor.dtype], list(tensor.shape), place[0])  # type: ignore[operator]
            self._bound[name] = place
