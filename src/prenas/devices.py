"""Devices by name."""

from __future__ import annotations

from difflib import get_close_matches

import torch


def resolve_device(name: str) -> torch.device:
    """A device by name; `auto` takes an accelerator if there is one.

    Raises:
        ValueError: unknown, or not on this machine; names those that are.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    available = ["cpu", *([accelerator.type] if accelerator else [])]
    if name == "auto":
        return torch.device(available[-1])
    try:
        device = torch.device(name)
        if device.type in available:
            torch.empty(0, device=device)
            return device
    except RuntimeError:
        pass
    choices = ["auto", *available]
    near = get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"device {name!r} is not on this machine: choose {', '.join(choices)}{hint}")
