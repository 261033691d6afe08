"""Architectures and their settings as values, and which architecture contains which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, zip_longest
from typing import NamedTuple, Self, TypeVar

from pydantic import ValidationError, field_validator

from prenas.families.limits import MOST_PIXELS, Classes, Units
from prenas.values import Value, explain

Design = tuple[tuple[str, object], ...]
"""What all architectures of a space have in common in one stage, as (name, value) pairs."""


class Link(NamedTuple):
    """One stage of an architecture: its layers lead from the previous stage's width to its width.

    `Link()` stands for a stage in which nothing is chosen, such as a classifier.
    """

    width: int = 1
    depth: int = 0
    """Number of layers."""
    options: Mapping[str, tuple[float, ...]] = {}
    """Layer axis -> the option chosen in each layer."""
    design: Design = ()
    sizes: Mapping[str, tuple[int, ...]] = {}
    """Layer axis -> the tensor size that follows from its option, in each layer.

    Needed only for axes whose option is not itself a size, such as a ratio of the width.
    """
    name: str | None = None
    """Name of its width; by default the width gets a number, as in `width_1`."""

    @property
    def fields(self) -> dict[str, object]:
        """Width, options and design by name, to build a model with a field for each."""
        return {"width": self.width, **self.options, **dict(self.design)}

    @property
    def has_layers(self) -> bool:
        """Whether this is a stage of layers, even if this architecture has none of them."""
        return self.depth > 0 or bool(self.options)

    def sizes_of(self, axis: str) -> tuple[float, ...]:
        """Per layer, the size that decides whether one option fits into another."""
        return self.sizes.get(axis, self.options[axis])


Links = tuple[Link, ...]
"""The stages of an architecture from the input on; each corresponds to a `Stage` of the space."""


class Arch(Value):
    """One architecture of a family: a value, never the state of a module.

    A family defines `links` and its inverse, `from_links`; everything else follows from them.
    """

    @property
    def links(self) -> Links:
        """The architecture as a chain of stages, in the order of its space's `chain`."""
        raise NotImplementedError

    @classmethod
    def from_links(cls, links: Links, resolution: int | None = None) -> Self:
        """The architecture of these links, whose `sizes` and `name` are not used.

        Args:
            resolution: the architecture's `resized_to`.
        """
        raise NotImplementedError

    @property
    def resized_to(self) -> int | None:
        """Side in pixels to which the network resizes its images; None if it does not resize."""
        return None

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that identify the architecture in files and logs."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:10]

    @property
    def num_layers(self) -> int:
        """Number of layers in all stages."""
        return sum(link.depth for link in self.links)

    @property
    def network_options(self) -> Mapping[str, float]:
        """Choices made once per network, e.g. width and depth, in the order of the network."""
        options: dict[str, float] = {}
        if self.resized_to is not None:
            options["resolution"] = self.resized_to
        for title, link in zip(_titles(self.links), self.links, strict=True):
            if link.name is not None:
                options[title] = link.width
                options |= {f"{title}_depth": link.depth} if link.has_layers else {}
            elif link.has_layers:
                options |= {f"width_{title}": link.width, f"depth_{title}": link.depth}
        return options

    @property
    def layer_options(self) -> Mapping[str, tuple[tuple[float, ...], ...]]:
        """Layer axis -> for each stage with that axis, the option chosen in each layer.

        Together with `network_options` it distinguishes the architectures of one space.
        """
        found: dict[str, list[tuple[float, ...]]] = {}
        for link in self.links:
            for axis, options in link.options.items():
                found.setdefault(axis, []).append(options)
        return {axis: tuple(stages) for axis, stages in found.items()}

    @property
    def summary(self) -> str:
        """A short description for tables: widths x depths, then the range of each layer axis."""
        parts = [] if self.resized_to is None else [f"{self.resized_to} px"]
        widths = [str(link.width) for link in self.links if link.has_layers or link.name]
        depths = [str(link.depth) for link in self.links if link.has_layers]
        parts.append(f"{'-'.join(widths)} x {'-'.join(depths)}")
        for axis, stages in self.layer_options.items():
            parts.append(f"{axis} {span(chain.from_iterable(stages))}")
        return ", ".join(parts)


A = TypeVar("A", bound=Arch)


def _titles(links: Links) -> list[str]:
    """Per stage its name, or its number among the stages that have layers and no name."""
    numbers = count(start=1)
    return [link.name or (str(next(numbers)) if link.has_layers else "") for link in links]


