"""P-Net, R-Net and O-Net with facenet-pytorch's weights, in float32, behind one protocol; torch or OpenVINO runs them.

Inputs are float32 [n, side, side, 3] in [-1, 1]. Their shapes are few and fixed, because a shape that is seen for the
first time costs more than running it. ``k`` is the number of canvases in a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch import Tensor, nn

from facerec.alignment.boxes import F32, I64
from facerec.alignment.pyramid import CONVOLVED
from facerec.errors import ConfigError
from facerec.models.device import on_device
from facerec.models.engine import installed, openvino

Backend = Literal["auto", "torch", "openvino"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


@dataclass(frozen=True)
class Sizes:
    """How many inputs a call takes: any of these numbers, in falling order. The last inputs are padded."""

    canvases: tuple[int, ...]
    """For P-Net."""
    crops: tuple[int, ...]
    """For R-Net and O-Net."""


ON_CPU = Sizes((1,), (64, 16))
"""Larger calls gain nothing on a core."""
ON_GPU = Sizes((16, 4), (256, 64))
"""A call is 19 to 26 launches and one wait, whatever its size."""


class Nets(Protocol):
    """The three networks of the cascade."""

    sizes: Sizes

    def propose(self, canvases: F32, seams: I64) -> tuple[F32, F32]:
        """P-Net on [k, CANVAS, CANVAS, 3], k in sizes.canvases.

        Offsets [k, 4, cells, cells] and face probabilities [k, cells, cells]. ``seams`` are places of the first
        convolution's output that pooling must not see, counted canvas by canvas and row by row.
        """

    def refine(self, crops: F32) -> tuple[F32, F32]:
        """R-Net on [n, 24, 24, 3], n in sizes.crops: offsets [n, 4] and face probabilities [n]."""

    def finish(self, crops: F32) -> tuple[F32, F32, F32]:
        """O-Net on [n, 48, 48, 3], n in sizes.crops: offsets [n, 4], landmarks [n, 10] and face probabilities [n]."""


def load(backend: Backend, device: str = "cpu") -> Nets:
    """The networks on a device. ``auto`` takes OpenVINO on the CPU if it is installed.

    Raises ConfigError if OpenVINO is wanted and is not installed, or on a GPU.
    """
    if backend == "openvino" and device != "cpu":
        raise ConfigError(
            f"OpenVINO runs on CPUs only, not on {device}; choose --detection.backend torch or auto"
        )
    if backend == "openvino" and not installed():
        raise ConfigError(
            "openvino is not installed: pip install 'facerec[openvino]', or --detection.backend torch"
        )
    if installed() and (backend == "openvino" or (backend == "auto" and device == "cpu")):
        return OpenVinoNets()
    return TorchNets(device)


class TorchNets:
    """On the CPU, or a GPU, by torch, channels last: a third faster than the reference's layout.

    On a GPU the host waits once a call, for the outputs.
    """

    def __init__(self, device: str = "cpu", sizes: Sizes | None = None) -> None:
        _keep_freed_memory()
        self._device = torch.device(device)
        self.sizes = sizes or (ON_CPU if device == "cpu" else ON_GPU)
        self._p, self._r, self._o = (
            net().eval().to(device, memory_format=torch.channels_last) for net in (PNet, RNet, ONet)
        )

    @torch.inference_mode()
    def propose(self, canvases: F32, seams: I64) -> tuple[F32, F32]:
        """See :class:`Nets`."""
        net = self._p
        with true_float32():
            x = _prelu(net.conv1(self._input(canvases)), net.prelu1)
            places = x.permute(0, 2, 3, 1).contiguous()
            places.view(-1, places.shape[-1]).index_fill_(0, on_device(seams, self._device), -torch.inf)
            x = net.pool1(places.permute(0, 3, 1, 2))
            x = _prelu(net.conv3(_prelu(net.conv2(x), net.prelu2)), net.prelu3)
            offsets, faces = _fetched(net.conv4_2(x), net.conv4_1(x).softmax(dim=1)[:, 1])
        return offsets, faces

    @torch.inference_mode()
    def refine(self, crops: F32) -> tuple[F32, F32]:
        """See :class:`Nets`."""
        with true_float32():
            offsets, faces = self._r(self._input(crops))
            offsets, faces = _fetched(offsets, faces[:, 1])
        return offsets, faces

    @torch.inference_mode()
    def finish(self, crops: F32) -> tuple[F32, F32, F32]:
        """See :class:`Nets`."""
        with true_float32():
            offsets, landmarks, faces = self._o(self._input(crops))
            offsets, landmarks, faces = _fetched(offsets, landmarks, faces[:, 1])
        return offsets, landmarks, faces

    def _input(self, images: F32) -> Tensor:
        return on_device(images, self._device).permute(0, 3, 1, 2)


def true_float32() -> contextlib.AbstractContextManager[None]:
    """Within: cuDNN's convolutions are in true float32, and the same in every run.

    By default they are in TF32, with 10 bits of mantissa, which moves boxes. Matrix products are in float32 by default.
    """
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def _fetched(*outputs: Tensor) -> list[F32]:
    """Outputs [n, ...] on the host, by one copy, for which alone the host waits."""
    shapes = [output.shape for output in outputs]
    packed = _on_host(torch.cat([output.reshape(len(output), -1) for output in outputs], dim=1)).numpy()
    ends = np.cumsum([math.prod(shape[1:]) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(packed, ends, 1), shapes, strict=True)]


def _on_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def _keep_freed_memory() -> None:
    """Let glibc keep what layers free instead of giving it back: P-Net takes 7.8 ms so, and 13.5 without.

    Only up to 128 MB, and photographs' own blocks, above 32 MB, still go back at once (mallopt(3)).
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 128 * 2**20)


