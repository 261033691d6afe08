"""The authors' released checkpoints: read as a supernet, without running any code in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas import artifacts
from prenas.families import all_families, family_of
from prenas.families.base import Arch, Family, SearchSpace, Settings, check_contains, envelope
from prenas.recipe import Recipe, SearchRecipe
from prenas.recipe.data import Preprocessing
from prenas.selection.preferred import (
    Imported,
    PreferredSet,
    exact_budgets,
    unscored_set,
)
from prenas.sources.checkpoints import read_checkpoint
from prenas.supernet import Supernet
from prenas.values import unknown_name


class ReleasedCheckpoint(NamedTuple):
    """The supernet of a released checkpoint."""

    supernet: Supernet
    weights: str | None
    """The key of its weights, if the file has several."""


def load_released_checkpoint(path: str | Path, weights: str | None = None) -> Supernet:
    """The supernet of a checkpoint that the authors of PreNAS or AutoFormer released.

    Reads `{"model": ...}`, `{"state_dict": ...}` or a bare state dict from a torch.save file, and
    .safetensors files with the same names. All sizes are inferred from the tensors. No code in the
    file is run, and nothing is written.

    Args:
        weights: the key of the weights, such as `model_ema`, in a file that has several.

    Returns:
        The supernet in evaluation mode, in float32, on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or contains code, or its tensors are not those of a released
            network, contradict each other, or are not finite; or there are no such weights.
    """
    return read_released(path, weights).supernet


def read_released(path: str | Path, weights: str | None = None) -> ReleasedCheckpoint:
    """Like `load_released_checkpoint`; also says which weights were taken."""
    found = read_checkpoint(path, weights)
    try:
        supernet = _supernet_of(found.tensors, found.options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return ReleasedCheckpoint(supernet, found.weights)


def _supernet_of(tensors: dict[str, Tensor], options: dict[str, Any]) -> Supernet:
    """The supernet, built by the first family that knows the tensors; ValueError if none does."""
    problems = []
    for family in all_families():
        if family.released is None:
            continue
        try:
            network = family.released.read(tensors, options)
        except ValueError as error:
            problems.append(str(error))
            continue
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ValueError(
                    f"{name} ({tensor.dtype}) contains values that are not finite in float32: "
                    "download the file again, or use an earlier checkpoint"
                )
        supernet = Supernet(network.arch, network.settings)
        supernet.network.load_state_dict(network.tensors)
        return supernet.eval()
    raise ValueError("; ".join(problems))


def imported_set(
    largest: Arch,
    settings: Settings,
    file: Path,
    archs: Sequence[Arch] = (),
    space: str | None = None,
    weights: str | None = None,
) -> PreferredSet:
    """The preferred set of a released supernet whose largest subnet is `largest`; without scores.

    Its subnets are the given ones, or else those published for the space, which is named or
    recognised by its sizes, or else the largest network alone. Each subnet gets its own budget: its
    exact number of parameters.

    Args:
        file: the file from which the supernet was read.
        weights: the key of the weights in it, if it has several.

    Raises:
        ValueError: the space is unknown, or subnets do not fit into the supernet.
    """
    family = family_of(largest)
    known = _published(family)
    if settings.in_chans != len(Preprocessing().mean):
        raise ValueError(
            f"{file} takes images of {settings.in_chans} channels and does not say how they were "
            "normalised: only 3 channels (ImageNet's normalisation) can be imported as a run. In "
            "Python, prenas.load_released_checkpoint reads it"
        )
    if space is None:
        home = _recognised_space(largest, settings)
    elif space in (family.spaces if archs else known):
        home = family.spaces[space]
    else:
        raise unknown_name("space", space, family.spaces if archs else known)
    published = known[home.name] if home and not archs else ()
    chosen = archs or published or (largest,)
    try:
        for arch in [*chosen, envelope(chosen)]:  # a run stores the weights of the envelope
            check_contains(largest, arch)
    except ValueError as error:
        whose = f"published for {home.name!r}" if home and published else "given"
        raise ValueError(f"{file} has no weights for the subnets {whose}: {error}") from None
    recipe = Recipe(
        name=file.stem,
        space=(
            home.model_copy(update={"settings": settings})
            if home
            else family.space_type.spanning(chosen, name="imported", settings=settings)
        ),
        search=SearchRecipe(budgets=exact_budgets(chosen, settings)),
    )
    imported = Imported(
        file=file.name,
        sha256=artifacts.sha256(file),
        weights=weights,
        subnets="given" if archs else "published" if published else "largest",
    )
    return unscored_set(recipe, chosen, imported=imported)


def _published(family: Family[Any, Any]) -> Mapping[str, tuple[Arch, ...]]:
    return family.released.published if family.released else {}


def _recognised_space(largest: Arch, settings: Settings) -> SearchSpace | None:
    """The space whose published subnets fit into `largest`, which fits into the space's supernet.

    The number of classes does not matter. None if there is no such space.
    """
    family = family_of(largest)

    def fit(arch: Arch, parts: Sequence[Arch]) -> bool:
        try:
            for part in parts:
                check_contains(arch, part)
        except ValueError:
            return False
        return True

    for name, published in _published(family).items():
        space = family.spaces[name]
        has_this_input = space.settings.changed(num_classes=settings.num_classes) == settings
        if has_this_input and fit(space.supernet, [largest]) and fit(largest, published):
            return space
    return None
