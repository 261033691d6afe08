"""A complete family in one file: residual multilayer perceptrons for small images.

Use it as a template and read it from top to bottom: architectures, their space, the network of one
architecture, its parts, and the `Family` that combines them. docs/extending.md explains each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONS,
    Arch,
    Chain,
    Family,
    LayerAxis,
    Link,
    Links,
    SearchSpace,
    Settings,
    Stage,
    StageNames,
    TensorRole,
    Work,
    check_images,
)
from prenas.values import Value

# --- architectures -------------------------------------------------------------------------------

Size = Annotated[int, Field(ge=1)]


class StageArch(Value):
    """Blocks of one width, each with its own number of hidden units."""

    width: Size
    hidden: tuple[Size, ...] = Field(min_length=1)


class MlpArch(Arch):
    """A linear layer into every stage, residual blocks in it, and a linear classifier."""

    stages: tuple[StageArch, ...] = Field(min_length=1)

    @property
    def links(self) -> Links:
        """The stages, then the classifier, in which nothing is chosen."""
        stages = (Link(one.width, len(one.hidden), {"hidden": one.hidden}) for one in self.stages)
        return (*stages, Link())

    @classmethod
    def from_links(cls, links: Links, resolution: int | None = None) -> Self:
        """The inverse of `links`."""
        return cls.model_validate({"stages": [link.fields for link in links[:-1]]})


# --- the space -----------------------------------------------------------------------------------


class MlpSettings(Settings):
    """What all networks of a space share: images are first averaged over a grid of cells."""

    grid: Size = 8


class StageOptions(Value):
    """The options of one stage, from small to large."""

    width: Annotated[tuple[Size, ...], *OPTIONS]
    depth: Annotated[tuple[Size, ...], *OPTIONS, NOT_TOO_DEEP]
    hidden: Annotated[tuple[Size, ...], *OPTIONS]


class MlpSpace(SearchSpace[MlpArch, MlpSettings]):
    """Options for the width and depth of each stage, and for the hidden units of its blocks."""

    family: Literal["residual-mlp"] = "residual-mlp"
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    settings: MlpSettings = MlpSettings()

    @property
    def chain(self) -> Chain:
        """The stages, then the classifier, in which nothing is chosen."""
        stages = (Stage(s.width, s.depth, (LayerAxis("hidden", s.hidden),)) for s in self.stages)
        return (*stages, Stage((self.settings.num_classes,)))

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        """The inverse of `chain`."""
        return cls.model_validate({"stages": [stage.fields for stage in chain[:-1]], **fields})


DIGITS = MlpSpace(
    name="mlp-digits",
    stages=(
        StageOptions(width=(16, 24, 32), depth=(1, 2), hidden=(16, 32, 64)),
        StageOptions(width=(16, 32, 48), depth=(1, 2, 3), hidden=(16, 32, 64)),
    ),
    settings=MlpSettings(image_size=(8, 8), in_chans=1, num_classes=10),
)

# --- the network ---------------------------------------------------------------------------------


Noise = Tensor | None


def dropped(x: Tensor, rate: float, noise: Tensor) -> Tensor:
    """`x`, but zero where `noise`, uniform in [0, 1), is below the rate; the mean is kept."""
    return x * (noise >= rate).to(x.dtype) / (1 - rate)


class Block(nn.Module):
    """x + a branch of two linear layers, which stochastic depth may drop in training."""

    def __init__(self, width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop_prob = rate

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """[B, width] -> [B, width]; `noise` [B]."""
        branch = self.fc2(self.norm(self.fc1(x)).relu())
        if self.training and self.drop_prob and noise is not None:
            branch = dropped(branch, self.drop_prob, noise[:, None])
        return x + branch


def widths(arch: MlpArch, settings: MlpSettings) -> tuple[int, ...]:
    """All widths, from the flattened image to the classes."""
    inputs = settings.in_chans * settings.grid**2
    return (inputs, *(stage.width for stage in arch.stages), settings.num_classes)


class ResidualMlp(nn.Module):
    """The plain network of exactly one architecture; `initialize` fills it."""

    def __init__(
        self, arch: MlpArch, settings: MlpSettings, rates: Sequence[float] = (), dropout: float = 0
    ) -> None:
        super().__init__()
        self.settings, self.dropout, self.drops = settings, dropout, any(rates)
        self.num_blocks = arch.num_layers
        rate = iter(rates or (0.0,) * self.num_blocks)
        self.stages = nn.ModuleList()
        for before, stage in zip(widths(arch, settings), arch.stages, strict=False):
            blocks = nn.ModuleList(Block(stage.width, one, next(rate)) for one in stage.hidden)
            entry = nn.Linear(before, stage.width)
            self.stages.append(nn.ModuleDict({"entry": entry, "blocks": blocks}))
        self.num_features = self.head_hidden_size = arch.stages[-1].width
        self.reset_classifier(settings.num_classes)

    def forward_features(self, images: Tensor, noise: Noise = None) -> Tensor:
        """[B, channels, height, width] -> [B, width of the last stage]."""
        check_images(images, self.settings)
        x = adaptive_avg_pool2d(images, self.settings.grid).flatten(1)
        draws = iter([None] * self.num_blocks if noise is None else noise.unbind(1))
        for stage in self.stages:
            x = stage["entry"](x)
            for block in stage["blocks"]:
                x = block(x, next(draws))
        return x.relu()

    def forward_head(self, x: Tensor, pre_logits: bool = False, noise: Noise = None) -> Tensor:
        """[B, width] -> logits [B, num_classes]; the last columns of the noise drop features."""
        if self.training and self.dropout and noise is not None:
            x = dropped(x, self.dropout, noise[:, -x.shape[1] :])
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor, noise: Noise = None) -> Tensor:
        """Logits; `noise` [B, one column per block, with dropout also one per feature]."""
        if noise is None and self.training and (self.dropout or self.drops):
            num_columns = self.num_blocks + (self.num_features if self.dropout else 0)
            noise = torch.rand(len(images), num_columns, device=images.device)
        return self.forward_head(self.forward_features(images, noise), noise=noise)

    # What timm's optimisers and fine-tuning need from a model.

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for layer-wise decay: one per stage."""
        return {"stem": r"^stages\.0\.entry", "blocks": r"^stages\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; 0 removes it, so that the network returns features."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(self.stages[0]["entry"].weight)


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Uniform weights within 1/sqrt(inputs), zero biases, and default normalisation."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()


# --- its parts, and the family that combines them ------------------------------------------------


def stage_names(arch: MlpArch) -> list[StageNames]:
    """Blocks and entry of every stage; the rest belongs to the last stage, the classifier."""
    return [
        StageNames([f"stages.{n}.blocks.{block}." for block in range(link.depth)], [f"stages.{n}."])
        for n, link in enumerate(arch.links)
    ]


def work(arch: MlpArch, settings: MlpSettings) -> list[Work]:
    """Multiply-accumulates per image, without normalisation, activations and sums."""
    parts = []
    for number, (before, after) in enumerate(pairwise(widths(arch, settings))):
        parts.append(Work(TensorRole(number, None), before * after))
        if number < len(arch.stages):
            for block, hidden in enumerate(arch.stages[number].hidden):
                parts.append(Work(TensorRole(number, block), 2 * after * hidden))
    return parts


FAMILY = Family(
    name="residual-mlp",
    space_type=MlpSpace,
    spaces={DIGITS.name: DIGITS},
    build=ResidualMlp,
    initialize=initialize,
    work=work,
    stage_names=stage_names,
    unit_tensors={"hidden": (("fc1.weight", 0), ("norm.weight", 0), ("fc2.weight", 1))},
    prepare_for_scoring=nn.Module.train,  # by batch statistics, as in training
)
