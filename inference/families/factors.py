"""The factors of a mean-field posterior: exponential families by natural parameters, and what is expected under them.

A factor of a latent of batch shape B is an array of natural parameters eta (R, *B, T), R restarts side by side. Its
mean parameters mu = E t(theta) have the same shape. The moments that a model's arguments ask for are linear in mu, so
the gradient of an expected log density with respect to mu is the natural parameter of the optimal factor.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import LOG_2PI, square


class FactorFamily:
    """One exponential family of factors."""

    name: ClassVar[str]
    event_dim = 0  # of the latent's values
    learned = False  # by gradient, and not by an update in closed form

    def size(self, event: torch.Size) -> int:
        """T, for values of an event shape."""
        return 2

    def mean(self, eta: Tensor) -> Tensor:
        """mu = E t(theta) = the gradient of the log normaliser."""
        raise NotImplementedError

    def log_normalizer(self, eta: Tensor) -> Tensor:
        """A(eta), (R, *B)."""
        raise NotImplementedError

    def negentropy(self, eta: Tensor, mu: Tensor) -> Tensor:
        """E log q of the latent, (R,)."""
        inner = (eta * mu).reshape(len(eta), -1).sum(1)
        return inner - self.log_normalizer(eta).reshape(len(eta), -1).sum(1)

    def statistics(self, value: Tensor) -> Tensor:
        """t(value), (*B, T): the mean parameters of a point."""
        raise NotImplementedError

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        """E theta ** power, like the values (R, *B, *event); None where it is not linear in mu."""
        return None

    def log(self, mu: Tensor) -> Tensor | None:
        """E log theta."""
        return None

    def log1m(self, mu: Tensor) -> Tensor | None:
        """E log(1 - theta)."""
        return None

    def covariance(self, mu: Tensor) -> Tensor | None:
        """Of vectors, (R, *B, D, D)."""
        return None

    def log_det(self, mu: Tensor) -> Tensor | None:
        """E log determinant, of matrices."""
        return None

    def coordinates(self, eta: Tensor) -> Tensor:
        """Numbers in which a step goes on as it began: a location, the logarithm of a rate."""
        return eta

    def at(self, coordinates: Tensor) -> Tensor:
        """Natural parameters from `coordinates`."""
        return coordinates

    def distribution(self, eta: Tensor) -> Any:
        """As a Pyro distribution over values, batch (R, *B)."""
        raise NotImplementedError

    def proper(self, eta: Tensor) -> Tensor:
        """Whether eta is that of a distribution, (R, *B) of bool."""
        raise NotImplementedError

    def placed(self, drawn: Tensor) -> Tensor:
        """Draws, or means, of `distribution` in the layout of the latent's values."""
        return drawn

    def center(self, eta: Tensor) -> Tensor:
        """Its mean."""
        return self.placed(self.distribution(eta).mean)


class Point(FactorFamily):
    """A param, or a latent that is not yet a factor: mu is its value, and every expectation is that of the value."""

    name = "Point"
    learned = True

    def power(self, mu: Tensor, power: float) -> Tensor:
        return mu**power

    def log(self, mu: Tensor) -> Tensor:
        return mu.log()

    def log1m(self, mu: Tensor) -> Tensor:
        return (-mu).log1p()

    def covariance(self, mu: Tensor) -> Tensor:
        return mu.new_zeros(*mu.shape, mu.shape[-1])

    def log_det(self, mu: Tensor) -> Tensor:
        return mu.logdet()


class NormalFactor(FactorFamily):
    """t = (x, x^2)."""

    name = "Normal"

    def mean(self, eta: Tensor) -> Tensor:
        variance = -0.5 / eta[..., 1]
        loc = eta[..., 0] * variance
        return torch.stack([loc, loc**2 + variance], -1)

    def log_normalizer(self, eta: Tensor) -> Tensor:
        return -0.25 * eta[..., 0] ** 2 / eta[..., 1] - 0.5 * (-2 * eta[..., 1]).log() + 0.5 * LOG_2PI

    def statistics(self, value: Tensor) -> Tensor:
        return torch.stack([value, value**2], -1)

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        return mu[..., int(power) - 1] if power in (1.0, 2.0) else None

    def coordinates(self, eta: Tensor) -> Tensor:
        return torch.stack([-0.5 * eta[..., 0] / eta[..., 1], (-eta[..., 1]).log()], -1)

    def at(self, coordinates: Tensor) -> Tensor:
        half = coordinates[..., 1].exp()
        return torch.stack([2 * half * coordinates[..., 0], -half], -1)

    def distribution(self, eta: Tensor) -> Any:
        variance = -0.5 / eta[..., 1]
        return dist.Normal(eta[..., 0] * variance, variance.sqrt())

    def proper(self, eta: Tensor) -> Tensor:
        return eta[..., 1] < 0


