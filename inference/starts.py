"""Where a fit starts: seeds for centres, and starting values of params for each restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .columns import center_and_variance
from .data import DataError
from .errors import ModelError
from .pair import Initialize, Pair, Start
from .structure import Structure, double

FAR = 30.0  # a boundary, such as a probability of 0, in unconstrained space
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
    from sklearn.cluster import kmeans_plusplus as seed_centers

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

    With ``pair.initialize`` each restart draws its own, or takes the next that it yields; otherwise the first start is
    what the model declares, and the others are jittered around it. `start` overrules the first.
    """
    declared = {name: double(param.value) for name, param in structure.params.items()}
    told = start is not None and restarts == 1 and start.keys() >= declared.keys()
    drawn = each_start(None if told else pair.initialize, data, generator, structure)
    starts: list[dict[str, Tensor]] = []
    last = declared  # that was not jittered
    for number in range(restarts):
        found = next(drawn, None)
        if found is not None:
            last = {**declared, **_checked(found, declared)}
        starts.append(jitter(last, structure, generator) if found is None and number else last)
    starts[0] = {**starts[0], **_checked(start or {}, declared, "start")}
    return {name: torch.stack([one[name] for one in starts]) for name in declared}


def jitter(values: Mapping[str, Tensor], structure: Structure, generator: torch.Generator) -> dict[str, Tensor]:
    """Values moved by a standard normal draw in unconstrained space (in units of the param's own spread, where it is
    free).
    """
    out = {}
    for name, value in values.items():
        transform = transform_to(structure.params[name].constraint)
        free = transform.inv(value).nan_to_num(posinf=FAR, neginf=-FAR)
        unit = free.std().item() if free.numel() > 1 else 1.0
        noise = torch.randn(free.shape, generator=generator, dtype=free.dtype).to(free.device)
        out[name] = transform(free + noise * (unit if unit > 1 else 1.0))
    return out


def each_start(
    initialize: Initialize | None, data: Any, generator: torch.Generator, structure: Structure | None = None
) -> Iterator[Start]:
    """What `initialize` gives for each restart in turn; nothing where there is none."""
    while initialize is not None:
        found = _drawn(initialize, data, generator, structure)
        if isinstance(found, Iterator):
            yield from found
            return
        yield found


def _drawn(
    initialize: Initialize, data: Any, generator: torch.Generator, structure: Structure | None
) -> Start | Iterator[Start]:
    """Starting values drawn by the model's own `initialize`, which knows no names of latents."""
    try:
        return initialize(data, generator)
    except TooFewRows as error:
        latents = structure.latents if structure else {}
        sizes = {name: latent.cardinality for name, latent in latents.items()}
        owner = next((name for name, size in sizes.items() if size == error.num_centers), None)
        if owner is None:
            raise
        raise DataError(
            f"latent '{owner}' has {error.num_centers} values, the data only {error.num_rows} distinct rows: "
            f"ask for fewer values"
        ) from None


def _checked(given: Mapping[str, Any], declared: dict[str, Tensor], source: str = "initialize") -> dict[str, Tensor]:
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
