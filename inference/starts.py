"""Where a fit starts: seeds for centres, and starting values of params for each restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .columns import center_and_variance
from .errors import ModelError
from .pair import Pair
from .structure import Structure, double

SEEDING_ROWS = 20_000  # k-means++ looks at no more rows than this, drawn at random


def kmeans_plusplus(x: Tensor, num_centers: int, generator: torch.Generator) -> Tensor:
    """Seeds by k-means++ on standardised columns (scikit-learn's), missing cells at their column's mean.

    Parameters
    ----------
    x : Tensor (N, D)
    num_centers : int
        At most the number of distinct rows looked at.
    generator : torch.Generator

    Returns
    -------
    Tensor (num_centers, D), float64
    """
    from sklearn.cluster import kmeans_plusplus as seed_centers

    if len(x) > SEEDING_ROWS:
        x = x[torch.randint(len(x), (SEEDING_ROWS,), generator=generator)]
    x = x.to(torch.float64)
    center, variance = center_and_variance(x)
    filled = torch.where(x.isnan(), center, x)
    unit = variance.sqrt().clamp_min(1e-300)
    random_state = int(torch.randint(2**31 - 1, (), generator=generator))
    _, chosen = seed_centers(((filled - center) / unit).cpu().numpy(), num_centers, random_state=random_state)
    return filled[torch.as_tensor(chosen, device=x.device)]


def starting_values(
    pair: Pair,
    data: Any,
    structure: Structure,
    restarts: int,
    generator: torch.Generator,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Starting values of every param, (R, *shape) each.

    With ``pair.initialize`` each restart draws its own; otherwise the first start is what the model declares, and the
    others are jittered around it. `start` overrules the first.
    """
    declared = {name: double(param.value) for name, param in structure.params.items()}
    starts = []
    for number in range(restarts):
        if pair.initialize is not None:
            starts.append({**declared, **_checked(pair.initialize(data, generator), declared, "initialize")})
        else:
            starts.append(declared if number == 0 else jitter(declared, structure, generator))
    starts[0] = {**starts[0], **_checked(start or {}, declared, "start")}
    return {name: torch.stack([one[name] for one in starts]) for name in declared}


def jitter(values: Mapping[str, Tensor], structure: Structure, generator: torch.Generator) -> dict[str, Tensor]:
    """Values moved by a standard normal draw in unconstrained space (in units of the param's own spread, where it is
    free).
    """
    out = {}
    for name, value in values.items():
        transform = transform_to(structure.params[name].constraint)
        free = transform.inv(value)
        unit = free.std().item() if free.numel() > 1 else 1.0
        noise = torch.randn(free.shape, generator=generator, dtype=free.dtype).to(free.device)
        out[name] = transform(free + noise * (unit if unit > 1 else 1.0))
    return out


def _checked(given: Mapping[str, Any], declared: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    out = {}
    for name, value in given.items():
        if name not in declared:
            raise ModelError(
                f"{source}: a value for '{name}', which the model does not declare: it has {sorted(declared)}"
            )
        value = torch.as_tensor(value).to(declared[name])
        if value.shape != declared[name].shape:
            raise ModelError(
                f"{source}: '{name}' has shape {tuple(value.shape)}; the model declares {tuple(declared[name].shape)}"
            )
        out[name] = value
    return out


def random_regressions(
    inputs: Tensor, response: Tensor, num: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares lines through small samples of rows: intercepts (num,), slopes (num, P) and one spread of all.

    The spread is the residual standard deviation of the line through all rows, from which every component starts.
    """
    seen = (~response.isnan()).nonzero().flatten()
    x = torch.cat([torch.ones(len(seen), 1), inputs[seen].double()], 1)
    y = response[seen].double()
    size = min(len(seen), 2 * x.shape[1])
    rows = torch.stack([torch.randperm(len(seen), generator=generator)[:size] for _ in range(num)])
    whole = torch.linalg.pinv(x) @ y
    lines = torch.stack([whole + torch.linalg.pinv(x[own]) @ (y[own] - x[own] @ whole) for own in rows])
    # half way to the line of all rows: a line through few rows alone may lie far from every row
    lines = 0.5 * (lines + whole)
    return lines[:, 0], lines[:, 1:], (y - x @ whole).square().mean().sqrt()
