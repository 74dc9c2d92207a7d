"""Normal latents of the rows given the data, exactly: moments, draws, distributions, and what they say of x.

Written as u = m + L e (`sum_out`), u given x is normal under each configuration of the enumerated latents, and its
covariance depends on the row only by which cells are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError
from ..data.columns import center_and_variance
from ..distributions.missing import PartlyObserved
from ..program.deterministic import Moments
from ..program.missing_patterns import Patterns, find_patterns
from ..program.program import Program
from ..program.sites import Layout, Params, read_arguments
from ..trace.handlers import Bind, run
from .distribution import FactorNormal, noise_covariance
from .marginalize import Marginal


class Given(NamedTuple):
    """e given the rows, under each of C configurations of the enumerated latents."""

    mean: Tensor  # (C, N, E)
    root: Tensor  # (C, P, E, E) the covariance is root root'
    of_row: Tensor  # (N,) which of the P covariances


class Latent(NamedTuple):
    """A latent as m + L e under each configuration."""

    loc: Tensor  # (C, n, U), n = N or 1
    tril: Tensor  # (C, n, U, E)
    shape: tuple[int, ...]


def arguments_by_row(fn: Any, layout: Layout) -> dict[str, Tensor]:
    """Arguments (C, N or 1, ...) of a site whose latents were summed out."""
    fn = fn.fn if isinstance(fn, PartlyObserved) else fn
    _, args, _ = read_arguments(fn, layout, keep_rows=True)
    assert args is not None
    return {name: _configurations(a.value, layout) for name, a in args.items()}


def _configurations(value: Tensor, layout: Layout) -> Tensor:
    """(e_1..e_M, N or 1, plates of size 1, ...) as (C, N or 1, ...)."""
    count = len(layout.latents)
    value = value.squeeze(tuple(range(count + 1, count + layout.nesting))) if layout.nesting > 1 else value
    value = value.expand(*layout.sizes, *value.shape[count:])
    return value.reshape(-1, *value.shape[count:])


def given_rows(fn: Any, layout: Layout, value: Tensor) -> Given:
    """e given the observed cells of each row of `value` (N, D)."""
    args = arguments_by_row(fn, layout)
    loc, factor, noise = args["loc"], args["factor"], noise_covariance(args)
    value = value.to(torch.float64)
    by_row = factor.shape[1] > 1 or noise.shape[1] > 1
    if by_row:  # every row has a covariance of its own
        masks = value.isnan()
        patterns = Patterns([], torch.arange(len(value)))
        distinct = [((~m).nonzero().flatten(), n) for n, m in enumerate(masks)]
    else:
        patterns = find_patterns(value)
        distinct = [(pattern.seen, n) for n, pattern in enumerate(patterns.distinct)]
    mean = value.new_zeros(len(loc), len(value), factor.shape[-1])
    eye = torch.eye(factor.shape[-1], dtype=torch.float64)
    parts = []
    for seen, number in distinct:
        rows = (patterns.of_row == number).nonzero().flatten()
        own, left = ((t[:, number if t.shape[1] > 1 else 0]) for t in (factor, noise))
        own, left = own[:, seen], left[:, seen][..., seen]
        slope, root = _given_seen(own, left, eye)
        center = (loc[:, rows] if loc.shape[1] > 1 else loc)[..., seen]
        mean[:, rows] = (value[rows][:, seen] - center) @ slope
        parts.append(root.expand(len(loc), *root.shape[1:]))
    return Given(mean, torch.stack(parts, 1), patterns.of_row)


def _given_seen(factor: Tensor, noise: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """The slope (C, d, E) of e on what was seen of x, and a root (C, E, E) of its covariance."""
    if bool((noise.diagonal(dim1=-2, dim2=-1) > 0).all()):
        weighed = torch.linalg.solve(noise, factor) if factor.shape[-2] else factor
        tril = torch.linalg.cholesky(eye + factor.mT @ weighed)
        root = torch.linalg.solve_triangular(tril, eye, upper=False).mT
        return weighed @ root @ root.mT, root
    slope = torch.linalg.solve(factor @ factor.mT + noise, factor)  # of what is seen as it stands, some of e is known
    values, vectors = torch.linalg.eigh(eye - factor.mT @ slope)
    return slope, vectors * values.clamp_min(0).sqrt().unsqueeze(-2)


def explained(fn: Any, layout: Layout, table: Tensor, value: Tensor) -> Tensor:
    """Expected values (N, D) of x given its row, by way of the latents; `table` (N, C) is the posterior."""
    args, found = arguments_by_row(fn, layout), given_rows(fn, layout, value)
    each = args["loc"] + (args["factor"] @ found.mean.unsqueeze(-1)).squeeze(-1)  # (C, N, D)
    return torch.einsum("nc,cnd->nd", table, each)


# --- a program's latents ----------------------------------------------------------------------------------------------


def summed_out(program: Program) -> tuple[str, ...]:
    """Names of the latents that were summed out of a program's model."""
    return tuple(program.model.latents) if isinstance(program.model, Marginal) else ()


