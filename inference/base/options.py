"""Checks of the options that all drivers share: counts, seeds, devices, weights."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import OptionError


def check_options(**options: Any) -> None:
    """Numbers that a driver takes: counts at least their minimum, tolerances not negative."""
    for name, (value, least) in options.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not value >= least:
            raise OptionError(f"{name}: met {value!r}, expected a number of at least {least}")


def check_counts(**options: Any) -> None:
    """Whole numbers that a driver takes, at least their minimum."""
    for name, (value, least) in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise OptionError(f"{name}: met {value!r}, expected a whole number of at least {least}")


def check_seed(seed: Any) -> int:
    """A seed as torch's generators take it."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise OptionError(f"seed: met {seed!r}, expected a whole number from 0 to {2**63 - 1}")
    return int(seed)


def check_device(device: Any, dtype: torch.dtype = torch.float32) -> torch.device:
    """A device that this machine has, and that has numbers of a type."""
    try:
        found = torch.device(device)
        torch.ones(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise OptionError(
            f"device: met {str(device)!r}, which torch cannot use here; give 'cpu' or leave it out"
        ) from None
    try:
        torch.ones(1, dtype=dtype, device=found)
    except (RuntimeError, TypeError):
        raise OptionError(
            f"device: met {str(device)!r}, which has no {str(dtype).removeprefix('torch.')}, and this inference needs "
            f"that: give 'cpu' or leave it out"
        ) from None
    return found


def row_weights(weights: Any, num_rows: int, device: Any) -> Tensor | None:
    """Weights as float64 (N,), or None."""
    if weights is None:
        return None
    try:
        given = weights if isinstance(weights, Tensor) else np.array(weights, dtype=np.float64)
        out = torch.as_tensor(given, dtype=torch.float64, device=device)
    except (TypeError, ValueError) as error:
        raise OptionError(f"weights: met a {type(weights).__name__}, expected one number per row") from error
    if out.shape != (num_rows,):
        raise OptionError(f"weights: met shape {tuple(out.shape)}, expected one weight per row, ({num_rows},)")
    if not torch.isfinite(out).all() or (out < 0).any() or out.sum() <= 0:
        raise OptionError("weights: expected finite numbers, none negative and not all 0")
    return out
