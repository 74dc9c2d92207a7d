"""What a decoder's outputs say of a row: the distribution of its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.errors import OptionError
from ..data.columns import BINARY, CATEGORICAL, COUNT, NUMERIC
from ..distributions.mixed_rows import MixedRows, Part
from .networks import FLOOR, filled, positive, softplus_inverse, tril_of
from .tabular import Columns

LIKELIHOODS = ("bernoulli", "categorical", "gaussian", "poisson", "negative_binomial", "mixed")
COVARIANCES = ("fixed", "learned", "diagonal", "low_rank", "full")


def _unsaid(x: Tensor) -> Tensor:
    raise NotImplementedError  # `likelihood_of` puts zeros in its place


class Likelihood(NamedTuple):
    """The distribution of a row of D cells, given what a decoder puts out: build one for a family of your own.

    Attributes
    ----------
    num_outputs : callable
        D -> how many numbers it needs of a decoder.
    of : callable
        Those numbers (B, num_outputs) and D -> a Pyro distribution of rows, batch (B,), event (D,). It may declare a
        `pyro.param`.
    start : callable, optional
        Data (N, D) -> outputs (num_outputs,) that suit the mean row, where the decoder starts; zeros without it.
    inputs, num_inputs : callable
        Rows (B, D) -> what an encoder is shown of them, (B, num_inputs): the cells themselves, missing ones at 0; and D
        -> their number.
    params : callable
        Data (N, D) -> starting values of params that `of` and `inputs` declare, by name.
    """

    num_outputs: Callable[[int], int]
    of: Callable[[Tensor, int], Any]
    start: Callable[[Tensor], Tensor] = _unsaid
    inputs: Callable[[Tensor], Tensor] = filled
    num_inputs: Callable[[int], int] = lambda d: d
    params: Callable[[Tensor], Mapping[str, Tensor]] = lambda x: {}
    name: str = "own"

    def __repr__(self) -> str:
        return self.name


def likelihood_of(
    likelihood: str | Likelihood,
    covariance: str = "learned",
    num_categories: int = 2,
    scale: float = 1.0,
    rank: int = 1,
    columns: Columns | None = None,
) -> Likelihood:
    """A likelihood by its name; one that somebody built stays as it is.

    Parameters
    ----------
    columns : Columns, optional
        What they hold, for "mixed".

    Raises
    ------
    OptionError
        No such likelihood, or covariance.
    """
    if isinstance(likelihood, Likelihood):
        if likelihood.start is not _unsaid:
            return likelihood
        count = likelihood.num_outputs
        return likelihood._replace(start=lambda x: torch.zeros(count(x.shape[1])))
    known = [name for name in LIKELIHOODS if columns is not None or name != "mixed"]
    if likelihood not in known:
        raise OptionError(f"likelihood: met {likelihood!r}, expected one of {', '.join(known)}, or a Likelihood")
    if num_categories < 2:
        raise OptionError(f"num_categories: met {num_categories!r}, expected at least 2")
    if likelihood == "mixed":
        assert columns is not None
        return mixed(columns, covariance)
    if likelihood == "bernoulli":
        return Likelihood(lambda d: d, lambda out, d: dist.Bernoulli(logits=out).to_event(1), _log_odds)
    if likelihood == "categorical":
        return Likelihood(
            lambda d: d * num_categories,
            lambda out, d: dist.Categorical(logits=out.unflatten(-1, (d, num_categories))).to_event(1),
            lambda x: torch.zeros(x.shape[1] * num_categories),
        )
    if likelihood == "poisson":
        return Likelihood(lambda d: d, lambda out, d: dist.Poisson(positive(out)).to_event(1), _rate_start)
    if likelihood == "negative_binomial":
        return Likelihood(lambda d: d, _negative_binomial, _rate_start)
    return _gaussian(covariance, scale, rank)


def mixed(columns: Columns, covariance: str = "learned") -> Likelihood:
    """Columns of different kinds, independent given the outputs: normal numbers, binary and categorical labels,
    negative binomial counts.

    An output is 0 where a column of numbers stands at its center, and 1 a standard deviation above; the densities are
    of the table's own units.
    """
    if covariance not in ("learned", "diagonal"):
        raise OptionError(f"covariance: met {covariance!r}, expected one of learned, diagonal where columns are mixed")
    own = covariance == "diagonal"  # a scale of each cell, computed

    def layout(d: int) -> tuple[list[int], ...]:
        return tuple(columns.of_kind(kind, d) for kind in (NUMERIC, BINARY, COUNT, CATEGORICAL))

    def widths(d: int) -> list[int]:
        *others, labels = layout(d)
        numeric, binary, counts = map(len, others)
        return [numeric, numeric * own, binary, counts, *(columns.sizes[place] for place in labels)]

    def of(out: Tensor, d: int) -> MixedRows:
        numeric, binary, counts, labels = layout(d)
        center, unit = columns.measured(d)
        loc, raw, odds, rate, *logits = out.split(widths(d), -1)
        parts = []
        if numeric:
            learned = positive(raw) if own else _learned_scale(len(numeric))
            normal = dist.Normal(center[numeric] + unit[numeric] * loc, (unit[numeric] * learned).expand_as(loc))
            parts.append(Part(numeric, normal.to_event(1)))
        if binary:
            parts.append(Part(binary, dist.Bernoulli(logits=odds).to_event(1)))
        if counts:
            parts.append(Part(counts, _negative_binomial(rate, len(counts), _usual(center[counts]))))
        if labels:
            sizes = tuple(columns.sizes[place] for place in labels)
            padded = [torch.nn.functional.pad(one, (0, max(sizes) - one.shape[-1]), value=-torch.inf) for one in logits]
            parts.append(Part(labels, dist.Categorical(logits=torch.stack(padded, -2)).to_event(1), sizes))
        return MixedRows(tuple(parts))

    def start(x: Tensor) -> Tensor:
        numeric, binary, counts, labels = layout(x.shape[1])
        center = columns.params(x)[f"{columns.prefix}center"][counts]
        parts = [torch.zeros(len(numeric) * (1 + own)), _log_odds(x[:, binary])]
        parts.append(_rate_start(x[:, counts] / _usual(center)))
        for place in labels:
            times = torch.stack([(x[:, place] == code).sum() for code in range(columns.sizes[place])])
            parts.append(((times + 1.0) / (times.sum() + len(times))).log())
        return torch.cat([part.to(torch.get_default_dtype()) for part in parts])

    return Likelihood(lambda d: sum(widths(d)), of, start, columns.features, columns.num_features, columns.params)


def _usual(center: Tensor) -> Tensor:
    """A count of a usual size, from the mean of log(1 + count): rates are multiples of it."""
    return center.expm1().clamp_min(0.01)


def _negative_binomial(out: Tensor, d: int, unit: Tensor | float = 1.0) -> Any:
    """Of mean softplus(out), and a learned number r for each column: variance mean + mean^2 / r."""
    count = pyro.param("concentration", torch.ones(d), constraint=constraints.positive)
    return dist.NegativeBinomial(count, logits=(unit * positive(out)).log() - count.log()).to_event(1)


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
    return dist.Normal(out, _learned_scale(d)).to_event(1)


def _learned_scale(d: int) -> Any:
    return pyro.param("scale", torch.ones(d), constraint=constraints.greater_than(FLOOR))


def _log_odds(x: Tensor) -> Tensor:
    return x.nanmean(0).clamp(0.01, 0.99).logit()


def _rate_start(x: Tensor) -> Tensor:
    return softplus_inverse(x.nanmean(0).clamp_min(0.01))


__all__ = ["COVARIANCES", "LIKELIHOODS", "Likelihood", "likelihood_of", "mixed"]