def span(options: Iterable[float]) -> str:
    """The smallest and the largest option, e.g. "3-4", or only one number if they are equal."""
    ordered = sorted(options)
    low, high = ordered[0], ordered[-1]
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


class Settings(Value):
    """What all networks of one space have in common: the input and the number of classes."""

    image_size: tuple[int, int] = (224, 224)
    in_chans: Units = 3
    num_classes: Classes = 1000

    def changed(self, **fields: object) -> Self:
        """A checked copy with other values for some fields; ValueError for unknown fields."""
        try:
            return type(self).model_validate({**self.model_dump(), **fields})
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    @field_validator("image_size", mode="before")
    @classmethod
    def _square_from_one_number(cls, value: object) -> object:
        if isinstance(value, int):
            return (value, value)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"give one integer or [height, width] (got {value!r})")
        return value

    @field_validator("image_size")
    @classmethod
    def _positive(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1:
            raise ValueError(f"image size {value}: height and width must be positive")
        if max(value) > MOST_PIXELS:
            raise ValueError(
                f"image size {value}: height and width may be at most {MOST_PIXELS:,} pixels"
            )
        return value


S = TypeVar("S", bound=Settings)


# --- containment ---------------------------------------------------------------------------------


def envelope(archs: Sequence[A]) -> A:
    """The smallest architecture that contains all the given ones, which must share a space.

    It has the largest resolution, widths and depths, and the largest options in each layer.
    """
    links = tuple(_largest(stages) for stages in zip(*(arch.links for arch in archs), strict=True))
    resolution = max(arch.resized_to or 0 for arch in archs) or None
    return type(archs[0]).from_links(links, resolution)


def _largest(links: Sequence[Link]) -> Link:
    return Link(
        width=max(link.width for link in links),
        depth=max(link.depth for link in links),
        options={
            axis: tuple(
                max(option for option in layer if option is not None)
                for layer in zip_longest(*(link.options[axis] for link in links))
            )
            for axis in links[0].options
        },
        design=links[0].design,
    )


def check_contains(largest: Arch, arch: Arch) -> None:
    """Checks that every part of `arch` exists in `largest`.

    Raises:
        ValueError: it does not; the message gives both sizes of everything that is too large.
    """
    if problem := _difference(largest.links, arch.links):
        raise ValueError(
            f"this architecture does not fit into the supernet: {problem}. Use architectures of "
            "one search space"
        )
    most = largest.network_options
    problems = [
        f"{name} {size} > {most[name]}"
        for name, size in arch.network_options.items()
        if name != "resolution" and size > most[name]
    ]
    problems += _oversized_layers(largest.links, arch.links)
    if problems:
        raise ValueError(
            f"this architecture does not fit into the supernet: {'; '.join(problems)}. Choose a "
            "smaller one, or train a larger supernet"
        )


def _difference(largest: Links, links: Links) -> str | None:
    """Why two chains of stages cannot be compared; None if they can."""
    if len(links) != len(largest):
        return f"it is a chain of {len(links)} stages, not {len(largest)}"
    for title, link, most in zip(_titles(largest), links, largest, strict=True):
        if list(link.options) != list(most.options):
            axes = [", ".join(one.options) or "nothing" for one in (link, most)]
            return f"the layers of stage {title} choose {axes[0]}, not {axes[1]}"
        for (name, value), (_, wanted) in zip(link.design, most.design, strict=True):
            if value != wanted:
                return f"{name} is {value}, not {wanted}, in stage {title}"
    return None


def _oversized_layers(largest: Links, links: Links) -> Iterator[str]:
    """Each option that is too large, with both sizes, its layer and its stage."""
    is_only = sum(link.has_layers for link in largest) == 1
    for title, link, most in zip(_titles(largest), links, largest, strict=True):
        where = "" if is_only else f" of stage {title}"
        for axis, options in link.options.items():
            layers = zip(options, link.sizes_of(axis), most.sizes_of(axis), strict=False)
            for layer, (option, size, limit) in enumerate(layers):
                if size > limit:
                    sizes = f"{size:g} > {limit:g}"
                    if axis in link.sizes:
                        sizes = f"{option:g} ({size:g} units > {limit:g})"
                    yield f"{axis} {sizes} in layer {layer}{where}"
