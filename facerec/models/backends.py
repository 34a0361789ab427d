"""What runs a network fast: torch, OpenVINO or ONNX Runtime, behind one call.

InceptionResnetV1 at 224 pixels on one core with bf16: torch with BatchNorm folded and channels last is 2.5 to 3.5 times as
fast as eager fp32, OpenVINO 3 to 5 times, by how much faster than fp32 the core multiplies in bf16. Shapes are few and
fixed, as a shape seen for the first time costs more than running it: callers pad.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from facerec.errors import ConfigError
from facerec.models.device import on_device
from facerec.models.embedder import Embedder
from facerec.models.engine import installed, openvino
from facerec.models.images import normalize
from facerec.models.precision import full_or_half

Backend = Literal["auto", "torch", "openvino"]
Pixels = NDArray[np.uint8]


class Network(Protocol):
    """A network on some backend."""

    def __call__(self, pixels: Pixels) -> Tensor:
        """Unit vectors, float32 [n, 128], of RGB uint8 [n, side, side, 3]; on a GPU they may still be on their way."""


def settled_backend(backend: Backend, gpu: bool) -> str:
    """torch or openvino: ``auto`` is OpenVINO on the CPU where it is installed. Raises ConfigError where it is not."""
    if backend == "openvino" and (gpu or not installed()):
        why = "runs on CPUs only here" if gpu else "is not installed: pip install 'facerec[openvino]'"
        raise ConfigError(f"openvino {why}; or choose --backend torch")
    if backend == "auto":
        return "openvino" if installed() and not gpu else "torch"
    return backend


class FromPixels(nn.Module):
    """The network with normalisation in front: what is handed to other runtimes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors, float32 [n, 128], of RGB uint8 [n, side, side, 3]."""
        vectors: Tensor = self.model(normalize(pixels))
        return vectors


def folded(model: Embedder) -> nn.Module:
    """The model in eval mode with each BatchNorm folded into the convolution before it, and its own weights untouched.

    A network whose Python branches on its data cannot be taken apart; it stays as it is, and only loses speed.
    """
    try:
        fast: nn.Module = fuse(model)
    except TraceError:
        return model.eval()
    return fast.eval()


class TorchNetwork:
    """On the CPU or a GPU by torch."""

    def __init__(self, model: Embedder, precision: str, device: str = "cpu") -> None:
        self._device, self._precision = torch.device(device), precision
        self._model = FromPixels(folded(model)).to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Tensor:
        """See :class:`Network`. A GPU is handed the batch from pinned memory and not waited for."""
        batch = on_device(pixels, self._device)
        with full_or_half(self._device, self._precision):
            vectors: Tensor = self._model(batch)
        return vectors


class OpenVinoNetwork:
    """On the CPU by OpenVINO, one thread, pinned to no core: actors of one machine would share the first.

    bf16 is a hint: a CPU without the instructions computes in fp32.
    """

    def __init__(self, model: Embedder, side: int, precision: str) -> None:
        self._ov = openvino()
        self._core = self._ov.Core()
        self._hint = {"bf16": "bf16", "fp32": "f32"}[precision]
        example = torch.zeros(
            2, side, side, 3, dtype=torch.uint8
        )  # a batch of one would be taken for a constant
        sizes = {"pixels": {0: torch.export.Dim("n")}}
        program = torch.export.export(FromPixels(folded(model)).eval(), (example,), dynamic_shapes=sizes)
        self._graph = self._ov.convert_model(program)
        self._requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, pixels: Pixels) -> Tensor:
        """See :class:`Network`."""
        if pixels.shape not in self._requests:
            self._requests[pixels.shape] = self._compiled(pixels.shape).create_infer_request()
        request = self._requests[pixels.shape]
        request.set_input_tensor(0, self._ov.Tensor(pixels, shared_memory=True))
        request.infer()
        return torch.from_numpy(request.output_tensors[0].data.copy())

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        graph = self._graph.clone()
        graph.reshape(list(shape))
        options = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": self._hint,
        }
        return self._core.compile_model(graph, "CPU", options)


class OnnxNetwork:
    """An exported file, on the CPU by ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, pixels: Pixels) -> Tensor:
        """See :class:`Network`."""
        return torch.from_numpy(self._session.run(None, {"pixels": pixels})[0])
