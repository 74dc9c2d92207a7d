"""A mean field over a model's latents, derived from the model (Blei, Kucukelbir and McAuliffe 2017).

The enumerated latents of a row keep their exact joint posterior. Every latent that rows share gets a factor of its
prior's family. log p is linear in the statistics of each, so the optimal factor, all else held, has as its natural
parameter the gradient of E log p with respect to its mean parameters: that gradient is all the derivation there is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import NotConjugate
from ..families.expected import Expected
from ..families.factors import FactorFamily, MultivariateNormalFactor, Point
from ..program.estep import Expectations, expectations
from ..program.program import Program
from ..program.sites import Argument, Params, Site
from ..trace.handlers import Param
from .bilinear import Bilinear
from .moments import Families, Means, Source, expected
from .monte_carlo import DrawnFactor, Draws, key_of
from .stick_breaking import LogLinear


class Moment(NamedTuple):
    """One expectation that a site asks of one of its arguments."""

    site: str
    argument: str
    source: Source | LogLinear | Draws
    moment: str

    def under(self, means: Means, families: Families) -> Tensor:
        """Its value under a mean field, (R, cells)."""
        if isinstance(self.source, LogLinear):
            return self.source.log(means, families)
        if isinstance(self.source, Draws):
            return self.source.of(means, families)
        try:
            return expected(self.source, self.moment, means, families)
        except NotConjugate as error:
            error.site = self.site
            raise


class Prior(NamedTuple):
    """A shared latent's own density in expectation."""

    family: Expected
    args: dict[str, Argument]
    batch: torch.Size  # of the prior

    def natural(self, moments: Params) -> tuple[Tensor, Tensor]:
        """E eta (R, *batch, T) and E A (R, *batch)."""
        eta, log_normalizer = self.family.natural({name: a.of(moments) for name, a in self.args.items()})
        return eta, log_normalizer.expand(len(log_normalizer), *self.batch)

    def log_prob(self, stats: Tensor, moments: Params) -> Tensor:
        """E log p, (R,), from E t."""
        eta, log_normalizer = self.natural(moments)
        return _each(stats * eta) - _each(log_normalizer)


class DrawnPrior(NamedTuple):
    """A shared latent's own density where it has no closed form in expectation: the mean over draws."""

    name: str
    names: frozenset[str]  # the latent, and whatever its prior depends on
    density: Callable[[Params], Tensor]  # () at values of these

    def log_prob(self, moments: Params, shapes: Mapping[str, torch.Size]) -> Tensor:
        """E log p, (1,)."""
        found = {n: moments[key_of(self.name, n)].reshape(-1, *shapes[n]) for n in self.names}
        moving = {n: value for n, value in found.items() if len(value) > 1}
        still = {n: value[0] for n, value in found.items() if len(value) == 1}
        return torch.vmap(lambda values: self.density({**still, **values}))(moving).mean(0, keepdim=True)


