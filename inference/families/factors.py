"""The factors of a mean-field posterior: exponential families by natural parameters, and what is expected under them.

A factor of a latent of batch shape B is an array of natural parameters eta (R, *B, T), R restarts side by side. Its
mean parameters mu = E t(theta) have the same shape. The moments that a model's arguments ask for are linear in mu, so
the gradient of an expected log density with respect to mu is the natural parameter of the optimal factor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import LOG_2PI


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
