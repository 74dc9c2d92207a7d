"""Rows to start from: k-means++, rows near others, regressions of random shares of the rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .columns import center_and_variance

SEEDING_ROWS = 20_000  # k-means++ looks at no more rows than this, drawn at random


class TooFewRows(DataError):
    """Fewer distinct rows than centres are wanted."""

    def __init__(self, num_centers: int, num_rows: int) -> None:
        super().__init__(f"k-means++: {num_centers} centres are wanted, the data have only {num_rows} distinct rows")
        self.num_centers, self.num_rows = num_centers, num_rows


def kmeans_plusplus(x: Tensor, num_centers: int, generator: torch.Generator) -> Tensor:
    """Seeds by k-means++ on standardised columns (scikit-learn's), missing cells at their column's mean.

    Parameters
    ----------
    x : Tensor (N, D)
    num_centers : int
        At most the number of distinct rows.
    generator : torch.Generator

    Returns
    -------
    Tensor (num_centers, D), float64

    Raises
    ------
    TooFewRows
        The data have fewer distinct rows than `num_centers`.
    """
    few = len(x) <= SEEDING_ROWS
    seeds = _seeds(x if few else x[torch.randint(len(x), (SEEDING_ROWS,), generator=generator)], num_centers, generator)
    if len(seeds.unique(dim=0)) == num_centers:
        return seeds
    # a row is taken twice only where every distinct one looked at has been taken: look at all that there are
    distinct = x.nan_to_num(nan=float("inf")).unique(dim=0) if x.is_floating_point() else x.unique(dim=0)
    if len(distinct) < num_centers:
        raise TooFewRows(num_centers, len(distinct))
    return _seeds(torch.where(distinct.isinf(), torch.nan, distinct), num_centers, generator)


def _seeds(x: Tensor, num_centers: int, generator: torch.Generator) -> Tensor:
    x = x.to(torch.float64)
    center, variance = center_and_variance(x)
    filled = torch.where(x.isnan(), center, x)
    unit = variance.sqrt().clamp_min(1e-300)
    random_state = int(torch.randint(2**31 - 1, (), generator=generator))
    chosen = greedy_seeds(((filled - center) / unit).cpu().numpy(), num_centers, random_state)
    return filled[torch.as_tensor(chosen, device=x.device)]


def greedy_seeds(x: np.ndarray, num_centers: int, random_state: int) -> np.ndarray:
    """Rows (num_centers,) of a table (N, D) to start from: each is the best of a few drawn by their squared distance
    to the nearest of those before it (Arthur and Vassilvitskii 2007).

    The rows that scikit-learn's `kmeans_plusplus` picks: to import that takes longer than most fits.
    """
    random = np.random.RandomState(random_state)
    tries, ones, norms = 2 + int(np.log(num_centers)), np.ones(len(x)), np.einsum("nd,nd->n", x, x)

    def squared_distances(rows: np.ndarray) -> np.ndarray:
        """Of some rows (B,) to all, (B, N)."""
        found = -2 * (x[rows] @ x.T)
        found += norms[rows, None]
        found += norms
        return np.maximum(found, 0, out=found)

    chosen = np.empty(num_centers, dtype=np.int64)
    chosen[0] = random.choice(len(x), p=ones / len(x))
    nearest = squared_distances(chosen[:1])[0]  # (N,)
    for number in range(1, num_centers):
        drawn = np.searchsorted(np.cumsum(nearest), random.uniform(size=tries) * (nearest @ ones))
        drawn = drawn.clip(max=len(x) - 1)
        after = np.minimum(nearest, squared_distances(drawn))  # (tries, N), were each of them taken
        best = (after @ ones).argmin()
        chosen[number], nearest = drawn[best], after[best]
    return chosen


def near_mean(counts: Tensor, num: int, generator: torch.Generator, spread: float = 0.1) -> Tensor:
    """Profiles (num, V) of counts: the mean row, each cell moved by chance by about a share `spread` of itself.

    From so near a point where all profiles are alike they part along what tells rows apart most; profiles that begin
    as single rows keep to these.
    """
    mean = counts.double().nan_to_num(nan=0.0).mean(0)
    mean = mean.clamp_min(1e-3 * float(mean.mean()) + 1e-12)
    noise = torch.randn(num, len(mean), generator=generator, dtype=torch.float64)
    return mean * (spread * noise).exp()


def near_rows(x: Tensor, num: int, generator: torch.Generator, spread: float = 0.01) -> Tensor:
    """Rows (num, D) of a table drawn at random, none twice before all were, missing cells at their column's mean; each
    cell is moved a little by chance, a share `spread` of its column's standard deviation, so that no two are alike.
    """
    x = (
        torch.where(x.isnan(), x.nanmean(0).nan_to_num(), x)
        if x.is_floating_point()
        else x.to(torch.get_default_dtype())
    )
    order = torch.randperm(len(x), generator=generator)
    noise = torch.randn(num, x.shape[1], generator=generator, dtype=x.dtype)
    return x[order[torch.arange(num) % len(x)]] + spread * x.std(0, correction=0) * noise


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
