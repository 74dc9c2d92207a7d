"""Brute force: the joint density of a model at every configuration of its latents, one plain run of the model for each.

Nothing of the engine is used here, neither enumeration nor its handling of missing cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import transform_to

Values = Mapping[str, Tensor]


class Joint(NamedTuple):
    """log p(x_n, z) at every configuration z of one row's latents."""

    configurations: list[dict[str, Tensor]]  # latent -> its value: (), or (M,) inside a further plate
    log_joint: Tensor  # (C, N)
    log_prior: Tensor  # () of the latents that all rows share

    @property
    def log_evidence(self) -> Tensor:
        """log p(x_n), (N,)."""
        return self.log_joint.logsumexp(0)

    @property
    def posterior(self) -> Tensor:
        """p(z | x_n), (C, N)."""
        return (self.log_joint - self.log_evidence).exp()


@contextmanager
def float64() -> Iterator[None]:
    """Models build their own tensors in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope(), pyro.validation_enabled(False), torch.random.fork_rng():
            yield
    finally:
        torch.set_default_dtype(before)


def joint(model: Any, data: Any, params: Values) -> Joint:
    """Run the model once for every configuration of its discrete latents."""
    with float64():
        params = {name: value.double() for name, value in params.items()}
        bound = poutine.substitute(model, data=params)
        first = _sites(poutine.trace(poutine.condition(bound, data=params)).get_trace(data))
        tables = {n: _values(s) for n, s in first.items() if not s["is_observed"]}
        rows, configurations = [], []
        log_prior = torch.zeros(())
        for chosen in itertools.product(*tables.values()):
            fixed = {name: _spread(value, first[name]) for name, value in zip(tables, chosen, strict=True)}
            sites = _sites(poutine.trace(poutine.condition(bound, data={**params, **fixed})).get_trace(data))
            parts = [_by_row(site) for site in sites.values()]
            rows.append(sum(part for part in parts if part.dim()))
            log_prior = sum((part for part in parts if not part.dim()), torch.zeros(()))
            configurations.append(dict(zip(tables, chosen, strict=True)))
        return Joint(configurations, torch.stack(rows), log_prior)


def marginals(found: Joint, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """p(z = k | x_n) of each latent, (N, K), or (N, M, K) inside a further plate."""
    out = {}
    for name, size in sizes.items():
        hot = torch.stack([torch.nn.functional.one_hot(c[name].long(), size) for c in found.configurations])
        out[name] = torch.tensordot(found.posterior, hot.to(found.posterior), ([0], [0]))
    return out


def bound(model: Any, data: Any, params: Values, weights: Tensor | None = None) -> float:
    """log p(x), weighted by row, plus the log density of priors: what exact EM maximises."""
    found = joint(model, data, params)
    rows = found.log_evidence
    return ((rows if weights is None else rows * weights).sum() + found.log_prior).item()


def expected_complete(q: Tensor, found: Joint) -> Tensor:
    """E_q[log p(x, z)] plus the log density of priors, of probabilities q (C, N) of the configurations."""
    return torch.where(q > 0, q * found.log_joint, 0.0).sum() + found.log_prior


def random_values(model: Any, data: Any, seed: int, spread: float = 0.7) -> dict[str, Tensor]:
    """Values of every param and shared latent: a normal draw in unconstrained space around what the model declares."""
    with float64():
        torch.manual_seed(seed)
        out = {}
        for name, site in poutine.trace(model).get_trace(data).nodes.items():
            shared = site["type"] == "sample" and not site["is_observed"] and "data" not in _frames(site)
            if site["type"] == "param":
                constraint = site["kwargs"].get("constraint", constraints.real)
            elif shared and not poutine.util.site_is_subsample(site):
                constraint = site["fn"].support
            else:
                continue
            value, transform = site["value"].detach().double(), transform_to(constraint)
            free = transform.inv(value)
            out[name] = transform(free + spread * torch.randn_like(free))
        return out


def _sites(trace: Any) -> dict[str, Any]:
    nodes = trace.nodes.items()
    return {n: s for n, s in nodes if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}


def _frames(site: Any) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"]}


def _values(site: Any) -> list[Tensor]:
    """Every value of a latent: of each of its cells in a further plate independently."""
    support = site["fn"].enumerate_support(expand=False).flatten()
    inner = [frame.size for frame in sorted(site["cond_indep_stack"], key=lambda f: f.dim) if frame.name != "data"]
    return [torch.stack(c).reshape(inner) for c in itertools.product(support, repeat=math.prod(inner))]


def _dims(site: Any) -> list[tuple[int, int]]:
    shape = site["fn"].batch_shape
    return [(d - len(shape), size) for d, size in enumerate(shape)]


def _spread(value: Tensor, site: Any) -> Tensor:
    shape = [1 if dim == _frames(site)["data"].dim else size for dim, size in _dims(site)]
    return value.reshape(shape).expand(site["fn"].batch_shape)


def _by_row(site: Any) -> Tensor:
    """A site's log density by row, (N,); a scalar for a site outside the data plate."""
    log_prob = cell_log_prob(site["fn"], site["value"]) * site["scale"]
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
    frames = _frames(site)
    if "data" not in frames:
        return log_prob.sum()
    full = [1] * max(-frame.dim for frame in frames.values())
    for frame in frames.values():
        full[frame.dim] = frame.size
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(full)))
    return log_prob.movedim(frames["data"].dim, 0).reshape(frames["data"].size, -1).sum(1)


def cell_log_prob(fn: Any, value: Tensor) -> Tensor:
    """log density of what was observed of a value: NaN cells are left out of the product, or of the normal's blocks."""
    if isinstance(fn, dist.Independent):
        inner = cell_log_prob(fn.base_dist, value)
        return inner.flatten(inner.dim() - fn.reinterpreted_batch_ndims).sum(-1)
    if not value.is_floating_point() or not value.isnan().any():
        return fn.log_prob(value)
    if isinstance(fn, dist.MultivariateNormal):
        return _normal_blocks(fn, value)
    missing = value.isnan()
    log_prob = fn.log_prob(torch.where(missing, value[~missing].flatten()[0], value))
    unseen = missing.flatten(missing.dim() - fn.event_dim).any(-1) if fn.event_dim else missing
    return torch.where(unseen, 0.0, log_prob)


def _normal_blocks(fn: Any, value: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(fn.batch_shape, value.shape[:-1])
    size = value.shape[-1]
    loc, matrix = fn.loc.expand(*shape, size), fn.covariance_matrix.expand(*shape, size, size)
    value, out = value.expand(*shape, size), torch.zeros(shape)
    for place in itertools.product(*map(range, shape)):
        seen = ~value[place].isnan()
        if seen.any():
            block = matrix[place][seen][:, seen]
            out[place] = float(multivariate_normal.logpdf(value[place][seen], loc[place][seen], block))
    return out


class Held(Messenger):
    """Params at given values."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def by_pyro(model: Any, data: Any, values: Values, nesting: int = 1) -> float:
    """log p(data, shared latents) as Pyro's own enumeration has it, with params and shared latents at `values`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope(), pyro.validation_enabled(False), Held(values):
            held = poutine.condition(model, data=dict(values))
            elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
            return -elbo.loss(held, lambda data: None, data)
    finally:
        torch.set_default_dtype(before)
