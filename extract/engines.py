"""Engines run a frozen backbone; they differ in speed and in the last digits. And the choice of an engine.

The rule of the choice is stable under noise: OpenVINO before torch, bfloat16 only where it is clearly faster.
"""

import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.machine import fast_bfloat16, versions
from extract.backbones import Backbone

MIN_COSINE = 0.9999
MAX_ERROR = {"float32": 1e-5, "bfloat16": float("inf")}
MARGIN = 1.3  # times the speed of float32, which bfloat16 must reach; more than the noise of a busy machine
MAX_TRIES = 4
TIMED_IMAGES = 32
SAMPLE = 160  # images, by which an engine is chosen
MIN_GAIN = 20  # times the sample: for fewer images, choosing an engine takes longer than it saves
PRODUCTS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")  # what OpenVINO calls such layers


class NotHere(Exception):
    """This machine cannot run an engine, or would compute in another precision than the engine's name says."""


@dataclass(frozen=True)
class Arithmetic:
    """A network in one or two consecutive parts: (module, whether it multiplies in bfloat16)."""

    name: str
    parts: tuple[tuple[nn.Module, bool], ...]

    @property
    def precision(self) -> str:
        """The lowest precision in it: "float32" or "bfloat16"."""
        return "bfloat16" if any(low for _, low in self.parts) else "float32"


class TorchEngine:
    """PyTorch, eager, channels last, bfloat16 by autocast. In float32 it is the reference.

    name: the engine and the executed arithmetic. precision: the lowest one of its products, "float32" or "bfloat16".
    """

    def __init__(self, arithmetic: Arithmetic, device: torch.device):
        self.name, self.precision = f"torch {arithmetic.name}", arithmetic.precision
        self.device = device
        self._parts = [
            (module.to(device).to(memory_format=torch.channels_last), low)  # type: ignore[call-overload]
            for module, low in arithmetic.parts
        ]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, images: Tensor) -> Tensor:
        """Bring preprocessed images (B, 3, H, W) float32 to the device; called early, by a reading thread."""
        if self._copies is None:
            return images.to(self.device, memory_format=torch.channels_last)
        # From pinned memory and on its own stream, the copy runs while the batch before is computed
        with torch.cuda.stream(self._copies):
            uploaded = images.pin_memory().to(self.device, non_blocking=True).to(memory_format=torch.channels_last)
        self._copies.synchronize()
        return uploaded

    def features(self, images: Any) -> np.ndarray:
        """What `upload` returned → features (B, D) float32."""
        # With TF32, a recent GPU would be less exact than the "float32" of the store says
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            for module, low in self._parts:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                    images = module(images)
            return images.flatten(1).float().cpu().numpy()


class OpenVinoEngine:
    """Intel's OpenVINO on the CPU: fused layers, Winograd convolutions, bfloat16 where the CPU has it.

    Raises NotHere where it would compute in another precision than that of `arithmetic`, which it does silently.
    """

    CHUNK = 16  # images at a time: their activations stay in the cache

    def __init__(self, arithmetic: Arithmetic, image_size: int, threads: int | None = None):
        self.name, self.precision = f"openvino {arithmetic.name}", arithmetic.precision
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

    def features(self, images: Any) -> np.ndarray:
        return np.concatenate([self._chunk(images[i : i + self.CHUNK]) for i in range(0, len(images), self.CHUNK)])

    def _chunk(self, images: np.ndarray) -> np.ndarray:
        n = len(images)
        x = images if n == self.CHUNK else np.resize(images, (self.CHUNK, *images.shape[1:]))  # fixed shapes are faster
        for request in self._requests:
            request.infer({0: x}, share_inputs=True)
            x = request.get_output_tensor(0).data
        return x[:n].reshape(n, -1).copy()


Engine = TorchEngine | OpenVinoEngine


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
    """The kinds of engines that can run on a device, the usually fastest first."""
    has_openvino = device.type == "cpu" and importlib.util.find_spec("openvino") is not None
    return ["openvino", "torch"] if has_openvino else ["torch"]


def gains_from_bfloat16(kind: str, device: torch.device) -> bool:
    """Whether engines of a kind may be faster in bfloat16 here, by a trial with two layers."""
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)).eval()
    try:
        build_engine(kind, Arithmetic("bfloat16", ((layers, True),)), device, 16)
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
    """The whole network in bfloat16; then, slower but more exact, with more and more of its first layers in float32.

    Errors of the first layers grow most: of a ResNet18's error, nine tenths come from its stem and its first block.
    """
    yield Arithmetic("bfloat16", ((backbone.module, True),))
    for layers, first, rest in backbone.splits():
        yield Arithmetic(f"bfloat16 after {layers} layers in float32", ((first, False), (rest, True)))


