"""Search spaces: the options of every stage of a network, and the architectures made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Generic, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import TypeVar

from prenas.families.arch import Arch, Design, Link, Settings
from prenas.families.limits import (
    MOST_COMBINATIONS,
    MOST_LAYERS,
    MOST_LINKS,
    MOST_OPTIONS,
    MOST_UNITS,
)
from prenas.files import MOST_DIGITS
from prenas.values import LONGEST_NAME, Value


def _listed(value: object) -> object:
    """A single number is a list of one option."""
    if isinstance(value, (list, tuple)) and len(value) > MOST_OPTIONS:
        raise ValueError(f"a list of {len(value):,} options is too long: at most {MOST_OPTIONS:,}")
    return value if isinstance(value, (list, tuple, dict)) or value is None else (value,)


def _rising(options: tuple[float, ...]) -> tuple[float, ...]:
    rising = sorted(set(options))
    if list(options) != rising:
        raise ValueError(
            f"options {list(options)} must be distinct and in rising order: write {rising}"
        )
    return options


def _some(options: tuple[float, ...]) -> tuple[float, ...]:
    if not options:
        raise ValueError("the list of options is empty: give at least one, in rising order")
    return options


def _not_absurd(depths: tuple[int, ...]) -> tuple[int, ...]:
    if depths[-1] > MOST_LAYERS:
        raise ValueError(
            f"{depths[-1]:,} layers are too many for a search: write at most {MOST_LAYERS:,}"
        )
    return depths


OPTIONAL = BeforeValidator(_listed), AfterValidator(_rising)
"""Like `OPTIONS`, but the list may be empty."""

OPTIONS = *OPTIONAL, AfterValidator(_some)
"""For fields of a space that list options: `Annotated[tuple[int, ...], *OPTIONS]`."""

NOT_TOO_DEEP = AfterValidator(_not_absurd)
"""For fields that list depths: refuses numbers of layers that no search can handle."""


class LayerAxis(NamedTuple):
    """A choice made in every layer; its options run from small to large."""

    name: str
    options: tuple[float, ...]


class Stage(NamedTuple):
    """One stage in the chain that forms a network: layers that lead from one width to the next.

    The choices are the width at its end, the number of layers, and one option per axis in each
    layer. The first layer leads from the previous stage's width to the stage's own; all others
    keep that width. A stage of depth 0 has tensors but no layers, such as a stem or a head.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (0,)
    axes: tuple[LayerAxis, ...] = ()
    tied: bool = False
    """Whether all layers take the same option of every axis."""
    design: Design = ()
    """What is fixed in this stage but the network must know, as (name, value) pairs."""

    @property
    def fields(self) -> dict[str, object]:
        """Widths, depths, options and design by name, to build a model with a field for each."""
        axes = {axis.name: axis.options for axis in self.axes}
        return {"width": self.widths, "depth": self.depths, **axes, **dict(self.design)}

    def link(self, choice: StageChoice) -> Link:
        """The link that the indices of a choice stand for."""
        options = {
            axis.name: tuple(axis.options[number] for number in numbers)
            for axis, numbers in zip(self.axes, choice.options, strict=True)
        }
        return Link(self.widths[choice.width], choice.depth, options, self.design)


class StageChoice(NamedTuple):
    """The choice made in one stage."""

    width: int
    """Index of the width."""
    depth: int
    """Number of layers."""
    options: tuple[tuple[int, ...], ...] = ()
    """Per axis, the index of each layer's option."""


Choices = tuple[StageChoice, ...]
"""The choices made in all stages of a chain."""


Chain = tuple[Stage, ...]
"""The stages of a space from the input on."""

N = TypeVar("N", int, float)
A_co = TypeVar("A_co", bound=Arch, covariant=True, default=Arch)
S_co = TypeVar("S_co", bound=Settings, covariant=True, default=Settings)


