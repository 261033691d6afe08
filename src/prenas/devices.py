"""Devices by name."""

from __future__ import annotations

from difflib import get_close_matches

import torch

from prenas.processes import local_rank


def resolve_device(name: str) -> torch.device:
    """A device by name; `auto` takes an accelerator if there is one.

    Of several processes on a machine each takes its own accelerator, unless a number is given.

    Raises:
        ValueError: unknown, or not on this machine; names those that are.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    available = ["cpu", *([accelerator.type] if accelerator else [])]
    if name == "auto":
        name = available[-1]
    try:
        device = torch.device(name)
        if accelerator and local_rank() and device == torch.device(accelerator.type):
            if local_rank() >= (count := torch.accelerator.device_count()):
                raise ValueError(
                    f"process {local_rank()} of this machine has no {name} device of its own, "
                    f"there are {count}: start at most {count} processes, or give --device cpu"
                )
            device = torch.device(device.type, local_rank())
        if device.type in available:
            torch.empty(0, device=device)
            return device
    except RuntimeError:
        pass
    choices = ["auto", *available]
    near = get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"device {name!r} is not on this machine: choose {', '.join(choices)}{hint}")
