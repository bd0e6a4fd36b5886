"""Engines: ways to run a frozen backbone. They differ in speed and in the last digits; `extract.fidelity` picks one."""

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from common.machine import fast_bfloat16
from extract.backbones import Backbone

PRODUCTS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")  # what OpenVINO calls such layers


class NotHere(Exception):
    """This machine cannot run such an engine, or would compute in another arithmetic than its name says."""


@dataclass(frozen=True)
class Arithmetic:
    """A network in one or two parts that follow each other: (module, whether its products are of bfloat16 numbers).

    `name` is what a store says about it.
    """

    name: str
    parts: tuple[tuple[nn.Module, bool], ...]

    @property
    def precision(self) -> str:
        """The lowest precision in it: "float32" or "bfloat16"."""
        return "bfloat16" if any(low for _, low in self.parts) else "float32"


class Engine(Protocol):
    """A frozen network on a device. `name` says all that decides over the last digits, and only what is executed.

    precision: the lowest one of its products, "float32" or "bfloat16".
    """

    name: str
    precision: str

    def upload(self, images: Tensor) -> Any:
        """Bring preprocessed images (B, 3, H, W) float32 to the device; called in a reading thread, ahead of time."""

    def features(self, images: Any) -> np.ndarray:
        """What `upload` returned → features (B, D) float32."""


class TorchEngine:
    """PyTorch, eager, channels last, bfloat16 by autocast. In float32 it is the reference."""

    def __init__(self, arithmetic: Arithmetic, device: torch.device):
        self.name = f"torch {arithmetic.name}"
        self.precision = arithmetic.precision
        self.device = device
        self._parts = [
            (module.to(device).to(memory_format=torch.channels_last), low)  # type: ignore[call-overload]
            for module, low in arithmetic.parts
        ]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, images: Tensor) -> Tensor:
        if self._copies is None:
            return images.to(self.device, memory_format=torch.channels_last)
        # From pinned memory and on a stream of its own, the copy runs beside the work on the batch before
        with torch.cuda.stream(self._copies):
            uploaded = images.pin_memory().to(self.device, non_blocking=True).to(memory_format=torch.channels_last)
        self._copies.synchronize()
        return uploaded

    def features(self, images: Tensor) -> np.ndarray:
        # TF32 would make "float32" mean less on a recent GPU than the store says
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            for module, low in self._parts:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                    images = module(images)
            return images.flatten(1).float().cpu().numpy()


class OpenVinoEngine:
    """Intel's OpenVINO on the CPU: fused layers, Winograd convolutions, bfloat16 where the CPU has it.

    Raises NotHere where it would compute in another precision than `arithmetic` asks for: it does so without a word.
    """

    CHUNK = 16  # images at a time: their activations stay in the cache

    def __init__(self, arithmetic: Arithmetic, image_size: int, threads: int | None = None):
        self.name = f"openvino {arithmetic.name}"
        self.precision = arithmetic.precision
        self._requests = []
        example = torch.zeros(self.CHUNK, 3, image_size, image_size)
        for module, low in arithmetic.parts:
            compiled = _compile(module, example, low, threads)
            executed = _executed_precisions(compiled)
            if executed - {"f32", "bf16"} or ("bf16" in executed) != low:
                raise NotHere(f"{self.name} computes in {', '.join(sorted(executed))} on this machine")
            self._requests.append(compiled.create_infer_request())
            with torch.inference_mode():
                example = module(example)

    def upload(self, images: Tensor) -> np.ndarray:
        return images.numpy()

    def features(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self._chunk(images[i : i + self.CHUNK]) for i in range(0, len(images), self.CHUNK)])

    def _chunk(self, images: np.ndarray) -> np.ndarray:
        n = len(images)
        x = images if n == self.CHUNK else np.resize(images, (self.CHUNK, *images.shape[1:]))  # fixed shapes are faster
        for request in self._requests:
            request.infer({0: x}, share_inputs=True)
            x = request.get_output_tensor(0).data
        return x[:n].reshape(n, -1).copy()


