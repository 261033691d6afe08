"""The parts of an architecture as values: blocks, tensor names, work, and owned tensor parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prenas.families.base import Box, Shape, StageNames, TensorRole, Work
from prenas.families.mobilenet.arch import Activation, MobileNetArch, MobileNetSettings, rounded


class BlockSpec(NamedTuple):
    """Everything that determines the tensors and the work of one block, in any network."""

    stage: int
    """Counts from 1; the stem is stage 0."""
    block: int
    in_width: int
    hidden: int
    out_width: int
    kernel: int
    stride: int
    se: bool
    act: Activation
    expansion: bool
    shortcut: str
    """`none`, `identity`, `pool`, `project` or `pool and project`."""

    @property
    def layer(self) -> str:
        """The prefix of its parameter names."""
        return f"blocks.{self.stage - 1}.{self.block}."


def block_specs(arch: MobileNetArch, settings: MobileNetSettings) -> Iterator[BlockSpec]:
    """All blocks of a network, from the input on."""
    for number, stage in enumerate(arch.stages):
        for block in range(stage.depth):
            in_width = stage.width if block else arch.widths[number]
            stride = 1 if block else stage.stride
            yield BlockSpec(
                stage=number + 1,
                block=block,
                in_width=in_width,
                hidden=stage.hidden(block, in_width),
                out_width=stage.width,
                kernel=stage.kernel[block],
                stride=stride,
                se=stage.se,
                act=stage.act,
                expansion=stage.expansion,
                shortcut=_shortcut(stride, in_width != stage.width, settings.shortcut),
            )


def _shortcut(stride: int, projects: bool, kind: str) -> str:
    if kind == "identity":
        return "none" if stride > 1 or projects else "identity"
    parts = ["pool"] * (stride > 1) + ["project"] * projects
    return " and ".join(parts) or "identity"


def stage_names(arch: MobileNetArch) -> list[StageNames]:
    """Prefixes of the stem, every stage and the head; the head has every other name."""
    stages = (
        StageNames([f"blocks.{number}.{block}." for block in range(stage.depth)])
        for number, stage in enumerate(arch.stages)
    )
    return [StageNames(others=["conv_stem.", "bn1."]), *stages, StageNames()]


def drop_path_rates(arch: MobileNetArch, rate: float) -> tuple[float, ...]:
    """`rate * i / blocks` for block i of the last two stages, 0 before (as in AttentiveNAS)."""
    num_blocks = arch.num_layers
    first = num_blocks - sum(stage.depth for stage in arch.stages[-2:])
    return tuple(
        rate * block / num_blocks if block >= first else 0.0 for block in range(num_blocks)
    )


def owned_box(name: str, shape: Shape, full: Shape) -> Box:
    """The leading channels of a tensor, and the centre of its kernels."""
    if len(shape) != 4:
        return tuple(slice(0, size) for size in shape)
    starts = (0, 0, (full[2] - shape[2]) // 2, (full[3] - shape[3]) // 2)
    return tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))


def work(arch: MobileNetArch, settings: MobileNetSettings) -> list[Work]:
    """Multiply-accumulates per image, without normalisation, activations, pooling and sums."""
    side = arch.resolution
    sides = settings.image_size if side is None else (side, side)
    height, width = (-(-one // settings.stem_stride) for one in sides)
    parts = [
        Work(TensorRole(0, None), 9 * settings.in_chans * arch.stem * height * width),
    ]
    for spec in block_specs(arch, settings):
        before = height * width
        height, width = (-(-one // spec.stride) for one in (height, width))
        after = height * width
        macs = spec.hidden * spec.kernel**2 * after + spec.hidden * spec.out_width * after
        if spec.expansion:
            macs += spec.in_width * spec.hidden * before
        if spec.se:
            macs += 2 * spec.hidden * rounded(spec.hidden * 0.25)
        if "project" in spec.shortcut:
            macs += spec.in_width * spec.out_width * after
        parts.append(Work(TensorRole(spec.stage, spec.block), macs))
    last = int(arch.widths[-1] * settings.head_expand)
    head = arch.widths[-1] * last * height * width
    head += last * arch.head + arch.head * settings.num_classes
    return [*parts, Work(TensorRole(len(arch.stages) + 1, None), head)]