def measure_fidelity(reference: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """How near features (n, D) are to the reference's, on the same images.

    cosine: with the reference's, the lowest of all images. error: the largest difference, over the largest absolute
    feature.

    >>> features = np.random.default_rng(0).normal(size=(30, 8))
    >>> round(measure_fidelity(features, 2 * features)["cosine"], 6)
    1.0
    """
    a, b = reference.astype(np.float64), features.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return {"cosine": float(cosine.min()), "error": float(np.abs(a - b).max() / np.abs(a).max())}


def suffices(fidelity: dict[str, float], precision: str) -> bool:
    """Whether features are near enough to the reference's to be stored."""
    return fidelity["cosine"] >= MIN_COSINE and fidelity["error"] <= MAX_ERROR[precision]


@dataclass(frozen=True)
class EngineChoice:
    """Finds an engine for a backbone; `wanted` is "auto", "torch" or "openvino".

    precision: "float32"; or "bfloat16", where that is exact enough and faster on this machine.
    Raises UserError when `wanted` cannot be loaded for the device.
    """

    backbone: Backbone
    precision: str
    device: torch.device
    image_size: int
    wanted: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.kinds:
            raise UserError(
                f"the engine {self.wanted} cannot be loaded here on {self.device.type}: install it with "
                f"`pip install {self.wanted}` and use --device cpu, or take --engine torch"
            )

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of engines that are wanted and can run here, the usually fastest first."""
        return [kind for kind in available(self.device) if self.wanted in ("auto", kind)]

    @cached_property
    def low_kinds(self) -> list[str]:
        """Those that may be faster in bfloat16 here; none where only float32 is allowed."""
        return [kind for kind in self.kinds if self.precision != "float32" and gains_from_bfloat16(kind, self.device)]

    def reference(self) -> Engine:
        """PyTorch in float32."""
        return TorchEngine(float32(self.backbone), self.device)

    def named(self, name: str) -> Engine | None:
        """The engine of this name; None where it is not wanted, or this machine cannot run it."""
        kind, _, executed = name.partition(" ")
        if kind in self.kinds:
            for arithmetic in itertools.chain([float32(self.backbone)], self._in_bfloat16()):
                if arithmetic.name == executed:
                    return self._build(kind, arithmetic)
        return None

    def settle(
        self,
        n: int,
        sample: Callable[[], Tensor | None],
        resumed: dict[str, Any],
        tell: Callable[[str], object],
    ) -> tuple[Engine, dict[str, Any]]:
        """The engine for `n` images, and its environment: engine, fidelity, device and versions.

        sample: reads some images; called only where choosing saves time. resumed: the environment of the extraction to
        resume, whose engine is used if possible; {} for none. tell: gets a line for each decision.
        """
        environment: dict[str, Any] = {"device": self.device.type, "versions": versions()}
        if resumed and {**resumed, **environment} == resumed and (engine := self.named(resumed["engine"])):
            return engine, resumed  # another measurement might choose another one
        few = n < MIN_GAIN * SAMPLE and "torch" in self.kinds
        images = None if few else sample()
        engine, fidelity = (self.reference(), {}) if images is None else self.choose(images)
        if self.precision != "float32" and engine.precision == "float32":
            if few:
                tell(f"using float32: for {n:,} images, finding a faster engine takes longer than it saves")
            elif not self.low_kinds:
                tell("using float32: bfloat16 is not faster on this machine")
            else:
                tell("using float32: no bfloat16 engine was both faster and accurate")
        tell(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()))
        return engine, {"engine": engine.name, "fidelity": fidelity, **environment}

    def choose(self, sample: Tensor) -> tuple[Engine, dict[str, Any]]:
        """The engine for images like those of a sample (n, 3, H, W), and its fidelity; {} for the reference.

        In float32, the first kind that is near the reference (`suffices`). In bfloat16, the first that is near, if it
        is `MARGIN` times as fast as that one. No other speed is measured.
        """
        expected = _features(self.reference(), sample)
        in_float32 = ((kind, [float32(self.backbone)]) for kind in self.kinds)
        full = self._first_near(in_float32, sample, expected) or (self.reference(), {})
        low = self._first_near(((kind, self._in_bfloat16()) for kind in self.low_kinds), sample, expected)
        return low if low is not None and _gain(low[0], full[0], sample) >= MARGIN else full

    def _first_near(
        self, tries: Iterable[tuple[str, Iterable[Arithmetic]]], sample: Tensor, expected: np.ndarray
    ) -> tuple[Engine, dict[str, Any]] | None:
        """The first engine that is near the reference, and its fidelity."""
        for kind, arithmetics in tries:
            for arithmetic in arithmetics:
                if (engine := self._build(kind, arithmetic)) is None:
                    break
                fidelity = measure_fidelity(expected, _features(engine, sample))
                if suffices(fidelity, arithmetic.precision):
                    return engine, {} if engine.name == "torch float32" else fidelity
        return None

    def _in_bfloat16(self) -> Iterator[Arithmetic]:  # the fastest first
        return itertools.islice(bfloat16(self.backbone), MAX_TRIES) if self.precision != "float32" else iter(())

    def _build(self, kind: str, arithmetic: Arithmetic) -> Engine | None:
        try:
            return build_engine(kind, arithmetic, self.device, self.image_size, self.threads)
        except NotHere:
            return None


def _features(engine: Engine, images: Tensor) -> np.ndarray:
    """Features (n, D) of the images."""
    return np.concatenate([engine.features(engine.upload(batch)) for batch in images.split(TIMED_IMAGES)])


def _gain(engine: Engine, other: Engine, images: Tensor) -> float:
    """The speed of an engine over that of another.

    They are timed in turn, and the best time of each is used: other work on the machine can only slow them.
    """
    seconds = {id(engine): float("inf"), id(other): float("inf")}
    for batch in images.split(TIMED_IMAGES):
        for candidate in (engine, other):
            started = time.perf_counter()
            candidate.features(candidate.upload(batch))
            seconds[id(candidate)] = min(seconds[id(candidate)], time.perf_counter() - started)
    return seconds[id(other)] / seconds[id(engine)]
