"""Architectures and their input: values, and which architecture fits into which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, zip_longest
from typing import NamedTuple, Self, TypeVar

from pydantic import Field, ValidationError, field_validator

from prenas.values import Value, explain

Design = tuple[tuple[str, object], ...]
"""(name, value) of what all architectures of a space have in common in one stage."""


class Link(NamedTuple):
    """One stage of an architecture: its layers lead from the width before it to its own.

    Leave everything out for a stage in which nothing is chosen, such as a classifier.
    """

    width: int = 1
    depth: int = 0
    """Number of layers."""
    options: Mapping[str, tuple[float, ...]] = {}
    """Layer axis -> the option of every layer."""
    design: Design = ()
    sizes: Mapping[str, tuple[int, ...]] = {}
    """Layer axis -> the size that its option gives the tensors of every layer.

    Only for axes whose option is not that size itself, such as a ratio of the width.
    """
    name: str | None = None
    """What its width is called; by default it has a number, as in `width_1`."""

    @property
    def fields(self) -> dict[str, object]:
        """Width, options and design by name, for a model with a field for each."""
        return {"width": self.width, **self.options, **dict(self.design)}

    @property
    def has_layers(self) -> bool:
        """Whether it is a stage of layers, be their number zero in this architecture."""
        return self.depth > 0 or bool(self.options)

    def sizes_of(self, axis: str) -> tuple[float, ...]:
        """What decides, layer by layer, whether an option fits into another."""
        return self.sizes.get(axis, self.options[axis])


Links = tuple[Link, ...]
"""The stages of an architecture from the input on; a `Stage` of the space stands behind each."""


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
        """The architecture of these links; it reads no `sizes` and no `name`.

        Args:
            resolution: `resized_to` of the architecture.
        """
        raise NotImplementedError

    @property
    def resized_to(self) -> int | None:
        """The side, in pixels, to which the network resizes its images; None takes any image."""
        return None

    @property
    def id(self) -> str:
        """Ten characters that are the same for equal architectures only, for files and logs."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:10]

    @property
    def num_layers(self) -> int:
        """In all stages."""
        return sum(link.depth for link in self.links)

    @property
    def network_options(self) -> Mapping[str, float]:
        """What was chosen once per network, e.g. width and depth: in the order of the network."""
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
        """Per layer axis of its space, and per stage with that axis, the option of every layer.

        With `network_options` it tells architectures of one space apart.
        """
        found: dict[str, list[tuple[float, ...]]] = {}
        for link in self.links:
            for axis, options in link.options.items():
                found.setdefault(axis, []).append(options)
        return {axis: tuple(stages) for axis, stages in found.items()}

    @property
    def summary(self) -> str:
        """A few words for tables: widths x depths, then the range of every layer axis."""
        parts = [] if self.resized_to is None else [f"{self.resized_to} px"]
        widths = [str(link.width) for link in self.links if link.has_layers or link.name]
        depths = [str(link.depth) for link in self.links if link.has_layers]
        parts.append(f"{'-'.join(widths)} x {'-'.join(depths)}")
        for axis, stages in self.layer_options.items():
            parts.append(f"{axis} {span(chain.from_iterable(stages))}")
        return ", ".join(parts)


A = TypeVar("A", bound=Arch)


def _titles(links: Links) -> list[str]:
    """Per stage its name, else its number among the stages that have layers and no name."""
    numbers = count(start=1)
    return [link.name or (str(next(numbers)) if link.has_layers else "") for link in links]


def span(options: Iterable[float]) -> str:
    """The smallest and the largest, e.g. "3-4", or the one that there is."""
    ordered = sorted(options)
    low, high = ordered[0], ordered[-1]
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


class Settings(Value):
    """What all networks of one space have in common: the input and the number of classes."""

    image_size: tuple[int, int] = (224, 224)
    in_chans: int = Field(3, ge=1)
    num_classes: int = Field(1000, ge=1)

    def changed(self, **fields: object) -> Self:
        """A copy with other values of some fields, checked; ValueError for unknown fields."""
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
            raise ValueError(f"one whole number or [height, width] is needed (given: {value!r})")
        return value

    @field_validator("image_size")
    @classmethod
    def _positive(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1:
            raise ValueError(f"image size {value} must be positive in both directions")
        return value


S = TypeVar("S", bound=Settings)


# --- containment ---------------------------------------------------------------------------------


def envelope(archs: Sequence[A]) -> A:
    """The smallest architecture that contains all of these, which belong to one space.

    It has the largest resolution, widths and depths, and in every layer the largest options.
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
        ValueError: it does not, with both sizes of everything that is too large.
    """
    if problem := _difference(largest.links, arch.links):
        raise ValueError(
            f"this architecture does not fit into the supernet: {problem}. Take architectures of "
            "one space"
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
            f"this architecture does not fit into the supernet: {'; '.join(problems)}. Choose one "
            "inside the supernet, or train a larger supernet"
        )


def _difference(largest: Links, links: Links) -> str | None:
    """What makes two chains of stages incomparable, if anything does."""
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
    """Each option that is too large, with both sizes and its place."""
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
