"""The cost of relative positions: time and memory of training steps, and inference, at 224 px.

Compares three forms of attention in the published subnet of 6.0 M parameters at batch 32, bfloat16
with float32, and inference with timm's models of about the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.networks import (
    PlainStep,
    fused,
    in_literal_form,
    published,
    some_images,
    without_relative_positions,
)
from benchmarks.paired import Options, Ratio, Section, medians, peak_bytes, ratio, take_turns

_BATCH = 32
_NEAREST = ("deit_tiny_patch16_224", "vit_tiny_patch16_224")


def measure(options: Options) -> Section:
    arch, settings = published(0)
    images, labels = some_images(_BATCH, settings)
    forms = {
        "fused": fused(arch, settings),
        "none": without_relative_positions(arch, settings),
        "literal": in_literal_form(arch, settings),
    }
    steps = {name: PlainStep(network, images, labels) for name, network in forms.items()}
    halves = {
        f"{name} bf16": PlainStep(forms[name], images, labels, torch.bfloat16)
        for name in ("fused", "none")
    }
    trained = take_turns({**steps, **halves}, options.rounds)
    memory = {
        name: step.state_bytes + peak_bytes(step)
        for name, step in [*steps.items(), *halves.items()]
    }
    applied = take_turns(_inference(forms, images), options.rounds)
    ratios = [
        ratio(
            "training step, fused / no relative positions",
            trained["fused"],
            trained["none"],
            target=1.15,
        ),
        _exactly(
            "peak memory of a training step, fused / no relative positions",
            memory["fused"] / memory["none"],
            target=1.10,
        ),
        ratio("training step, fused / literal", trained["fused"], trained["literal"]),
        ratio(
            "training step, no relative positions / literal", trained["none"], trained["literal"]
        ),
        _exactly(
            "peak memory of a training step, fused / literal", memory["fused"] / memory["literal"]
        ),
        ratio(
            "inference, specialised / no relative positions",
            applied["fused"],
            applied["none"],
            target=1.15,
        ),
        ratio("inference, specialised / literal", applied["fused"], applied["literal"]),
        ratio(
            "training step, bf16 / float32", trained["fused bf16"], trained["fused"], target=0.70
        ),
        ratio(
            "training step in bf16, fused / no relative positions",
            trained["fused bf16"],
            trained["none bf16"],
        ),
        *(
            ratio(f"inference, specialised / {name}", applied["fused"], applied[name])
            for name in _NEAREST
        ),
    ]
    facts: dict[str, Any] = {
        "subnet": arch.summary,
        "batch": _BATCH,
        **{f"training step, {name}": value for name, value in medians(trained).items()},
        **{f"inference, {name}": value for name, value in medians(applied).items()},
        **{f"peak memory, {name}, MB": size / 1e6 for name, size in memory.items()},
    }
    return Section("Relative positions, 6.0 M parameters, 224 px", tuple(ratios), facts)


def _inference(
    forms: dict[str, nn.Module], images: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    import timm

    networks = forms | {name: timm.create_model(name) for name in _NEAREST}

    def applied(network: nn.Module) -> Callable[[], torch.Tensor]:
        network.eval()
        return torch.inference_mode()(lambda: network(images))

    return {name: applied(network) for name, network in networks.items()}


def _exactly(what: str, value: float, target: float | None = None) -> Ratio:
    """A ratio of counts, which is the same in every round."""
    return Ratio(what, value, (value, value), target)
