"""A family of its own in one file: residual multilayer perceptrons over small pictures.

Meant as a template, read from top to bottom: architectures, the space of them, the network of one
architecture, what the search asks about its parts, and the `Family` that holds it all together.
docs/extending.md goes through it piece by piece.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.utils import skip_init

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONS,
    Arch,
    Choices,
    Family,
    LayerAxis,
    SearchSpace,
    Settings,
    Stage,
    TensorRole,
    Work,
    check_images,
)
from prenas.values import Value

# --- architectures -------------------------------------------------------------------------------

Size = Annotated[int, Field(ge=1)]


class StageArch(Value):
    """Blocks of one width, each with a number of hidden units of its own."""

    width: Size
    hidden: tuple[Size, ...] = Field(min_length=1)


class MlpArch(Arch):
    """A linear layer into every stage, residual blocks in it, and a linear classifier."""

    stages: tuple[StageArch, ...] = Field(min_length=1)

    @property
    def summary(self) -> str:
        """Width x depth of every stage."""
        return ", ".join(f"{stage.width} x {len(stage.hidden)}" for stage in self.stages)

    @property
    def network_options(self) -> dict[str, float]:
        """Width and depth of every stage."""
        options = {}
        for number, stage in enumerate(self.stages, start=1):
            options[f"width_{number}"] = stage.width
            options[f"depth_{number}"] = len(stage.hidden)
        return options

    @property
    def layer_options(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Per stage, the hidden units of every block."""
        return {"hidden": tuple(stage.hidden for stage in self.stages)}


# --- the space -----------------------------------------------------------------------------------


class MlpSettings(Settings):
    """What all networks of a space share: pictures are averaged over a grid of cells first."""

    grid: Size = 8


Options = Annotated[tuple[Size, ...], *OPTIONS]


class StageOptions(Value):
    """The options of one stage, from small to large."""

    width: Options
    depth: Annotated[tuple[Size, ...], *OPTIONS, NOT_TOO_DEEP]
    hidden: Options