def latents_of(program: Program, params: Params) -> dict[str, Latent]:
    """How each follows from e, under one set of params (1, *shape) each."""
    marginal, layout = program.model, program.layout
    assert isinstance(marginal, Marginal)
    met: dict[str, tuple[Tensor, Tensor]] = {}

    def model(data: Any) -> None:
        met.update(marginal.maps(data))

    with torch.no_grad():
        run(model, program.data, Bind({name: value[0] for name, value in params.items()}), layout.nesting)
    out = {}
    for name, (value, slopes) in met.items():
        shape = marginal.latents[name]
        origin = value.reshape(*value.shape[: value.dim() - len(shape)], shape.numel())
        slopes = slopes.reshape(*slopes.shape[: slopes.dim() - len(shape) - 1], shape.numel(), marginal.width)
        parts = []
        for part, inner in ((origin, 1), (slopes, 2)):
            batch = part.shape[: part.dim() - inner]
            kept = batch[len(batch) - layout.nesting - len(layout.latents) :]
            canonical = layout.canonical(part.reshape(*kept, *part.shape[part.dim() - inner :]), inner, keep_rows=True)
            assert canonical is not None
            event = part.shape[part.dim() - inner :]
            canonical = canonical.expand(*canonical.shape[: canonical.dim() - inner], *event)
            parts.append(_configurations(canonical, layout))
        out[name] = Latent(parts[0], parts[1], tuple(shape))
    return out


def given_data(program: Program, params: Params) -> Given:
    """e given the program's rows."""
    (name,) = (n for n in program.structure.observed if _is_marginal(program.structure.trace.nodes[n]["fn"]))
    value = program.layout.rows_first(program.structure.trace.nodes[name]["value"], 1)
    with torch.no_grad():
        fn = program.trace(params).nodes[name]["fn"]
        return given_rows(fn, program.layout, value.reshape(len(value), -1))


def _is_marginal(fn: Any) -> bool:
    return isinstance(fn, FactorNormal)


def _each(program: Program, params: Params) -> Iterator[tuple[str, tuple[int, ...], Tensor, Tensor, Tensor]]:
    """Each latent: its name and shape, its means (C, N, U), covariances (C, P, U, U), and which of these a row has."""
    found = given_data(program, params)
    for name, latent in latents_of(program, params).items():
        mean = latent.loc + (latent.tril @ found.mean.unsqueeze(-1)).squeeze(-1)
        by_row = latent.tril.shape[1] > 1
        root = latent.tril @ (found.root[:, found.of_row] if by_row else found.root)
        of_row = torch.arange(mean.shape[1]) if by_row else found.of_row
        yield name, latent.shape, mean, root @ root.mT, of_row


def normal_moments(program: Program, params: Params, table: Tensor) -> dict[str, Moments]:
    """Posterior mean and standard deviation (N, *shape) of each; `table` (N, C) is the posterior of configurations."""
    out = {}
    for name, shape, mean, covariance, of_row in _each(program, params):
        spread = covariance.diagonal(dim1=-2, dim2=-1)[:, of_row]  # (C, N, U)
        weight = table.mT.unsqueeze(-1)
        center = (weight * mean).sum(0)
        variance = (weight * (spread + (mean - center) ** 2)).sum(0)
        out[name] = Moments(center.reshape(-1, *shape), variance.clamp_min(0).sqrt().reshape(-1, *shape))
    return out


def normal_draws(program: Program, params: Params, configuration: Tensor) -> dict[str, Tensor]:
    """Joint draws (num, N, *shape), given drawn configurations (num, N)."""
    found = given_data(program, params)
    num, rows = configuration.shape
    place = torch.arange(rows)
    noise = torch.randn(num, rows, found.mean.shape[-1])
    out: dict[str, list[Tensor]] = {}
    latents = latents_of(program, params)
    for one, wanted in zip(configuration, noise, strict=True):
        drawn = found.mean[one, place] + (found.root[one, found.of_row] @ wanted.unsqueeze(-1)).squeeze(-1)  # (N, E)
        for name, latent in latents.items():
            at = place if latent.loc.shape[1] > 1 else torch.zeros_like(place)
            to = place if latent.tril.shape[1] > 1 else torch.zeros_like(place)
            value = latent.loc[one, at] + (latent.tril[one, to] @ drawn.unsqueeze(-1)).squeeze(-1)
            out.setdefault(name, []).append(value.reshape(rows, *latent.shape))
    return {name: torch.stack(parts) for name, parts in out.items()}