def _compile(module: nn.Module, example: Tensor, low: bool, threads: int | None) -> Any:
    """An OpenVINO model of the example's shape. Raises NotHere where OpenVINO cannot run it."""
    import openvino

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the tracer: branches that depend on the shape, which is fixed
        model = openvino.convert_model(module, example_input=example)
        model.reshape(list(example.shape))
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if low else "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        return openvino.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise NotHere(f"OpenVINO cannot run the network on this machine: {reason}") from error


def _executed_precisions(compiled: Any) -> set[str]:
    """The precisions, such as "bf16", of the products in a compiled OpenVINO model, as they are executed."""
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    return {layer["runtimePrecision"].astype(str) for layer in layers if layer["layerType"].astype(str) in PRODUCTS}


def available(device: torch.device) -> list[str]:
    """The kinds of engines that can run on a device, what is usually the fastest first."""
    has_openvino = device.type == "cpu" and importlib.util.find_spec("openvino") is not None
    return ["openvino", "torch"] if has_openvino else ["torch"]


def gains_from_bfloat16(kind: str, device: torch.device) -> bool:
    """Whether engines of a kind may be faster in bfloat16 here: torch by a short measurement, OpenVINO by a trial.

    The trial is a single layer, of which OpenVINO is asked in which precision it executes it.
    """
    if kind == "torch":
        return fast_bfloat16(device)
    layer = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)).eval()
    try:
        OpenVinoEngine(Arithmetic("bfloat16", ((layer, True),)), 16)
    except NotHere:
        return False
    return True


def build_engine(
    kind: str, arithmetic: Arithmetic, device: torch.device, image_size: int, threads: int | None = None
) -> Engine:
    """An engine that executes this arithmetic. Raises NotHere where this machine has none.

    threads: of OpenVINO, which does not follow torch's.
    """
    if kind == "openvino":
        return OpenVinoEngine(arithmetic, image_size, threads)
    if arithmetic.precision == "bfloat16" and not fast_bfloat16(device):
        raise NotHere("torch only emulates bfloat16 on this machine")
    return TorchEngine(arithmetic, device)


def float32(backbone: Backbone) -> Arithmetic:
    """The arithmetic of the reference."""
    return Arithmetic("float32", ((backbone.module, False),))


def bfloat16(backbone: Backbone) -> Iterator[Arithmetic]:
    """All of the network in bfloat16, then, for truth at some cost, with ever more of its first layers in float32.

    Errors of the first layers are the ones that grow on the way: of a ResNet18's error, nine tenths come from its stem
    and its first block. The network is cut where all that goes on is one tensor.
    """
    yield Arithmetic("bfloat16", ((backbone.module, True),))
    traced = _traced(backbone.module)
    if traced is None:
        return
    for layers, last in _cuts(traced).items():
        first, rest = _split(traced, last)
        yield Arithmetic(f"bfloat16 after {layers} layers in float32", ((first, False), (rest, True)))


def _traced(module: nn.Module) -> fx.GraphModule | None:
    """The graph of a network; None where its way depends on its input."""
    try:
        return fx.symbolic_trace(module)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return None


def _split(traced: fx.GraphModule, last: fx.Node) -> tuple[nn.Module, nn.Module]:
    """The network up to a node, and the rest; they share its weights."""
    nodes = list(traced.graph.nodes)
    after = nodes.index(last) + 1
    first, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[:after]:
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(copies[last])
    copies = {last: rest.placeholder("x")}
    for node in nodes:
        if node.op == "get_attr" or node in nodes[after:]:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    return fx.GraphModule(traced, first).eval(), fx.GraphModule(traced, rest).eval()


def _cuts(traced: fx.GraphModule) -> dict[int, fx.Node]:
    """For a number of layers with weights, the last node after them whose value is all that later ones use."""
    nodes = list(traced.graph.nodes)
    order = {node: number for number, node in enumerate(nodes)}
    last_use = [max((order[user] for user in node.users), default=-1) for node in nodes]
    found, layers = {}, 0
    for number, node in enumerate(nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Conv2d | nn.Linear):
            layers += 1
        in_use = [n for n in range(number + 1) if last_use[n] > number and nodes[n].op != "get_attr"]
        if layers and in_use == [number]:
            found[layers] = node
    found.pop(layers, None)  # a cut behind the last layer leaves nothing
    return found
