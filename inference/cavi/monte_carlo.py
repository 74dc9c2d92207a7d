"""Latents whose optimal factor has no closed form: a normal one in unconstrained numbers, fitted by gradient.

Expectations under it are means over a fixed set of draws, moved and stretched as the factor is (the reparameterization
trick of Kingma and Welling 2014, on the draws of a sample average approximation: Giordano et al. 2024). So the bound
is a smooth function without noise, which coordinate ascent never lowers, and near the exact one: the draws are spread
evenly (scrambled Sobol points), mirrored, and of variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ..base.unconstrained import base_constraint
from ..families.factors import FactorFamily
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import Run

DRAWS = 64
NARROW = -2.0  # log standard deviation of the first factor
AT_ONCE = 1 << 22  # numbers that the draws of a run may come to


def even_draws(num: int, size: int, seed: int) -> Tensor:
    """Standard normal draws (num, size): spread evenly, each with its mirror image, of variance 1."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed)
    points = sobol.draw(num // 2, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    half = torch.special.ndtri(points)
    both = torch.cat([half, -half])
    return both / both.square().mean(0).sqrt()


class DrawnFactor(FactorFamily):
    """Independent normals in unconstrained numbers: eta = mu = (location, log standard deviation), (R, F, 2)."""

    name = "Normal in unconstrained numbers"
    learned = True

    def __init__(self, prior: Any, value: Tensor, known: FactorFamily | None, seed: int) -> None:
        constraint = base_constraint(prior.support)
        from_zero = getattr(constraint, "lower_bound", None) == 0 and not hasattr(constraint, "upper_bound")
        self.constraint = constraints.positive if from_zero else constraint
        self.transform = biject_to(self.constraint)
        origin = self.transform.inv(value.double())
        self.shape, self.known = origin.shape, known
        self.noise = even_draws(DRAWS, origin.numel(), seed)

    def mean(self, eta: Tensor) -> Tensor:
        return eta

    def statistics(self, value: Tensor) -> Tensor:
        loc = self.transform.inv(value).reshape(-1, self.shape.numel())
        return torch.stack([loc, torch.full_like(loc, NARROW)], -1)

    def draws(self, mu: Tensor) -> Tensor:
        """Of the latent's values, (S, R, *shape)."""
        free = mu[..., 0] + mu[..., 1].exp() * self.noise.unsqueeze(1)
        drawn: Tensor = self.transform(free.reshape(*free.shape[:2], *self.shape))
        return drawn

    def power(self, mu: Tensor, power: float) -> Tensor:
        return (self.draws(mu) ** power).mean(0)

    def log(self, mu: Tensor) -> Tensor:
        return self.draws(mu).log().mean(0)

    def log1m(self, mu: Tensor) -> Tensor:
        return (-self.draws(mu)).log1p().mean(0)

    def covariance(self, mu: Tensor) -> Tensor:
        drawn = self.draws(mu)
        apart = drawn - drawn.mean(0)
        return (apart.unsqueeze(-1) * apart.unsqueeze(-2)).mean(0)

    def log_det(self, mu: Tensor) -> Tensor:
        return self.draws(mu).logdet().mean(0)

    def known_statistics(self, mu: Tensor) -> Tensor:
        """E t(theta) in the statistics of the prior's own family, (R, *B, T)."""
        assert self.known is not None
        return self.known.statistics(self.draws(mu)).mean(0)

    def negentropy(self, eta: Tensor, mu: Tensor) -> Tensor:
        """E log q, (R,)."""
        free = mu[..., 0] + mu[..., 1].exp() * self.noise.unsqueeze(1)
        free = free.reshape(*free.shape[:2], *self.shape)
        stretched = self.transform.log_abs_det_jacobian(free, self.transform(free))
        own = (mu[..., 1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return -own - stretched.reshape(*free.shape[:2], -1).sum(-1).mean(0)

    def distribution(self, eta: Tensor) -> Any:
        shape = (*eta.shape[:-2], *self.shape)
        loc, scale = eta[..., 0].reshape(shape), eta[..., 1].exp().reshape(shape)
        if self.constraint is constraints.real:
            found = dist.Normal(loc, scale)
        elif self.constraint is constraints.positive:
            found = dist.LogNormal(loc, scale)
        else:
            found = dist.TransformedDistribution(dist.Normal(loc, scale), [self.transform])
        return found.to_event(len(found.batch_shape) - (eta.dim() - 2))

    def center(self, eta: Tensor) -> Tensor:
        return self.draws(eta).mean(0)

    def proper(self, eta: Tensor) -> Tensor:
        return torch.isfinite(eta).all(-1).all(-1)


class Draws(NamedTuple):
    """What a site that is scored at draws asks of a latent, or of a param."""

    name: str

    @property
    def names(self) -> frozenset[str]:
        """The latent."""
        return frozenset((self.name,))

    @property
    def uses(self) -> list[str]:
        """The latent, once."""
        return [self.name]

    def of(self, means: Mapping[str, Tensor], families: Mapping[str, FactorFamily]) -> Tensor:
        """Its draws (1, S * cells), or the param as it is (1, cells)."""
        family, mu = families[self.name], means[self.name]
        return (family.draws(mu) if isinstance(family, DrawnFactor) else mu).reshape(1, -1)


def key_of(site: str, name: str) -> str:
    """Under which `MeanField.moments` keeps the draws of a latent for a site."""
    return f"{site}.{name}|draws"


class DrawnRuns(NamedTuple):
    """In place of one run of the model: the mean over draws of each scored site's log probability, canonical."""

    factors: dict[str, Tensor]


@dataclass(frozen=True)
class DrawnProgram(Program):
    """A program whose scored sites are scored at every draw of their latents, and averaged.

    Attributes
    ----------
    needs : dict
        Scored site -> latents and params in it, with their shapes.
    fixed : dict
        Values of all others, which those sites do not depend on.
    """

    needs: dict[str, dict[str, torch.Size]] = field(default_factory=dict)
    fixed: Params = field(default_factory=dict)

    def trace(self, params: Params) -> Any:
        """Every scored site at draws."""
        stacked: Params = {}
        for site, shapes in self.needs.items():
            for name, shape in shapes.items():
                if key_of(site, name) in params:
                    stacked[name] = params[key_of(site, name)].reshape(-1, *shape)
        return DrawnRuns(self.averaged(stacked))

    def averaged(self, stacked: Params) -> dict[str, Tensor]:
        """Means over draws, from values (S, *shape), or (1, *shape) of a param."""
        names = [name for name in self.scored if all(one in stacked for one in self.needs[name])]
        moving = {name: value for name, value in stacked.items() if len(value) > 1}
        still = {name: value[0] for name, value in stacked.items() if len(value) == 1}

        def at(values: Params) -> tuple[Tensor, ...]:
            found = super(DrawnProgram, self).run({**self.fixed, **still, **values})
            return tuple(super(DrawnProgram, self).log_factor(found, name) for name in names)

        if not moving:
            return dict(zip(names, at({}), strict=True))
        step = max(1, AT_ONCE // max(1, self.size))
        each = torch.vmap(at, chunk_size=step, randomness="different")(moving)
        return {name: one.mean(0) for name, one in zip(names, each, strict=True)}

    def log_factor(self, trace: Run | DrawnRuns, name: str) -> Tensor:
        return trace.factors[name] if isinstance(trace, DrawnRuns) else super().log_factor(trace, name)