def _prelu(x: Tensor, layer: nn.PReLU) -> Tensor:
    return nn.functional.prelu(x, layer.weight)


class OpenVinoNets:
    """On the CPU by OpenVINO, one thread, pinned to no core: else all actors of a machine would share its first core."""

    sizes = ON_CPU

    def __init__(self) -> None:
        self._ov = openvino()
        self._core = self._ov.Core()
        self._requests: dict[tuple[str, int], Any] = {}
        self._masks: dict[int, F32] = {}

    def propose(self, canvases: F32, seams: I64) -> tuple[F32, F32]:
        """See :class:`Nets`."""
        mask = self._mask(len(canvases))
        mask.reshape(-1)[seams] = -np.inf
        offsets, faces = self._run("P", canvases, mask)
        mask.reshape(-1)[seams] = 0
        return offsets, faces[:, 1]

    def _mask(self, k: int) -> F32:
        if k not in self._masks:
            self._masks[k] = np.zeros((k, 1, CONVOLVED, CONVOLVED), np.float32)
        return self._masks[k]

    def refine(self, crops: F32) -> tuple[F32, F32]:
        """See :class:`Nets`."""
        offsets, faces = self._run("R", crops)
        return offsets, faces[:, 1]

    def finish(self, crops: F32) -> tuple[F32, F32, F32]:
        """See :class:`Nets`."""
        offsets, landmarks, faces = self._run("O", crops)
        return offsets, landmarks, faces[:, 1]

    def _run(self, net: str, *inputs: F32) -> list[F32]:
        key = net, len(inputs[0])
        if key not in self._requests:
            self._requests[key] = self._compiled(net, inputs[0].shape).create_infer_request()
        request = self._requests[key]
        for number, values in enumerate(inputs):
            request.set_input_tensor(number, self._ov.Tensor(values, shared_memory=True))
        request.infer()
        return [output.data.copy() for output in request.output_tensors]

    def _compiled(self, net: str, shape: tuple[int, ...]) -> Any:
        options = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return self._core.compile_model(_graph(net, shape), "CPU", options)


_POOLS = {"P": {1: 2}, "R": {1: 3, 2: 3}, "O": {1: 3, 2: 3, 3: 2}}
"""Side of the pooling that follows each convolution; its stride is 2."""


def _graph(net: str, shape: tuple[int, ...]) -> Any:
    """The network as an OpenVINO model, layer by layer from the weights; P-Net takes its mask as second input."""
    library = openvino()
    op = library.opset13
    module = {"P": PNet, "R": RNet, "O": ONet}[net]()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    inputs = [op.parameter(list(shape), np.float32)]
    x = op.transpose(inputs[0], op.constant(np.array([0, 3, 1, 2])))

    def convolution(x: Any, layer: str) -> Any:
        y = op.convolution(x, op.constant(weights[f"{layer}.weight"]), [1, 1], [0, 0], [0, 0], [1, 1])
        return op.add(y, op.constant(weights[f"{layer}.bias"].reshape(1, -1, 1, 1)))

    def dense(x: Any, layer: str) -> Any:
        y = op.matmul(x, op.constant(weights[f"{layer}.weight"]), False, True)
        return op.add(y, op.constant(weights[f"{layer}.bias"]))

    def prelu(x: Any, number: int) -> Any:
        return op.prelu(x, op.constant(weights[f"prelu{number}.weight"]))

    last = {"P": 3, "R": 3, "O": 4}[net]
    for number in range(1, last + 1):
        x = prelu(convolution(x, f"conv{number}"), number)
        if net == "P" and number == 1:
            inputs.append(op.parameter([shape[0], 1, CONVOLVED, CONVOLVED], np.float32))
            x = op.add(x, inputs[1])
        if side := _POOLS[net].get(number):
            x = op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [side, side], "ceil").output(0)
    if net != "P":
        columns_first = op.transpose(x, op.constant(np.array([0, 3, 2, 1])))
        x = dense(op.reshape(columns_first, op.constant(np.array([shape[0], -1])), False), f"dense{last + 1}")
        x = prelu(x, last + 1)
    head = convolution if net == "P" else dense
    names = {"P": ["conv4_2"], "R": ["dense5_2"], "O": ["dense6_2", "dense6_3"]}[net]
    face = {"P": "conv4_1", "R": "dense5_1", "O": "dense6_1"}[net]
    outputs = [head(x, name) for name in names] + [op.softmax(head(x, face), 1)]
    return library.Model([op.result(output) for output in outputs], inputs)