class GammaFactor(FactorFamily):
    """t = (log x, x), eta = (shape - 1, -rate), against the measure dx."""

    name = "Gamma"

    def mean(self, eta: Tensor) -> Tensor:
        shape, rate = eta[..., 0] + 1, -eta[..., 1]
        return torch.stack([shape.digamma() - rate.log(), shape / rate], -1)

    def log_normalizer(self, eta: Tensor) -> Tensor:
        shape, rate = eta[..., 0] + 1, -eta[..., 1]
        return shape.lgamma() - shape * rate.log()

    def statistics(self, value: Tensor) -> Tensor:
        return torch.stack([value.log(), value], -1)

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        return mu[..., 1] if power == 1.0 else None

    def log(self, mu: Tensor) -> Tensor:
        return mu[..., 0]

    def coordinates(self, eta: Tensor) -> Tensor:
        return torch.stack([eta[..., 0], (-eta[..., 1]).log()], -1)

    def at(self, coordinates: Tensor) -> Tensor:
        return torch.stack([coordinates[..., 0], -coordinates[..., 1].exp()], -1)

    def distribution(self, eta: Tensor) -> Any:
        return dist.Gamma(eta[..., 0] + 1, -eta[..., 1])

    def proper(self, eta: Tensor) -> Tensor:
        return (eta[..., 0] > -1) & (eta[..., 1] < 0)


class InverseGammaFactor(FactorFamily):
    """t = (log x, 1 / x), eta = (-shape - 1, -rate), against the measure dx."""

    name = "InverseGamma"

    def mean(self, eta: Tensor) -> Tensor:
        shape, rate = -eta[..., 0] - 1, -eta[..., 1]
        return torch.stack([rate.log() - shape.digamma(), shape / rate], -1)

    def log_normalizer(self, eta: Tensor) -> Tensor:
        shape, rate = -eta[..., 0] - 1, -eta[..., 1]
        return shape.lgamma() - shape * rate.log()

    def statistics(self, value: Tensor) -> Tensor:
        return torch.stack([value.log(), 1 / value], -1)

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        return mu[..., 1] if power == -1.0 else None

    def log(self, mu: Tensor) -> Tensor:
        return mu[..., 0]

    def coordinates(self, eta: Tensor) -> Tensor:
        return torch.stack([eta[..., 0], (-eta[..., 1]).log()], -1)

    def at(self, coordinates: Tensor) -> Tensor:
        return torch.stack([coordinates[..., 0], -coordinates[..., 1].exp()], -1)

    def distribution(self, eta: Tensor) -> Any:
        return dist.InverseGamma(-eta[..., 0] - 1, -eta[..., 1])

    def center(self, eta: Tensor) -> Tensor:
        shape, rate = -eta[..., 0] - 1, -eta[..., 1]
        return torch.where(shape > 1, rate / (shape - 1).clamp_min(1e-300), rate / (shape + 1))  # mean, or mode

    def proper(self, eta: Tensor) -> Tensor:
        return (eta[..., 0] < -1) & (eta[..., 1] < 0)


class BetaFactor(FactorFamily):
    """t = (log x, log(1 - x)), eta = (a - 1, b - 1), against the measure dx."""

    name = "Beta"

    def mean(self, eta: Tensor) -> Tensor:
        both = eta + 1
        return both.digamma() - both.sum(-1, keepdim=True).digamma()

    def log_normalizer(self, eta: Tensor) -> Tensor:
        both = eta + 1
        return both.lgamma().sum(-1) - both.sum(-1).lgamma()

    def statistics(self, value: Tensor) -> Tensor:
        return torch.stack([value.log(), (-value).log1p()], -1)

    def log(self, mu: Tensor) -> Tensor:
        return mu[..., 0]

    def log1m(self, mu: Tensor) -> Tensor:
        return mu[..., 1]

    def distribution(self, eta: Tensor) -> Any:
        return dist.Beta(eta[..., 0] + 1, eta[..., 1] + 1)

    def proper(self, eta: Tensor) -> Tensor:
        return (eta > -1).all(-1)


