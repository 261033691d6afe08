"""ONNX files, run by ONNX Runtime on the processor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prenas.devices.formats import INPUT, OUTPUT, Format, Pixels, Plan, Runner, Written, quiet

OPSETS = range(18, 24)
"""Versions of the operators that PyTorch's exporter writes and ONNX Runtime runs."""
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_MOST_BYTES = 2**28  # of the layers that are exported at once
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
    _save(_exported(network, (images,), [INPUT], [OUTPUT], plan, shapes), path)


def write_layers(
    layers: Sequence[tuple[nn.Module, Tensor]], paths: Sequence[Path], plan: Plan
) -> None:
    """Writes layers that take one tensor each, for the shapes of their examples.

    Many are exported as one model, and that is taken apart: starting the exporter takes several
    times as long as what it does for a layer.
    """
    from onnx.utils import Extractor

    start = 0
    while start < len(layers):
        stop = start + _num_together([module for module, _ in layers[start:]])
        modules, examples = zip(*layers[start:stop], strict=True)
        inputs, outputs = ([f"{name}_{n}" for n in range(len(modules))] for name in (INPUT, OUTPUT))
        extractor = Extractor(_exported(_Together(modules), examples, inputs, outputs, plan))
        for path, given, found in zip(paths[start:stop], inputs, outputs, strict=True):
            layer = extractor.extract_model([given], [found])
            _rename(layer, {given: INPUT, found: OUTPUT})
            _save(layer, path)
        start = stop


def _num_together(modules: Sequence[nn.Module]) -> int:
    """How many of the first modules are exported at once: a file of ONNX holds at most 2 GB."""
    sizes = [sum(p.nbytes for p in (*one.parameters(), *one.buffers())) for one in modules]
    return max(1, bisect_right([*accumulate(sizes)], _MOST_BYTES))


class _Together(nn.Module):
    """Modules side by side: as many tensors in as out."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.side_by_side = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The output of every module for its own input."""
        return tuple(one(x) for one, x in zip(self.side_by_side, inputs, strict=True))


def _exported(
    network: nn.Module,
    examples: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    plan: Plan,
    shapes: Any = None,
) -> Any:
    with quiet(*_LOGGERS):
        program = torch.onnx.export(
            network,
            examples,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=plan.opset,
            verbose=False,
        )
    assert program is not None, "the exporter that is asked for returns a program"
    return program.model_proto


def _rename(model: Any, names: Mapping[str, str]) -> None:
    """Gives inputs and outputs of a model other names."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for used in (node.input, node.output):
            used[:] = [names.get(name, name) for name in used]


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
    write_layers=write_layers,
    open=open_session,
    quantizers={"dynamic": _quantize_dynamic, "static": _quantize_static},
    takes_opset=True,
)
