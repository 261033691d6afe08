"""ExecuTorch programs, run on the processor by the kernels of XNNPACK."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prenas.devices.formats import Format, Pixels, Plan, Runner, Written, quiet
from prenas.families.lookup import with_flat_lookups

_LOGGERS = ("torch.utils._pytree",)


def write(network: nn.Module, images: Tensor, path: Path, plan: Plan) -> None:
    """Writes a network as an ExecuTorch program for as many images as there are here.

    Raises:
        ValueError: ExecuTorch has no kernel for something that the network computes.
    """
    with quiet(*_LOGGERS):
        _save(_exported(network, images), path)


def _exported(network: nn.Module, images: Tensor) -> ExportedProgram:
    """The network as a graph that leaves the layout of tensors to the engine.

    With the layouts that are fast in PyTorch, XNNPACK refuses some of the shapes at run time.
    """
    program = torch.export.export(with_flat_lookups(network), (images,))
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten.contiguous.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _save(program: ExportedProgram, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass
    from torch._export.verifier import SpecViolationError

    # What depends on weights alone is computed here: the engine lacks some of its operators.
    program = constant_prop_pass(program.run_decompositions({}), _stored_as_int8(program))
    try:
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    except SpecViolationError as error:
        raise ValueError(
            f"ExecuTorch cannot run this network: {' '.join(str(error).split())[:120]} ... "
            "Nothing was kept: try another --format"
        ) from error
    with path.open("wb") as file:
        lowered.to_executorch().write_to_file(file)


def _stored_as_int8(program: ExportedProgram) -> set[Any]:
    """Operators that turn int8 weights into floats, which the engine does as it computes."""
    calls = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return {target for target in calls if "dequantize" in str(target)}


def open_program(path: Path, threads: int) -> Runner:
    """Loads a program into ExecuTorch.

    Raises:
        ValueError: from the runner, if the engine cannot run the program.
    """
    with quiet(*_LOGGERS):
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

    with _without_stderr():
        _unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")

    def run(images: Pixels) -> Pixels:
        try:
            (logits,) = method.execute([torch.from_numpy(images)])
        except RuntimeError as error:
            raise ValueError(
                f"ExecuTorch cannot run {path.name} on images of shape {images.shape}: {error}"
            ) from error
        return logits.numpy().copy()  # type: ignore[no-any-return]

    return run


def _quantize_static(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
    """Weights and activations as int8, the latter in ranges seen on calibration images."""
    with quiet(*_LOGGERS):
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        settings = get_symmetric_quantization_config(is_per_channel=True)
        module = _exported(source.network, source.images).module()
        observed = prepare_pt2e(module, XNNPACKQuantizer().set_global(settings))
        with torch.no_grad():
            for images in batches():
                observed(torch.from_numpy(images))
        _save(torch.export.export(convert_pt2e(observed), (source.images,)), to)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keeps what the engine writes about the processor, past Python, away from the user."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


FORMAT = Format(
    name="executorch",
    file="model.pte",
    engine="executorch",
    extra="executorch",
    modules=("executorch", "torchao"),
    write=write,
    open=open_program,
    quantizers={"static": _quantize_static},
    takes_any_number=False,
)
