"""Random numbers that leave the caller's random state as it was."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def forked(when: bool = True) -> AbstractContextManager[None]:
    """For a while draws are drawn aside, on every device; named one by one, for torch warns where there are several."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()), enabled=when)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that draw for a device."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Draw on from there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
