"""Trained networks that are published under names, such as `timm/resnet50`, as sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from prenas.families import all_families, build
from prenas.families.base import PretrainedNetwork
from prenas.sources.checkpoints import read_checkpoint


def is_pretrained_name(text: str) -> bool:
    """Whether this is the name of a trained network: it begins with the prefix of a family.

    An existing file or folder of that name is itself.
    """
    return any(text.startswith(prefix) for prefix in _prefixes()) and not Path(text).exists()


def read_pretrained(text: str) -> tuple[PretrainedNetwork, nn.Module]:
    """What is known of the trained network of this name, and the network, on the CPU.

    Args:
        text: `timm/NAME`, or `timm/NAME=FILE` for weights of your own: a torch.save or safetensors
            file with the tensors of this model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: there is no such network, the weights belong to another one or cannot be
            downloaded, none of its units can be removed, or nothing follows the `=`.
    """
    prefix, read = next((p, r) for p, r in _prefixes().items() if text.startswith(p))
    name, separator, file = text.removeprefix(prefix).partition("=")
    if separator and not file:  # such as a variable of the shell that is not set
        raise ValueError(
            f"{text!r} names no file: give one after the '=', or leave the '=' out for the weights "
            "that are published"
        )
    tensors = read_checkpoint(Path(file).expanduser()).tensors if file else None
    try:
        found: PretrainedNetwork = read(name, tensors)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    network = build(found.arch, found.settings)
    network.load_state_dict(found.tensors)
    return found, network


_Read = Callable[[str, Mapping[str, Tensor] | None], PretrainedNetwork]


def _prefixes() -> dict[str, _Read]:
    return {
        family.pretrained.prefix: family.pretrained.read
        for family in all_families()
        if family.pretrained is not None
    }
