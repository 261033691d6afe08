"""OpenVINO's files, run by OpenVINO on the processor."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prenas.devices import onnx_format
from prenas.devices.formats import INPUT, Format, Pixels, Plan, Runner, Written
from prenas.families.lookup import with_flat_lookups

_PASSING = "passing.onnx"


def write(network: nn.Module, images: Tensor, path: Path, plan: Plan) -> None:
    """Writes a network as OpenVINO's graph and weights, by way of ONNX."""
    passing = path.with_name(_PASSING)
    onnx_format.write(with_flat_lookups(network), images, passing, plan)
    _convert(passing, path)


def write_layers(
    layers: Sequence[tuple[nn.Module, Tensor]], paths: Sequence[Path], plan: Plan
) -> None:
    """The same for layers that take one tensor each."""
    passing = [path.with_name(f"{path.stem}-{_PASSING}") for path in paths]
    flat = [(with_flat_lookups(module), example) for module, example in layers]
    onnx_format.write_layers(flat, passing, plan)
    for one, path in zip(passing, paths, strict=True):
        _convert(one, path)


def _convert(passing: Path, path: Path) -> None:
    """Converts a file of ONNX, and removes it."""
    openvino = _openvino()
    # What it converts, unlike what it reads, has plain biases and clamps, which int8 needs.
    with _without_telemetry():
        model = openvino.convert_model(passing)
    openvino.save_model(model, path, compress_to_fp16=False)
    passing.unlink()


def open_model(path: Path, threads: int) -> Runner:
    """Loads a file into OpenVINO, which computes in float32 where the file has floats."""
    openvino = _openvino()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # by default bfloat16, where the processor has it
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)
    request = compiled.create_infer_request()

    def run(images: Pixels) -> Pixels:
        found = request.infer({INPUT: images})
        return found[compiled.output(0)].copy()  # type: ignore[no-any-return]

    return run


def _quantize_static(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
    """Weights and activations as int8, the latter in ranges seen on calibration images."""
    import nncf

    images = [image[None] for batch in batches() for image in batch]

    def quantized(model: Any) -> Any:
        shape = model.input(0).partial_shape
        # With any number of images, its result is wrong, and nothing says so.
        model.reshape([1, *images[0].shape[1:]])
        found = nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=_model_type(model),
            ignored_scope=nncf.IgnoredScope(
                names=[] if source.is_layer else _first_convolution(model)
            ),
        )
        found.reshape(shape)
        return found

    _rewritten(source.path, to, quantized)


def _first_convolution(model: Any) -> list[str]:
    """Its name: it stays in float32, as in ONNX. Empty without a convolution."""
    kinds = ("Convolution", "GroupConvolution")
    names = [
        one.get_friendly_name() for one in model.get_ordered_ops() if one.get_type_name() in kinds
    ]
    return names[:1]


def _model_type(model: Any) -> Any:
    """Attention needs more care than convolutions."""
    import nncf

    kinds = {node.get_type_name() for node in model.get_ordered_ops()}
    return nncf.ModelType.TRANSFORMER if {"Softmax", "ScaledDotProductAttention"} & kinds else None


def _compress_weights(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
    """Weights as int8; computes with floats."""
    import nncf

    def compressed(model: Any) -> Any:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)

    _rewritten(source.path, to, compressed)


def _rewritten(path: Path, to: Path, change: Callable[[Any], Any]) -> None:
    openvino = _openvino()
    with _without_telemetry():
        import_module("nncf")  # sets its level
        # Its own `set_log_level` also changes handlers that belong to others.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = change(openvino.Core().read_model(path))
    openvino.save_model(model, to, compress_to_fp16=False)


def _openvino() -> Any:
    with _without_telemetry():
        import openvino
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keeps OpenVINO, when it is imported, from writing into the home folder and calling home.

    It does neither on machines for continuous integration.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


FORMAT = Format(
    name="openvino",
    file="model.xml",
    engine="openvino",
    extra="openvino",
    modules=("onnx", "onnxscript", "openvino", "nncf"),
    write=write,
    write_layers=write_layers,
    open=open_model,
    quantizers={"static": _quantize_static, "weight": _compress_weights},
    takes_opset=True,
)
