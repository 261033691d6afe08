"""Memory that was freed: kept for the next step, given back before processes are forked.

By default glibc gives large blocks back to the system, which fills them with zeros again a moment
later: on a processor, a third of the time of a training step of EfficientNet-Lite0 at 224 pixels.
Elsewhere than on glibc, these functions do nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of options, from <malloc.h>
_NEVER = 2**31 - 1
_LARGEST = (64 * 2**20, 32 * 2**20)
"""Larger blocks go back at once: among kept ones they would leave holes, and triple the process.

glibc 2.36 takes the first number. The limit that mallopt(3) states is the second.
"""

_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
"""Variables of the environment by which a user decides this; see mallopt(3)."""
_TUNABLES = "GLIBC_TUNABLES"


def keep_freed_memory() -> None:
    """Makes the process keep what it frees, unless the user has set how glibc does this.

    This is for a program to decide, not for a library: it holds for the rest of the process.
    """
    libc = _glibc()
    is_set = any(name in os.environ for name in _SETTINGS)
    if libc is not None and not is_set and "glibc.malloc" not in os.environ.get(_TUNABLES, ""):
        any(libc.mallopt(_MMAP_THRESHOLD, largest) for largest in _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Gives back to the system what was kept so far.

    To be called before processes are forked: they share all memory, and each page that this
    process then writes to is copied first, even if it held nothing any more.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
