"""Inference: specialised networks compared with timm's, eager and as a CUDA graph."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.gpu.clock import Work
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import captured
from benchmarks.networks import some_images
from benchmarks.paired import Section
from prenas.evaluation.accuracy import evaluate_networks
from prenas.families import build, family_of
from prenas.precision import Precision
from prenas.randomness import torch_generator


def measure(sizes: Sizes, device: torch.device) -> Section:
    """Inference at all batch sizes."""
    found = Findings("Inference, bf16", device, sizes)
    ours = build(sizes.vit.archs[0], sizes.vit.settings)
    family_of(sizes.vit.archs[0]).initialize(ours, torch_generator(0, "weights"))
    networks = {"ours": ours, "timm": sizes.rival(0.0)}
    for network in networks.values():
        network.to(device).eval()
    for size in sizes.inference_batches:
        images = some_images(size, sizes.vit.settings)[0].to(device)
        works: dict[str, Work] = {}
        for name, network in networks.items():
            eager = partial(_applied, network, images)
            works[name] = eager
            graph = found.attempt(f"{name}, batch {size}, graph", partial(captured, eager))
            if graph is not None:
                works[f"{name}, graph"] = graph
        what = f"inference, batch {size}"
        times = found.times(what, works)
        for suffix in ("", ", graph"):
            if f"ours{suffix}" in times and f"timm{suffix}" in times:
                found.compare(
                    f"{what}{suffix}: ours / timm",
                    times[f"ours{suffix}"],
                    times[f"timm{suffix}"],
                    target=1.3,
                    limit="1.1",
                )
        for name in networks:
            found.kernels(f"{what}, {name}", works[name])
    return found.section()


def evaluation(sizes: Sizes, device: torch.device) -> Section:
    """Validation of cut networks on images in memory, at the precisions of a training."""
    found = Findings("Validation during a training", device, sizes)
    subject, size = sizes.vit, sizes.inference_batches[-1]
    images = TensorDataset(*some_images(2 * size, subject.settings))
    network = build(subject.archs[0], subject.settings).to(device).eval()
    family_of(subject.archs[0]).initialize(network, torch_generator(0, "weights"))
    names: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    works: dict[str, Work] = {
        name: partial(
            evaluate_networks,
            [network],
            images,
            subject.settings,
            batch_size=size,
            precision=name,
        )
        for name in names
    }
    what = f"validation in batches of {size}"
    times = found.times(what, works, sizes.plan.fewer(4))
    for name in names[1:]:
        found.compare(f"{what}: {name} / fp32", times[name], times["fp32"])
    return found.section()


@torch.no_grad()
def _applied(network: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        logits: Tensor = network(images)
    return logits