@dataclass(frozen=True)
class MeanField:
    """A model in expectation.

    Attributes
    ----------
    params : dict
        Every shared latent and param, as the model declares it.
    terms : dict
        Sites of families in expectation, whose arguments are gathered from `moments`.
    families : dict
        Latent -> family of its factor; params are `Point`.
    priors : dict
        Latent -> its own density.
    wanted : dict
        Key -> the moment that `moments` keeps under it.
    bilinear : dict
        Observed sites whose location multiplies latents.
    compiled : Program, optional
        The model on its rows; none of a graph, whose nodes meet in pairs.
    """

    params: dict[str, Param]
    terms: dict[str, Site]
    families: dict[str, FactorFamily]
    priors: dict[str, Prior | DrawnPrior]
    wanted: dict[str, Moment]
    bilinear: dict[str, Bilinear]
    compiled: Program | None = None

    @property
    def program(self) -> Program:
        """The model on its rows."""
        assert self.compiled is not None
        return self.compiled

    def moments(self, means: Means, sites: Collection[str] | None = None) -> Params:
        """Everything that arguments are gathered from, (R, cells); of some sites."""
        return {
            key: flat(one.under(means, self.families))
            for key, one in self.wanted.items()
            if sites is None or one.site in sites
        }

    def starts(self, values: Params) -> Params:
        """Mean parameters of factors that stand at points, and params as they are."""
        return {
            name: value if isinstance(self.families[name], Point) else self.families[name].statistics(value)
            for name, value in values.items()
        }

    def means(self, state: Params) -> Params:
        """Mean parameters from natural ones."""
        return {
            name: value if isinstance(self.families[name], Point) else self.families[name].mean(value)
            for name, value in state.items()
        }

    def statistics(self, name: str, means: Means) -> Tensor:
        """E t(theta) in the statistics of the latent's prior."""
        family, prior, mu = self.families[name], self.priors[name], means[name]
        if isinstance(family, DrawnFactor):
            return family.known_statistics(mu)
        assert isinstance(prior, Prior)
        if isinstance(family, MultivariateNormalFactor) and prior.family.event_dim == 0:
            first, second = family.power(mu, 1.0), family.power(mu, 2.0)
            assert first is not None
            assert second is not None
            return torch.stack([first, second], -1)
        return mu

    def touching(self, name: str) -> frozenset[str]:
        """Sites whose density speaks of a latent, its own prior among them."""
        plain = {one.site for one in self.wanted.values() if name in one.source.names}
        return frozenset(plain | {site for site, one in self.bilinear.items() if name in one.uses} | {name})

    def log_prob(self, means: Means, expected_stats: Expectations, sites: Collection[str]) -> Tensor:
        """E log p of some sites and priors, up to base measures, (R,). Gradients flow to `means`."""
        moments = self.moments(means, sites)
        total = torch.zeros((), dtype=torch.float64)
        for name, site in self.terms.items():
            if name in sites:
                s1, s0 = expected_stats.sums[name]
                eta, log_normalizer = site.natural(site.arguments(moments))
                total = total + _each(s1 * eta) - _each(s0 * log_normalizer)
        total = total + self.products(means, sites)
        for name, prior in self.priors.items():
            if name in sites:
                total = total + self.log_prior(name, prior, moments, means)
        drawn = [name for name in self.compiled.scored if name in sites] if self.compiled is not None else []
        if drawn:
            runs = self.program.trace(moments)
            for name in drawn:
                counts = expected_stats.weights[name]
                total = total + torch.where(counts > 0, counts * self.program.log_factor(runs, name), 0.0).sum()
        return total

    def log_prior(self, name: str, prior: Prior | DrawnPrior, moments: Params, means: Means) -> Tensor:
        """E log p of one shared latent, (R,)."""
        if isinstance(prior, DrawnPrior):
            return prior.log_prob(moments, self.shapes)
        return prior.log_prob(self.statistics(name, means), moments)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the shared latents' and params' values."""
        return {name: param.value.shape for name, param in self.params.items()}

    def negentropy(self, state: Params) -> Tensor:
        """E log q of the factors that are fitted by gradient, (R,)."""
        found = [self.families[n].negentropy(state[n], state[n]) for n in self.priors if self.families[n].learned]
        return sum(found, torch.zeros((), dtype=torch.float64))

    def products(self, means: Means, sites: Collection[str] | None = None) -> Tensor:
        """E log p of bilinear sites, (R,)."""
        found = [b.log_prob(means, self.families) for n, b in self.bilinear.items() if sites is None or n in sites]
        return sum(found, torch.zeros((), dtype=torch.float64))

    def at_points(self, values: Params) -> float:
        """log p(x) and the log density of the latents where each factor stands at a point, (1, *shape) each."""
        means, program = self.starts(values), self.program
        moments = self.moments(means)
        total = self.products(means).sum()
        if program.products or program.latents or program.scored:
            total = total + expectations(program, moments).log_prob.sum()
        return float(total + sum(self.log_prior(n, prior, moments, means).sum() for n, prior in self.priors.items()))

    def cost(self, state: Params, means: Means) -> Tensor:
        """E log q - E log p of the shared latents, (R,): what the bound pays for them."""
        moments = self.moments(means, self.priors)
        total = torch.zeros((), dtype=torch.float64)
        for name, prior in self.priors.items():
            own = self.families[name].negentropy(state[name], means[name])
            total = total + own - self.log_prior(name, prior, moments, means)
        return total

    def update(self, name: str, means: Means, stats: Expectations) -> Tensor:
        """The optimal natural parameter of one factor, all others held, (R, *B, T)."""
        with torch.enable_grad():
            leaf = means[name].detach().requires_grad_()
            value = self.log_prob({**means, name: leaf}, stats, self.touching(name)).sum()
            (eta,) = torch.autograd.grad(value, leaf)
        return eta


def _each(terms: Tensor) -> Tensor:
    """Summed over all but the restarts, (R,)."""
    return flat(terms).sum(1)


def flat(tensor: Tensor) -> Tensor:
    """(R, cells)."""
    return tensor.reshape(len(tensor), -1)