def normal_posterior(program: Program, params: Params, table: Tensor, name: str) -> Any:
    """The posterior of one latent of each row: normal, or a mixture of normals where discrete latents stand beside."""
    for found, shape, mean, covariance, of_row in _each(program, params):
        if found != name:
            continue
        mean, covariance = mean.movedim(0, 1), covariance[:, of_row].movedim(0, 1)  # (N, C, ...)
        if not shape:
            normal: Any = dist.Normal(mean.squeeze(-1), covariance.squeeze((-2, -1)).sqrt())
        else:
            normal = dist.MultivariateNormal(mean, covariance)
        if table.shape[1] > 1:
            return dist.MixtureSameFamily(dist.Categorical(table), normal)
        if not shape:
            return dist.Normal(normal.loc[:, 0], normal.scale[:, 0])
        return dist.MultivariateNormal(mean[:, 0], covariance[:, 0])
    raise KeyError(name)


class Loadings(NamedTuple):
    """x = loc + load e + noise, under each of C configurations of the enumerated latents."""

    loc: Tensor  # (C, D)
    load: Tensor  # (C, D, E)
    noise: Tensor  # (C, D) variances


def loadings_of(program: Program, params: Params) -> Loadings | None:
    """Of the one site whose normal latents were summed out; None where there is none, or it varies from row to row."""
    sites = [n for n in program.structure.observed if isinstance(program.structure.trace.nodes[n]["fn"], FactorNormal)]
    if not sites:
        return None
    with torch.no_grad():
        args = arguments_by_row(program.trace(params).nodes[sites[0]]["fn"], program.layout)
    if any(value.shape[1] > 1 for value in args.values()) or "scale" not in args:
        return None
    loc, load, scale = (args[name].squeeze(1) for name in ("loc", "factor", "scale"))
    return Loadings(loc, load, scale**2)


class Principal(NamedTuple):
    """The closed form maximum of probabilistic PCA (Tipping and Bishop 1999, 3.2)."""

    loadings: Tensor  # (D, K)
    noise: Tensor  # () standard deviation of what the components leave


def check_factors(x: Tensor, num_factors: int) -> None:
    """Fewer factors than columns, so that something is left to be noise.

    Raises
    ------
    DataError
    """
    width = x.shape[-1] if x.dim() == 2 else 1
    if width <= num_factors:
        raise DataError(
            f"num_factors: met {num_factors} with data of {width} column{'s' * (width != 1)}, expected fewer factors "
            f"than columns"
        )


def principal(covariance: Tensor, num_factors: int) -> Principal:
    """Loadings on the first components of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    noise = values[num_factors:].mean()
    gain = (values[:num_factors] - noise).clamp_min(1e-3 * values[0])
    return Principal(vectors[:, :num_factors] * gain.sqrt(), noise.clamp_min(1e-6 * values[0]).sqrt())


def filled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D) with missing cells at their column's mean; the mean and variance (D,) of each column."""
    center, variance = center_and_variance(x)
    return torch.where(x.isnan(), center, x.to(torch.float64)), center, variance


def covariance_of(rows: Tensor) -> Tensor:
    """Of rows (N, D) without missing cells."""
    away = rows - rows.mean(0)
    return away.mT @ away / max(len(rows), 1)


STEPS = 1000
STILL = 1e-15


class Rotated(NamedTuple):
    """Loadings after a rotation: ``loadings @ rotation`` of those before."""

    loadings: Tensor  # (D, K)
    rotation: Tensor  # (K, K) orthogonal


def varimax(loadings: Tensor, normalize: bool = True) -> Rotated:
    """Rotate loadings so that each factor loads strongly on few columns and hardly on the others (Kaiser 1958).

    Parameters
    ----------
    loadings : Tensor (D, K)
    normalize : bool
        Rows are first divided by their lengths (Kaiser's normalisation), so that columns of small loadings count as
        much as the others.

    Returns
    -------
    Rotated
        Factors in the order of their sums of squares, each with positive loadings in sum. Scores turn with it:
        ``latents["u"].mean @ rotation``.
    """
    loadings = loadings.to(torch.float64)
    count = loadings.shape[1]
    rotation = torch.eye(count, dtype=torch.float64)
    unit = loadings.norm(dim=1, keepdim=True).clamp_min(1e-300) if normalize else 1.0
    rows = loadings / unit
    before = 0.0
    for _ in range(STEPS if count > 1 else 0):
        turned = rows @ rotation
        slope = rows.mT @ (turned**3 - turned * turned.square().mean(0))
        left, values, right = torch.linalg.svd(slope)
        rotation = left @ right
        if values.sum() <= before * (1 + STILL):
            break
        before = float(values.sum())
    turned = loadings @ rotation
    order = turned.square().sum(0).argsort(descending=True)
    sign = torch.where(turned.sum(0) < 0, -1.0, 1.0).to(turned)
    rotation = (rotation * sign)[:, order]
    return Rotated(loadings @ rotation, rotation)
