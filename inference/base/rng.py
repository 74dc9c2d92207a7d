"""Random numbers that leave the caller's random state as it was."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def forked(when: bool = True) -> AbstractContextManager[None]:
    """For a while draws are drawn aside, on every device; named one by one, for torch warns where there are several."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()), enabled=when)