class SearchSpace(Value, Generic[A_co, S_co]):
    """The architectures of one family that a search considers, and their common settings.

    Their networks are chains of stages. Neighbouring stages share only the width between them:
    what a layer costs and scores depends on the widths at the two ends of its stage and on its own
    options.

    A family defines `chain` and its inverse, `from_chain`; everything else follows from them. The
    base class states its types: `class MlpSpace(SearchSpace[MlpArch, MlpSettings])`.
    """

    family: str
    name: str = Field(max_length=LONGEST_NAME)
    settings: Settings

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        """Refuses a chain that no search can handle, whatever the family checks itself."""
        if type(self).chain is SearchSpace.chain:  # of no family
            return self
        chain = self.chain
        before = [1, *(len(stage.widths) for stage in chain)]
        combinations = max(
            num * len(stage.widths) * prod(len(axis.options) for axis in stage.axes)
            for num, stage in zip(before, chain, strict=False)
        )
        problems = [
            f"{number:,} {what} are too many for a search: at most {most:,} are allowed"
            for number, what, most in (
                (len(chain), "stages", MOST_LINKS),
                (sum(max(stage.depths, default=0) for stage in chain), "layers", MOST_LAYERS),
                (
                    max(max(stage.widths, default=0) for stage in chain),
                    "units in a layer",
                    MOST_UNITS,
                ),
                (combinations, "combinations of widths and options", MOST_COMBINATIONS),
            )
            if number > most
        ]
        if not problems and self.num_archs >= 10**MOST_DIGITS:
            problems = [f"more than 10^{MOST_DIGITS} architectures are too many for a search"]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def chain(self) -> Chain:
        """The stages from the input on; widths, depths and options run from small to large."""
        raise NotImplementedError

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        """The space of these stages and resolutions: the inverse of `chain`.

        Args:
            fields: name and settings, which are passed on unchanged.
        """
        raise NotImplementedError

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        """Sides in pixels to which networks resize their images, from small to large.

        None means no resizing. The resolution is not part of the chain, because scores do not
        depend on it.
        """
        return (None,)

    @property
    def scored_resolution(self) -> int | None:
        """The resolution of the scored network: the one nearest to the image size."""
        side = self.settings.image_size[0]
        sides = [one for one in self.resolutions if one is not None]
        return min(sides, key=lambda one: (abs(one - side), one), default=None)

    def resolution_for(self, macs: int) -> int | None:
        """The resolution for a budget of this many MACs, by the space's own schedule."""
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
            f"{cls.__name__} does not state its architecture and settings types: write `class "
            f"{cls.__name__}(SearchSpace[MyArch, MySettings])`"
        )

    def compose(self, choices: Choices, resolution: int | None = None) -> A_co:
        """The architecture of the given choices, at one of the space's resolutions.

        None stands for the scored resolution.
        """
        links = tuple(stage.link(choice) for stage, choice in zip(self.chain, choices, strict=True))
        return self.arch_type().from_links(links, resolution or self.scored_resolution)

    def choices_of(self, arch: Arch) -> Choices:
        """The choices that make up an architecture of this space: the inverse of `compose`.

        Raises:
            ValueError: the space does not contain the architecture; the message names the choice.
        """
        chain, links = self.chain, arch.links
        if len(chain) != len(links):
            raise ValueError(
                f"{arch.summary} has {len(links)} stages, and the space {self.name} {len(chain)}"
            )
        if arch.resized_to not in self.resolutions:
            raise ValueError(
                f"{arch.summary} is not in the space {self.name}, whose resolutions are "
                f"{', '.join(map(str, self.resolutions))}"
            )
        choices = []
        for number, (stage, link) in enumerate(zip(chain, links, strict=True)):
            what = f"of {arch.summary} is not in stage {number} of the space {self.name}"
            width = stage.widths[0] if link == Link() and len(stage.widths) == 1 else link.width
            if width not in stage.widths:
                raise ValueError(f"the width {width} {what}: it has {list(stage.widths)}")
            if link.depth not in stage.depths:
                raise ValueError(f"the depth {link.depth} {what}: it has {list(stage.depths)}")
            if link.design != stage.design or [*link.options] != [axis.name for axis in stage.axes]:
                raise ValueError(f"a layer {what}: its layers are of another kind")
            options = []
            for axis in stage.axes:
                chosen = link.options[axis.name]
                if missing := set(chosen).difference(axis.options):
                    raise ValueError(
                        f"the {axis.name} {min(missing):g} {what}: it has {list(axis.options)}"
                    )
                options.append(tuple(axis.options.index(one) for one in chosen))
            choices.append(StageChoice(stage.widths.index(width), link.depth, tuple(options)))
        return tuple(choices)

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
        """Each per-layer axis once, with the options of all stages in rising order."""
        options: dict[str, set[float]] = {}
        for stage in self.chain:
            for axis in stage.axes:
                options.setdefault(axis.name, set()).update(axis.options)
        return tuple(LayerAxis(name, tuple(sorted(found))) for name, found in options.items())

    @property
    def uniform_options(self) -> Mapping[str, tuple[float, ...]]:
        """Per-layer axis -> the options, from 1 on, that all layers with this axis have.

        Raises:
            ValueError: the largest options of an axis differ, or nothing is left of them.
        """
        found: dict[str, tuple[float, ...]] = {}
        for stage in self.chain:
            for axis in stage.axes:
                options = tuple(one for one in axis.options if one >= 1)
                before = found.get(axis.name, options)
                if not options or before[-1] != options[-1]:
                    most = " and ".join(f"{one[-1]:g}" for one in (before, axis.options) if one)
                    raise ValueError(
                        f"the layers of space {self.name!r} have {most} {axis.name} at most, so "
                        "they cannot all keep equally many: choose search.allocation=best, or a "
                        "plain Vision Transformer"
                    )
                found[axis.name] = tuple(one for one in before if one in options)
        return found

    @property
    def smallest(self) -> A_co:
        """The architecture with the smallest option everywhere."""
        return self.compose(self.extreme(0), self.resolutions[0])

    @property
    def largest(self) -> A_co:
        """The architecture with the largest option everywhere."""
        return self.compose(self.extreme(-1), self.resolutions[-1])

    @property
    def scored(self) -> A_co:
        """The subnet whose gradients score all others: the largest option everywhere."""
        return self.compose(self.extreme(-1))

    def extreme(self, end: int) -> Choices:
        """The choices with the smallest (0) or the largest (-1) option everywhere."""
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
        """Number of different architectures in the space."""
        total = len(self.resolutions)
        for stage in self.chain:
            per_layer = prod(len(axis.options) for axis in stage.axes)
            ways = sum(per_layer ** (depth > 0 if stage.tied else depth) for depth in stage.depths)
            total *= len(stage.widths) * ways
        return total

    def sample(self, generator: np.random.Generator) -> A_co:
        """Draws an architecture; each choice takes all of its options with equal probability."""
        return self.compose(*self.sample_choices(generator))

    def sample_choices(self, generator: np.random.Generator) -> tuple[Choices, int | None]:
        """Draws an architecture as `sample` does; returns its choices and its resolution."""
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
        """The same space with other settings, such as the image size or the number of classes."""
        return self.model_copy(update={"settings": self.settings.changed(**fields)})


def _spanned(links: Sequence[Link]) -> Stage:
    """One stage with all the options that occur in the given links."""
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
