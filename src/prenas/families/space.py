"""Search spaces: the options of every stage of a network, and the architectures made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Generic, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator
from typing_extensions import TypeVar

from prenas.families.arch import Arch, Design, Link, Settings
from prenas.values import Value

_MOST_LAYERS = 1000


def _listed(value: object) -> object:
    """One number is one option."""
    return (value,) if isinstance(value, (str, int, float)) else value


def _rising(options: tuple[float, ...]) -> tuple[float, ...]:
    rising = sorted(set(options))
    if list(options) != rising:
        raise ValueError(
            f"options {list(options)} must be all different and in rising order: write {rising}"
        )
    return options


def _some(options: tuple[float, ...]) -> tuple[float, ...]:
    if not options:
        raise ValueError("no option is given: list at least one, in rising order")
    return options


def _not_absurd(depths: tuple[int, ...]) -> tuple[int, ...]:
    if depths[-1] > _MOST_LAYERS:
        raise ValueError(
            f"{depths[-1]:,} layers are more than a search can handle: write at most "
            f"{_MOST_LAYERS:,}"
        )
    return depths


OPTIONAL = BeforeValidator(_listed), AfterValidator(_rising)
"""As `OPTIONS`, where there may be none."""

OPTIONS = *OPTIONAL, AfterValidator(_some)
"""For fields of a space that list options: `Annotated[tuple[int, ...], *OPTIONS]`."""

NOT_TOO_DEEP = AfterValidator(_not_absurd)
"""For those that list depths."""


class LayerAxis(NamedTuple):
    """A choice made in every layer, its options from small to large."""

    name: str
    options: tuple[float, ...]


class Stage(NamedTuple):
    """One link of the chain that a network is: layers that lead from one width to the next.

    What is chosen: the width at its end, how many layers it has, and in each of them one option
    per axis. Its first layer leads from the width before to its own, all others from its own to
    its own. A stage of depth 0 has tensors without layers, such as a stem or a head.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (0,)
    axes: tuple[LayerAxis, ...] = ()
    tied: bool = False
    """Whether all layers take the same option of every axis."""
    design: Design = ()
    """(name, value) of what is fixed here, for the network to know."""

    @property
    def fields(self) -> dict[str, object]:
        """Widths, depths, options and design by name, for a model with a field for each."""
        axes = {axis.name: axis.options for axis in self.axes}
        return {"width": self.widths, "depth": self.depths, **axes, **dict(self.design)}

    def link(self, choice: StageChoice) -> Link:
        """What the indices of a choice stand for."""
        options = {
            axis.name: tuple(axis.options[number] for number in numbers)
            for axis, numbers in zip(self.axes, choice.options, strict=True)
        }
        return Link(self.widths[choice.width], choice.depth, options, self.design)


class StageChoice(NamedTuple):
    """What is chosen in one stage."""

    width: int
    """Index of its width."""
    depth: int
    """Number of its layers."""
    options: tuple[tuple[int, ...], ...] = ()
    """Per axis, the index of the option of every layer."""


Choices = tuple[StageChoice, ...]
"""What is chosen in every stage of a chain."""


Chain = tuple[Stage, ...]
"""The stages of a space from the input on."""

N = TypeVar("N", int, float)
A_co = TypeVar("A_co", bound=Arch, covariant=True, default=Arch)
S_co = TypeVar("S_co", bound=Settings, covariant=True, default=Settings)


