"""ONNX files, run by ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prenas.devices.formats import INPUT, OUTPUT, Format, Pixels, Plan, Runner, Written, quiet

OPSETS = range(18, 24)
"""Versions of the operators that PyTorch's exporter writes and ONNX Runtime runs."""
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_ROOT = "root"  # the logger that ONNX Runtime's quantisation uses


def write(network: nn.Module, images: Tensor, path: Path, plan: Plan) -> None:
    """Writes a network as ONNX.

    Raises:
        ValueError: the version of the operators is not supported.
    """
    if plan.opset is not None and plan.opset not in OPSETS:
        raise ValueError(
            f"opset {plan.opset} is not supported: choose {OPSETS[0]} to {OPSETS[-1]}, or leave it "
            "out"
        )
    shapes = None if plan.batch else ({0: torch.export.Dim("batch", min=1)},)
    with quiet(*_LOGGERS):
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=plan.opset,
            verbose=False,
        )
    assert program is not None, "the exporter that is asked for returns a program"
    _save(program.model_proto, path)


def _save(model: Any, path: Path) -> None:
    """Writes a model without what the exporter notes about every node, which nothing reads."""
    import onnx

    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def open_session(path: Path, threads: int) -> Runner:
    """Loads a file into ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Pixels) -> Pixels:
        (logits,) = session.run([OUTPUT], {INPUT: images})
        return logits  # type: ignore[no-any-return]

    return run


def _quantize_dynamic(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
    """Weights of matrix products as int8; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(*_LOGGERS, _ROOT):
        quantize_dynamic(
            source.path,
            to,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )


def _quantize_static(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
    """Weights and activations as int8, the latter in ranges seen on calibration images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches())

        def get_next(self) -> dict[str, Pixels] | None:
            images = next(self.left, None)
            return None if images is None else {INPUT: images}

    prepared = to.with_name("prepared.onnx")
    with quiet(*_LOGGERS, _ROOT):
        quant_pre_process(source.path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            to,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=[] if source.is_layer else _until_first_convolution(prepared),
        )
    prepared.unlink()


def _until_first_convolution(path: Path) -> list[str]:
    """Names of the nodes that stay in float32: they have few weights, and lose most accuracy.

    Everything later computes with what they round. Empty without a convolution.
    """
    import onnx

    nodes = onnx.load(path).graph.node
    places = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
    return [node.name for node in nodes[: places[0] + 1]] if places else []


FORMAT = Format(
    name="onnx",
    file="model.onnx",
    engine="onnxruntime",
    extra="onnx",
    modules=("onnx", "onnxscript", "onnxruntime"),
    write=write,
    open=open_session,
    quantizers={"dynamic": _quantize_dynamic, "static": _quantize_static},
    takes_opset=True,
)
