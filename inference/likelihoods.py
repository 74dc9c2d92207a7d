"""What a decoder's outputs say of a row: the distribution of its cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .errors import OptionError
from .networks import FLOOR, positive, tril_of

LIKELIHOODS = ("bernoulli", "categorical", "gaussian", "poisson", "negative_binomial")
COVARIANCES = ("fixed", "learned", "diagonal", "low_rank", "full")


class Likelihood(NamedTuple):
    """The distribution of a row of D cells."""

    num_outputs: Callable[[int], int]  # that it needs of a decoder, by D
    of: Callable[[Tensor, int], Any]  # outputs (B, num_outputs) and D -> distribution of rows, event (D,)
    start: Callable[[Tensor], Tensor]  # data (N, D) -> outputs (num_outputs,) that suit the mean row


def likelihood_of(
    name: str, covariance: str = "learned", num_categories: int = 2, scale: float = 1.0, rank: int = 1
) -> Likelihood:
    """A likelihood by its name.

    Raises
    ------
    OptionError
        No such likelihood, or covariance.
    """
    if name not in LIKELIHOODS:
        raise OptionError(f"likelihood: met {name!r}, expected one of {', '.join(LIKELIHOODS)}")
    if name == "bernoulli":
        return Likelihood(lambda d: d, lambda out, d: dist.Bernoulli(logits=out).to_event(1), _log_odds)
    if name == "categorical":
        if num_categories < 2:
            raise OptionError(f"num_categories: met {num_categories!r}, expected at least 2")
        return Likelihood(
            lambda d: d * num_categories,
            lambda out, d: dist.Categorical(logits=out.unflatten(-1, (d, num_categories))).to_event(1),
            lambda x: torch.zeros(x.shape[1] * num_categories),
        )
    if name == "poisson":
        return Likelihood(lambda d: d, lambda out, d: dist.Poisson(positive(out)).to_event(1), _softplus_inverse)
    if name == "negative_binomial":
        return Likelihood(lambda d: d, _negative_binomial, _softplus_inverse)
    return _gaussian(covariance, scale, rank)


def _negative_binomial(out: Tensor, d: int) -> Any:
    """Of mean softplus(out), and a learned number r for each column: variance mean + mean^2 / r."""
    count = pyro.param("concentration", torch.ones(d), constraint=constraints.positive)
    return dist.NegativeBinomial(count, logits=positive(out).log() - count.log()).to_event(1)


def _gaussian(covariance: str, scale: float, rank: int) -> Likelihood:
    if covariance not in COVARIANCES:
        raise OptionError(f"covariance: met {covariance!r}, expected one of {', '.join(COVARIANCES)}")
    if not scale > 0:
        raise OptionError(f"scale: met {scale!r}, expected a number above 0")
    if rank < 1:
        raise OptionError(f"rank: met {rank!r}, expected at least 1")

    def start(x: Tensor, extra: int) -> Tensor:
        return torch.cat([x.nanmean(0), torch.zeros(extra)])

    if covariance == "fixed":
        return Likelihood(lambda d: d, lambda out, d: dist.Normal(out, scale).to_event(1), lambda x: start(x, 0))
    if covariance == "learned":
        return Likelihood(lambda d: d, _learned, lambda x: start(x, 0))
    if covariance == "diagonal":
        return Likelihood(
            lambda d: 2 * d,
            lambda out, d: dist.Normal(out[..., :d], positive(out[..., d:])).to_event(1),
            lambda x: start(x, x.shape[1]),
        )
    if covariance == "low_rank":
        return Likelihood(
            lambda d: d * (2 + rank),
            lambda out, d: dist.LowRankMultivariateNormal(
                out[..., :d], out[..., 2 * d :].unflatten(-1, (d, rank)), positive(out[..., d : 2 * d]) ** 2
            ),
            lambda x: start(x, x.shape[1] * (1 + rank)),
        )
    return Likelihood(
        lambda d: d + d * (d + 1) // 2,
        lambda out, d: dist.MultivariateNormal(out[..., :d], scale_tril=tril_of(out[..., d:], d)),
        lambda x: start(x, x.shape[1] * (x.shape[1] + 1) // 2),
    )


def _learned(out: Tensor, d: int) -> Any:
    scale = pyro.param("scale", torch.ones(d), constraint=constraints.greater_than(FLOOR))
    return dist.Normal(out, scale).to_event(1)


def _log_odds(x: Tensor) -> Tensor:
    return x.nanmean(0).clamp(0.01, 0.99).logit()


def _softplus_inverse(x: Tensor) -> Tensor:
    mean = x.nanmean(0).clamp_min(0.01)
    return mean + torch.log(-torch.expm1(-mean))


__all__ = ["COVARIANCES", "LIKELIHOODS", "Likelihood", "likelihood_of"]