class SearchSpace(Value, Generic[A_co, S_co]):
    """The architectures of one family that a search considers, and their common settings.

    Their networks are chains of stages. Neighbours know each other by the width between them
    alone: what a layer costs and scores depends on the two widths at its ends and its own options.

    A family defines `chain` and its inverse, `from_chain`; everything else follows from them. It
    names its types once: `class MlpSpace(SearchSpace[MlpArch, MlpSettings])`.
    """

    family: str
    name: str
    settings: Settings

    @property
    def chain(self) -> Chain:
        """The stages from the input on; widths, depths and options from small to large."""
        raise NotImplementedError

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        """The space of these stages and resolutions: the inverse of `chain`.

        Args:
            fields: name and settings, to be passed on as they are.
        """
        raise NotImplementedError

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        """The sides, in pixels, that networks resize their images to, from small to large.

        None takes images as they come. It is no stage: scores say nothing about it.
        """
        return (None,)

    @property
    def scored_resolution(self) -> int | None:
        """The resolution of the network that is scored: of those, the nearest to the images'."""
        side = self.settings.image_size[0]
        sides = [one for one in self.resolutions if one is not None]
        return min(sides, key=lambda one: (abs(one - side), one), default=None)

    def resolution_for(self, macs: int) -> int | None:
        """The resolution that suits a budget of that many MACs, by the space's own schedule."""
        return self.scored_resolution

    @property
    def supernet(self) -> A_co:
        """The network that is initialised and scored: it contains every architecture."""
        return self.largest

    @classmethod
    def arch_type(cls) -> type[A_co]:
        """The type of its architectures."""
        arch_type: type[A_co] = cls._types()[0]
        return arch_type

    @classmethod
    def settings_type(cls) -> type[S_co]:
        """The type of its settings."""
        settings_type: type[S_co] = cls._types()[1]
        return settings_type

    @classmethod
    def _types(cls) -> tuple[Any, ...]:
        for base in cls.__mro__:
            if issubclass(base, SearchSpace) and (
                types := base.__pydantic_generic_metadata__["args"]
            ):
                return types
        raise TypeError(
            f"{cls.__name__} does not say which architectures and settings it has: write `class "
            f"{cls.__name__}(SearchSpace[MyArch, MySettings])`"
        )

    def compose(self, choices: Choices, resolution: int | None = None) -> A_co:
        """The architecture of a choice in every stage, at one of the resolutions.

        Of None, where there are several, the one that is scored.
        """
        links = tuple(stage.link(choice) for stage, choice in zip(self.chain, choices, strict=True))
        return self.arch_type().from_links(links, resolution or self.scored_resolution)

    @classmethod
    def spanning(cls, archs: Sequence[Arch], *, name: str, settings: Settings) -> Self:
        """The space of all options that occur in these architectures."""
        chain = tuple(
            _spanned(links) for links in zip(*(arch.links for arch in archs), strict=True)
        )
        sides = [arch.resized_to for arch in archs if arch.resized_to is not None]
        return cls.from_chain(chain, _rising_once(sides), name=name, settings=settings)

    @property
    def layer_axes(self) -> tuple[LayerAxis, ...]:
        """Every per-layer choice once, with all options that any stage has, in rising order."""
        options: dict[str, set[float]] = {}
        for stage in self.chain:
            for axis in stage.axes:
                options.setdefault(axis.name, set()).update(axis.options)
        return tuple(LayerAxis(name, tuple(sorted(found))) for name, found in options.items())

    @property
    def smallest(self) -> A_co:
        """The smallest option everywhere."""
        return self.compose(self.extreme(0), self.resolutions[0])

    @property
    def largest(self) -> A_co:
        """The largest option everywhere."""
        return self.compose(self.extreme(-1), self.resolutions[-1])

    @property
    def scored(self) -> A_co:
        """The subnet whose gradient scores all others: the largest option everywhere."""
        return self.compose(self.extreme(-1))

    def extreme(self, end: int) -> Choices:
        """The smallest (0) or the largest (-1) option everywhere."""
        return tuple(
            StageChoice(
                width=range(len(stage.widths))[end],
                depth=stage.depths[end],
                options=tuple(
                    (range(len(axis.options))[end],) * stage.depths[end] for axis in stage.axes
                ),
            )
            for stage in self.chain
        )

    @property
    def num_archs(self) -> int:
        """How many different architectures the space holds."""
        total = len(self.resolutions)
        for stage in self.chain:
            per_layer = prod(len(axis.options) for axis in stage.axes)
            ways = sum(per_layer ** (depth > 0 if stage.tied else depth) for depth in stage.depths)
            total *= len(stage.widths) * ways
        return total

    def sample(self, generator: np.random.Generator) -> A_co:
        """An architecture of the space: every choice takes each of its options equally often."""
        return self.compose(*self.sample_choices(generator))

    def sample_choices(self, generator: np.random.Generator) -> tuple[Choices, int | None]:
        """The same as choices and resolution."""
        resolutions = self.resolutions
        number = generator.integers(len(resolutions)) if len(resolutions) > 1 else 0
        choices = []
        for stage in self.chain:
            place = int(generator.integers(len(stage.widths) * len(stage.depths)))
            width, nth = divmod(place, len(stage.depths))
            depth = stage.depths[nth]
            options = tuple(
                (int(generator.integers(len(axis.options))),) * depth
                if stage.tied
                else tuple(generator.integers(len(axis.options), size=depth).tolist())
                for axis in stage.axes
            )
            choices.append(StageChoice(width, depth, options))
        return tuple(choices), resolutions[number]

    def with_settings(self, **fields: object) -> Self:
        """The same space for another input or number of classes."""
        return self.model_copy(update={"settings": self.settings.changed(**fields)})


def _spanned(links: Sequence[Link]) -> Stage:
    """Of one stage, what occurs in several architectures."""
    return Stage(
        widths=_rising_once(link.width for link in links),
        depths=_rising_once(link.depth for link in links),
        axes=tuple(
            LayerAxis(axis, _rising_once(one for link in links for one in link.options[axis]))
            for axis in links[0].options
        ),
        tied=all(len(set(options)) <= 1 for link in links for options in link.options.values()),
        design=links[0].design,
    )


def _rising_once(values: Iterable[N]) -> tuple[N, ...]:
    return tuple(sorted(set(values)))
