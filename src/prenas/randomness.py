"""Named randomness: every draw comes from a generator made from (seed, purpose, position).

No function of the package reads or advances a global generator, so a result depends only on its
recipe, never on what ran before. The one exception is `drawn_generator`, for networks that timm
builds, which have no recipe.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position, e.g. ("shuffle", epoch)."""
    text = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def torch_generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator, so that draws do not depend on the device that uses them."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *position))


def drawn_generator() -> torch.Generator:
    """A CPU generator whose seed is drawn from the global one, as people who use timm expect it."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))


def numpy_generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A NumPy generator; counter-based, so that creating one per sample is cheap."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, *position)))


@contextmanager
def isolated_global_state(seed: int, purpose: str, *position: int) -> Iterator[None]:
    """Seeds the global CPU generators inside the block, and restores them afterwards.

    For code that only knows global randomness: the transforms of a data set, layer constructors.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            reseed_global_state(seed, purpose, *position)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def reseed_global_state(seed: int, purpose: str, *position: int) -> None:
    """Seeds the global CPU generators again, inside a block of `isolated_global_state`.

    This takes a tenth of the time of another block, because the state is saved and restored once
    for many draws.
    """
    number = derive_seed(seed, purpose, *position)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.random.default_generator.manual_seed(number)