class MlpSpace(SearchSpace):
    """Per stage, options for width and depth; per block, for its hidden units."""

    family: Literal["residual-mlp"] = "residual-mlp"
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    settings: MlpSettings = MlpSettings()

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages, and the classifier, where nothing is chosen."""
        stages = (
            Stage(one.width, one.depth, (LayerAxis("hidden", one.hidden),)) for one in self.stages
        )
        return (*stages, Stage((self.settings.num_classes,)))

    def compose(self, choices: Choices, resolution: int | None = None) -> MlpArch:
        """The architecture of a choice in every stage."""
        return MlpArch(
            stages=tuple(
                StageArch(
                    width=options.width[choice.width],
                    hidden=tuple(options.hidden[one] for one in choice.options[0]),
                )
                for options, choice in zip(self.stages, choices[:-1], strict=True)
            )
        )

    @property
    def supernet(self) -> MlpArch:
        """The largest option everywhere."""
        return self.compose(self.extreme(-1))


DIGITS = MlpSpace(
    name="mlp-digits",
    stages=(
        StageOptions(width=(16, 24, 32), depth=(1, 2), hidden=(16, 32, 64)),
        StageOptions(width=(16, 32, 48), depth=(1, 2, 3), hidden=(16, 32, 64)),
    ),
    settings=MlpSettings(image_size=(8, 8), in_chans=1, num_classes=10),
)


def space_of(name: str, archs: Sequence[MlpArch], settings: MlpSettings) -> MlpSpace:
    """All options that occur in these architectures."""

    def options(values: Any) -> tuple[int, ...]:
        return tuple(sorted(set(values)))

    return MlpSpace(
        name=name,
        stages=tuple(
            StageOptions(
                width=options(stage.width for stage in stages),
                depth=options(len(stage.hidden) for stage in stages),
                hidden=options(one for stage in stages for one in stage.hidden),
            )
            for stages in zip(*(arch.stages for arch in archs), strict=True)
        ),
        settings=settings,
    )


# --- which architecture contains which -----------------------------------------------------------


def envelope(archs: Sequence[MlpArch]) -> MlpArch:
    """The largest width and depth of every stage, and per block the most hidden units."""
    return MlpArch(
        stages=tuple(
            StageArch(
                width=max(stage.width for stage in stages),
                hidden=tuple(
                    max(block) for block in zip_longest(*(s.hidden for s in stages), fillvalue=0)
                ),
            )
            for stages in zip(*(arch.stages for arch in archs), strict=True)
        )
    )


def check_contains(largest: MlpArch, arch: MlpArch) -> None:
    """Raises ValueError, with both sizes, for what `arch` has more of than `largest`."""
    if len(arch.stages) != len(largest.stages):
        raise ValueError(
            f"this architecture does not fit into the supernet: it has {len(arch.stages)} stages, "
            f"not {len(largest.stages)}. Take architectures of one space"
        )
    problems = []
    for number, (ours, most) in enumerate(zip(arch.stages, largest.stages, strict=True), start=1):
        sizes = [("width", ours.width, most.width), ("depth", len(ours.hidden), len(most.hidden))]
        sizes += [("hidden", *both) for both in zip(ours.hidden, most.hidden, strict=False)]
        problems += [f"{what} {a} > {b} in stage {number}" for what, a, b in sizes if a > b]
    if problems:
        raise ValueError(
            f"this architecture does not fit into the supernet: {'; '.join(problems)}. Choose one "
            "inside it, or train a larger supernet"
        )


# --- the network ---------------------------------------------------------------------------------


def dropped(x: Tensor, rate: float, noise: Tensor) -> Tensor:
    """Zero where `noise`, uniform in [0, 1), is below the rate; of the same mean."""
    return x * (noise >= rate).to(x.dtype) / (1 - rate)


class Block(nn.Module):
    """x + a branch of two linear layers, which stochastic depth may drop in training."""

    def __init__(self, width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop_prob = rate

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """[B, width] -> [B, width]; `noise` [B]."""
        branch = self.fc2(self.norm(self.fc1(x)).relu())
        if self.training and self.drop_prob and noise is not None:
            branch = dropped(branch, self.drop_prob, noise[:, None])
        return x + branch


class ResidualMlp(nn.Module):
    """The plain network of exactly one architecture; `initialize` fills it."""

    def __init__(
        self,
        arch: MlpArch,
        settings: MlpSettings,
        drop_path_rates: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.settings, self.dropout = settings, dropout
        self.drops = any(drop_path_rates)
        self.num_classes = settings.num_classes
        self.num_blocks = len(layers(arch))
        rates = iter(drop_path_rates or (0.0,) * self.num_blocks)
        self.stages = nn.ModuleList()
        for before, stage in zip(widths(arch, settings), arch.stages, strict=False):
            blocks = nn.ModuleList(Block(stage.width, one, next(rates)) for one in stage.hidden)
            entry = nn.Linear(before, stage.width)
            self.stages.append(nn.ModuleDict({"entry": entry, "blocks": blocks}))
        self.num_features = self.head_hidden_size = arch.stages[-1].width
        self.head: nn.Module = nn.Linear(self.num_features, self.num_classes)

    def forward_features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, channels, height, width] -> [B, width of the last stage]."""
        check_images(images, self.settings)
        x = adaptive_avg_pool2d(images, self.settings.grid).flatten(1)
        draws = iter([None] * self.num_blocks if noise is None else noise.unbind(1))
        for stage in self.stages:
            x = stage["entry"](x)
            for block in stage["blocks"]:
                x = block(x, next(draws))
        return x.relu()

    def forward_head(
        self, x: Tensor, pre_logits: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """[B, width] -> logits [B, num_classes]; the last columns of the noise drop features."""
        if self.training and self.dropout and noise is not None:
            x = dropped(x, self.dropout, noise[:, -x.shape[1] :])
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits; `noise` [B, a column per block, with dropout one more per feature] in [0, 1)."""
        if noise is None and self.training and (self.dropout or self.drops):
            num_features = self.num_features if self.dropout else 0
            shape = len(images), self.num_blocks + num_features
            noise = torch.rand(shape, device=images.device)
        return self.forward_head(self.forward_features(images, noise), noise=noise)

    # What timm's optimisers and fine-tuning ask of a model.

    def no_weight_decay(self) -> set[str]:
        """No more than biases and norms."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layer-wise decay: one per stage."""
        return {"stem": r"^stages\.0\.entry", "blocks": r"^stages\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; 0 classes: none, which gives features."""
        self.num_classes = num_classes
        fresh = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = fresh.to(self.stages[0]["entry"].weight)


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Linear weights within 1/sqrt(inputs), zero biases; fresh normalisation."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()


# --- its parts: names, roles, work ---------------------------------------------------------------


def widths(arch: MlpArch, settings: MlpSettings) -> tuple[int, ...]:
    """From the flattened picture to the classes."""
    inputs = settings.in_chans * settings.grid**2
    return (inputs, *(stage.width for stage in arch.stages), settings.num_classes)


def layers(arch: MlpArch) -> tuple[str, ...]:
    """What the names of every block's tensors begin with."""
    return tuple(
        f"stages.{number}.blocks.{block}."
        for number, stage in enumerate(arch.stages)
        for block in range(len(stage.hidden))
    )


def role(arch: MlpArch, name: str) -> TensorRole:
    """Stage and block of a parameter; the classifier is a stage of its own, without blocks."""
    match = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+))?", name)
    if match is None:
        return TensorRole(len(arch.stages), None)
    return TensorRole(int(match[1]), int(match[2]) if match[2] else None)