class DirichletFactor(FactorFamily):
    """t = log x, eta = concentration - 1, against the measure dx."""

    name = "Dirichlet"
    event_dim = 1

    def size(self, event: torch.Size) -> int:
        return event[0]

    def mean(self, eta: Tensor) -> Tensor:
        concentration = eta + 1
        return concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()

    def log_normalizer(self, eta: Tensor) -> Tensor:
        concentration = eta + 1
        return concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma()

    def statistics(self, value: Tensor) -> Tensor:
        return value.log()

    def log(self, mu: Tensor) -> Tensor:
        return mu

    def distribution(self, eta: Tensor) -> Any:
        return dist.Dirichlet(eta + 1)

    def proper(self, eta: Tensor) -> Tensor:
        return (eta > -1).all(-1)


class MultivariateNormalFactor(FactorFamily):
    """t = (x, the products x_i x_j of the lower triangle), of vectors that lie along one dim of the values."""

    name = "MultivariateNormal"
    event_dim = 1

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis  # negative, of the values: where the vectors lie

    def size(self, event: torch.Size) -> int:
        return event[0] + event[0] * (event[0] + 1) // 2

    @staticmethod
    def width(total: int) -> int:
        """D, from T = D + D (D + 1) / 2."""
        return (math.isqrt(9 + 8 * total) - 3) // 2

    def _parts(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Shift (..., D) and precision (..., D, D), or (1, ..., D, D) where all vectors have the same."""
        size = self.width(eta.shape[-1])
        packed = eta[..., size:]
        first = packed[(slice(0, 1),) * (packed.dim() - 1)]
        if packed.stride()[:-1] == (0,) * (packed.dim() - 1) or bool((packed == first).all()):
            packed = first  # rows that are complete: one Cholesky factor serves them all
        matrix = square(packed, size)
        eye = torch.eye(size, dtype=torch.bool, device=eta.device)
        return eta[..., :size], torch.where(eye, -2 * matrix, -matrix)

    def mean(self, eta: Tensor) -> Tensor:
        shift, precision = self._parts(eta)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        loc = (shift.unsqueeze(-2) @ covariance).squeeze(-2)
        return torch.cat([loc, _packed(covariance) + _products(loc)], -1)

    def log_normalizer(self, eta: Tensor) -> Tensor:
        shift, precision = self._parts(eta)
        tril = torch.linalg.cholesky(precision)
        loc = (shift.unsqueeze(-2) @ torch.cholesky_inverse(tril)).squeeze(-2)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return 0.5 * (loc * shift).sum(-1) - log_det + 0.5 * LOG_2PI * shift.shape[-1]

    def statistics(self, value: Tensor) -> Tensor:
        value = value.movedim(self.axis, -1)
        return torch.cat([value, _products(value)], -1)

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        size = self.width(mu.shape[-1])
        if power == 1.0:
            return mu[..., :size].movedim(-1, self.axis)
        if power != 2.0:
            return None
        step = torch.arange(size, device=mu.device)
        return mu[..., size + step * (step + 3) // 2].movedim(-1, self.axis)  # of the triangle, its diagonal

    def placed(self, drawn: Tensor) -> Tensor:
        return drawn.movedim(-1, self.axis)

    def coordinates(self, eta: Tensor) -> Tensor:
        shift, precision = self._parts(eta)
        loc = (shift.unsqueeze(-2) @ torch.cholesky_inverse(torch.linalg.cholesky(precision))).squeeze(-2)
        return torch.cat([loc, eta[..., loc.shape[-1] :]], -1)

    def at(self, coordinates: Tensor) -> Tensor:
        loc, precision = self._parts(coordinates)
        return torch.cat([(loc.unsqueeze(-2) @ precision).squeeze(-2), coordinates[..., loc.shape[-1] :]], -1)

    def covariance(self, mu: Tensor) -> Tensor:
        size = self.width(mu.shape[-1])
        loc = mu[..., :size]
        return square(mu[..., size:], size) - loc.unsqueeze(-1) * loc.unsqueeze(-2)

    def covariance_sum(self, mu: Tensor, weights: Tensor | None) -> Tensor:
        """The sum of all covariances, each with its weight (...), without making them: (D, D)."""
        size = self.width(mu.shape[-1])
        flat = mu.reshape(-1, mu.shape[-1])
        loc, packed = flat[:, :size], flat[:, size:]
        if weights is None:
            return square(packed.sum(0), size) - loc.mT @ loc
        return square(weights @ packed, size) - (weights.unsqueeze(-1) * loc).mT @ loc

    def distribution(self, eta: Tensor) -> Any:
        shift, precision = self._parts(eta)
        loc = (shift.unsqueeze(-2) @ torch.cholesky_inverse(torch.linalg.cholesky(precision))).squeeze(-2)
        return dist.MultivariateNormal(loc, precision_matrix=precision.expand(*loc.shape, loc.shape[-1]))

    def proper(self, eta: Tensor) -> Tensor:
        return torch.linalg.cholesky_ex(self._parts(eta)[1]).info == 0


class Wishart(dist.Wishart):
    """PyTorch's, without what its `rsample` does after drawing: it takes sound draws for singular, and warns."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self._bartlett_sampling(torch.Size(sample_shape))
        return drawn


class WishartFactor(FactorFamily):
    """t = (log det X, the lower triangle of X), eta = ((df - D - 1) / 2, -V^-1 / 2 with pairs counted twice)."""

    name = "Wishart"
    event_dim = 2

    def size(self, event: torch.Size) -> int:
        return 1 + event[0] * (event[0] + 1) // 2

    def _parts(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Degrees of freedom (...) and the inverse of the scale matrix (..., D, D)."""
        size = (math.isqrt(8 * (eta.shape[-1] - 1) + 1) - 1) // 2
        matrix = square(eta[..., 1:], size)
        eye = torch.eye(size, dtype=torch.bool, device=eta.device)
        return 2 * eta[..., 0] + size + 1, torch.where(eye, -2 * matrix, -matrix)

    def mean(self, eta: Tensor) -> Tensor:
        df, inverse = self._parts(eta)
        size = inverse.shape[-1]
        tril = torch.linalg.cholesky(inverse)
        log_det = -2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = log_det + _multi_digamma(df / 2, size)
        log_det = log_det + size * math.log(2)
        return torch.cat([log_det.unsqueeze(-1), _packed(df[..., None, None] * torch.cholesky_inverse(tril))], -1)

    def log_normalizer(self, eta: Tensor) -> Tensor:
        df, inverse = self._parts(eta)
        size = inverse.shape[-1]
        log_det = 2 * torch.linalg.cholesky(inverse).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return 0.5 * df * (size * math.log(2) - log_det) + torch.special.multigammaln(df / 2, size)

    def statistics(self, value: Tensor) -> Tensor:
        log_det = 2 * torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.cat([log_det.unsqueeze(-1), _packed(value)], -1)

    def power(self, mu: Tensor, power: float) -> Tensor | None:
        size = (math.isqrt(8 * (mu.shape[-1] - 1) + 1) - 1) // 2
        return square(mu[..., 1:], size) if power == 1.0 else None

    def log_det(self, mu: Tensor) -> Tensor:
        return mu[..., 0]

    def distribution(self, eta: Tensor) -> Any:
        df, inverse = self._parts(eta)
        return Wishart(df, precision_matrix=inverse)

    def proper(self, eta: Tensor) -> Tensor:
        df, inverse = self._parts(eta)
        return (torch.linalg.cholesky_ex(inverse).info == 0) & (df > inverse.shape[-1] - 1)


def _multi_digamma(value: Tensor, size: int) -> Tensor:
    steps = torch.arange(size, dtype=value.dtype, device=value.device)
    return (value.unsqueeze(-1) - 0.5 * steps).digamma().sum(-1)


def _products(vector: Tensor) -> Tensor:
    """x_i x_j of the lower triangle."""
    rows, cols = torch.tril_indices(vector.shape[-1], vector.shape[-1], device=vector.device)
    return vector[..., rows] * vector[..., cols]


def _packed(matrix: Tensor) -> Tensor:
    """The lower triangle (..., D (D + 1) / 2) of matrices."""
    rows, cols = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., rows, cols]


@singledispatch
def factor_family(fn: object) -> FactorFamily | None:
    """The family that is conjugate to itself as a prior of this class; None where there is none."""
    return None


for _cls, _family in {
    dist.Normal: NormalFactor(),
    dist.MultivariateNormal: MultivariateNormalFactor(),
    dist.Gamma: GammaFactor(),
    dist.InverseGamma: InverseGammaFactor(),
    dist.Beta: BetaFactor(),
    dist.Dirichlet: DirichletFactor(),
    dist.Wishart: WishartFactor(),
}.items():
    factor_family.register(_cls, lambda fn, _family=_family: _family)
