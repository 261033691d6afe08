"""PyTorch's own exported programs, which run where torch is installed and this package is not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from prenas.devices.formats import Format, Pixels, Plan, Runner, quiet


def write(network: nn.Module, images: Tensor, path: Path, plan: Plan) -> None:
    """Writes a network as an exported program (`torch.export`)."""
    shapes = None if plan.batch else ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    program.example_inputs = None  # would be stored as well
    with quiet():
        torch.export.save(program, path)


def open_program(path: Path, threads: int) -> Runner:
    """Loads an exported program, which runs on as many threads as PyTorch does."""
    network = torch.export.load(path).module()

    def run(images: Pixels) -> Pixels:
        with torch.inference_mode():
            logits: Tensor = network(torch.from_numpy(images))
        return logits.numpy()

    return run


FORMAT = Format(
    name="torch",
    file="model.pt2",
    engine="torch",
    extra="",
    modules=(),
    write=write,
    open=open_program,
    quantizers={},
)