def work(arch: MlpArch, settings: MlpSettings) -> list[Work]:
    """Multiply-accumulates of one picture; normalisation, activations and sums are free."""
    parts = []
    for number, (before, after) in enumerate(pairwise(widths(arch, settings))):
        parts.append(Work(TensorRole(number, None), before * after))
        if number < len(arch.stages):
            for block, hidden in enumerate(arch.stages[number].hidden):
                parts.append(Work(TensorRole(number, block), 2 * after * hidden))
    return parts


def drop_path_rates(arch: MlpArch, rate: float) -> tuple[float, ...]:
    """Rising from block to block up to the highest rate."""
    depth = len(layers(arch))
    return tuple(rate * block / depth for block in range(1, depth + 1))


# --- weights for other data ----------------------------------------------------------------------


def adapt(
    tensors: Mapping[str, Tensor],
    old: MlpSettings,
    new: MlpSettings,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Any image size is averaged over the same grid, so only the classifier may change."""
    if (old.grid, old.in_chans) != (new.grid, new.in_chans):
        raise ValueError(
            f"these weights take {old.in_chans} channels on a grid of {old.grid}: keep in_chans "
            "and grid, or train from scratch"
        )
    if generator is None and old.num_classes != new.num_classes:
        raise ValueError(
            f"a head of {old.num_classes} outputs cannot be kept for {new.num_classes} classes: "
            "ask for a fresh one"
        )
    if generator is None or not tensors:  # without tensors, only the settings are in question
        return dict(tensors)
    like = tensors["head.weight"]
    head = skip_init(nn.Linear, like.shape[1], new.num_classes, device=like.device).to(like)
    initialize(head, generator)
    return {**tensors, **{f"head.{name}": one for name, one in head.state_dict().items()}}


# --- all of it -----------------------------------------------------------------------------------

FAMILY = Family(
    name="residual-mlp",
    arch_type=MlpArch,
    space_type=MlpSpace,
    settings_type=MlpSettings,
    spaces={DIGITS.name: DIGITS},
    build=ResidualMlp,
    initialize=initialize,
    prepare_for_scoring=nn.Module.train,  # by batch statistics, as in training
    work=work,
    role=role,
    layers=layers,
    unit_tensors={"hidden": (("fc1.weight", 0), ("norm.weight", 0), ("fc2.weight", 1))},
    drop_path_rates=drop_path_rates,
    num_branches=lambda arch: len(layers(arch)),
    balancing_group=lambda arch: (len(layers(arch)),),
    envelope=envelope,
    check_contains=check_contains,
    space_of=space_of,
    adapt=adapt,
)
