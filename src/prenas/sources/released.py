"""The authors' released checkpoints: read as a supernet, without running any code in them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas import artifacts
from prenas.families import all_families, family_of
from prenas.families.base import Arch, Family, SearchSpace, Settings, check_contains, envelope
from prenas.files import open_file
from prenas.recipe import Recipe, SearchRecipe
from prenas.recipe.data import Preprocessing
from prenas.selection.preferred import (
    Imported,
    PreferredSet,
    exact_budgets,
    unscored_set,
)
from prenas.supernet import Supernet
from prenas.values import unknown_name

_logger = logging.getLogger(__name__)
_STATES = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Keys under which a checkpoint keeps its tensors; the first one in it is taken."""
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module"))
"""Parts that data-parallel wrappers and torch.compile add to names, in any order."""


class _Ignored:
    """Stands for a value of NumPy or a path in a checkpoint: a best accuracy, a folder."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_HARMLESS = [
    argparse.Namespace,
    *(
        (_Ignored, name)
        for name in (
            *("numpy.dtype", "numpy.ndarray"),
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
            *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
            *("pathlib.PosixPath", "pathlib.WindowsPath"),
            *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
        )
    ),
]
"""What a checkpoint may contain in addition to tensors and plain values; none of it is executed."""


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
    path = Path(path)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: give a checkpoint (.pth or .safetensors)")
    content = _content_of(path)
    try:
        key, state = _state_of(content, weights)
        tensors = _tensors_of(state, key, path.stat().st_size)
        options = content.get("args") if key else None
        trained_with = vars(options) if isinstance(options, argparse.Namespace) else {}
        supernet = _supernet_of(tensors, trained_with)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    others = [
        other
        for other in _STATES
        if key and other != key and isinstance(content.get(other), Mapping)
    ]
    if others and weights is None:
        _logger.warning(
            "%s contains several weights: %s were taken, %s not (--weights, or the argument "
            "weights, chooses)",
            path,
            key,
            " and ".join(others),
        )
    return ReleasedCheckpoint(supernet, key if others else None)


def _content_of(path: Path) -> Any:
    """The content of a .safetensors or a torch.save file, whatever the file is called."""
    with open_file(path) as file:
        start = file.read(10)
    is_safetensors = path.suffix.lower() == ".safetensors" or start[8:] == b'{"'
    if is_safetensors:
        return artifacts.read_tensors(path)
    return artifacts.read_pickle(path, safe=_HARMLESS)


def _state_of(content: Any, weights: str | None) -> tuple[str | None, Any]:
    """(the key under which the tensors are, None for the top level; the tensors)."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it contains a {type(content).__name__} instead of a dict of tensors")
    there = [key for key in _STATES if key in content]
    if weights is not None:
        if weights not in there:
            raise unknown_name("weights", weights, there or ["no choice in this file"])
        return weights, content[weights]
    return (there[0], content[there[0]]) if there else (None, content)


def _tensors_of(state: Any, key: str | None, file_size: int) -> dict[str, Tensor]:
    """Name, without the prefixes of wrappers -> tensor; floats as float32."""
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        where = f"its {key!r}" if key else "it"
        keys = list(map(str, state))[:5] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{where} is not a dict of tensors (found: {keys}): a state dict is needed, on its "
            f"own or under {' or '.join(map(repr, _STATES))}"
        )
    _check_plain(state, file_size)
    tensors: dict[str, Tensor] = {}
    for wrapped, tensor in state.items():
        name = ".".join(part for part in str(wrapped).split(".") if part not in _WRAPPERS)
        if name in tensors:
            raise ValueError(f"it contains {name} twice, with and without a wrapper's prefix")
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def _check_plain(tensors: Mapping[Any, Tensor], file_size: int) -> None:
    """Raises ValueError for tensors that are not plain numbers, or larger than their file.

    A file of some hundred bytes can describe a tensor of terabytes, which repeats one number.
    """
    sizes: dict[object, int] = {}
    for name, tensor in tensors.items():
        if kind := next((kind for kind, has in _SPECIAL.items() if has(tensor)), None):
            raise ValueError(f"{name} is {kind}: tensors must be dense and hold real numbers")
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        sizes[place, tensor.shape, tensor.stride()] = tensor.numel() * tensor.element_size()
    if (total := sum(sizes.values())) > file_size:
        raise ValueError(
            f"its tensors take {total:,} bytes, more than the {file_size:,} of the file: they "
            "repeat numbers instead of storing them"
        )


_SPECIAL: Mapping[str, Callable[[Tensor], bool]] = {
    "a nested tensor": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout != torch.strided,
    "without values (on the device `meta`)": lambda tensor: tensor.is_meta,
    "quantised": lambda tensor: tensor.is_quantized,
    "complex": lambda tensor: tensor.is_complex(),
}
"""Kinds of tensors that no released checkpoint has -> how to recognise them."""


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
