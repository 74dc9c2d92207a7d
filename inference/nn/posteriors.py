"""What an encoder's outputs say of a row's latent: normal, mixed or bent factors, all with reparameterized draws."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.distributions.transforms.spline_autoregressive import ConditionalSplineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from ..base.errors import OptionError
from ..families.base import LOG_2PI
from .networks import FLOOR, normal_of, num_stats, positive, softplus_inverse

POSTERIORS = ("diagonal", "full", "mixture", "flow")
COMPONENTS = 4  # of a mixture
NARROW = -1.5  # free number of the first scales of a mixture's components
SLOW = 0.2  # logits of weights for each output: one that loses its weight before it has found its place learns no more


class Posterior(NamedTuple):
    """The family of the factor of a latent of some numbers."""

    num_stats: int  # outputs of the encoder
    of: Callable[[Tensor], Any]  # outputs (B, num_stats) -> distribution of vectors (size,)
    networks: dict[str, Callable[[int], nn.Module]]  # of its own, beside the encoder: for `Networks`
    starts: dict[str, Callable[[Tensor], Tensor]]  # outputs of the encoder to begin with, where they matter


def posterior_of(name: str, size: int, components: int = COMPONENTS, network: str = "flow") -> Posterior:
    """A family by its name, for a latent of `size` numbers.

    Parameters
    ----------
    name : str
        "diagonal" or "full": a normal distribution. "mixture": of `components` diagonal normal distributions. "flow":
        noise bent by autoregressive splines (Durkan et al. 2019) whose shapes the encoder sets, then moved and scaled.
    network : str
        Name of the network of a flow.

    Raises
    ------
    OptionError
        No such family.
    """
    if name not in POSTERIORS:
        raise OptionError(f"posterior: met {name!r}, expected one of {', '.join(POSTERIORS)}")
    if name == "mixture":
        if components < 2:
            raise OptionError(f"components: met {components!r}, expected a whole number of at least 2")
        width = components * (2 * size + 1)
        return Posterior(
            width, functools.partial(_mixture, size=size), {}, {"encoder": lambda _: _apart(components, size)}
        )
    if name == "flow":
        bends: Callable[[], Any] = functools.cache(lambda: Bends(size))

        def of(stats: Tensor) -> Flow:
            bent: Any = pyro.module(network, bends())
            return Flow(stats, bent)

        return Posterior(2 * size + CONTEXT, of, {network: lambda _: bends()}, {})
    full = name == "full"
    return Posterior(num_stats(size, full), lambda stats: normal_of(stats, size, full), {}, {})


def free_numbers(fn: Any) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    """The numbers (..., P) that an encoder would have to give for a factor, and the factor of such numbers; None for a
    family of another kind.
    """
    base = getattr(fn, "base_dist", None)
    if isinstance(fn, torch.distributions.Independent) and isinstance(base, dist.Normal) and len(fn.event_shape) == 1:
        return torch.cat([base.loc, _inverse(base.scale)], -1), lambda free: normal_of(free, fn.event_shape[0])
    if isinstance(fn, dist.MultivariateNormal):
        tril = fn.scale_tril
        rows, cols = torch.tril_indices(tril.shape[-1], tril.shape[-1], -1)
        free = torch.cat([fn.loc, _inverse(tril.diagonal(dim1=-2, dim2=-1)), tril[..., rows, cols]], -1)
        return free, lambda free: normal_of(free, fn.event_shape[0], full=True)
    if isinstance(fn, Mixture):
        free = torch.cat([fn.logits.unsqueeze(-1) / SLOW, fn.loc, _inverse(fn.scale)], -1).flatten(-2)
        return free, lambda free: _mixture(free, fn.event_shape[0])
    if isinstance(fn, Flow):
        return fn.stats, lambda free: Flow(free, fn.network)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        inner, transforms = free_numbers(fn.base_dist), fn.transforms
        if inner is not None:
            return inner[0], lambda free: dist.TransformedDistribution(inner[1](free), transforms)
    return None


def _inverse(value: Tensor) -> Tensor:
    """Of `positive`."""
    return softplus_inverse(value - FLOOR)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def _mixture(stats: Tensor, size: int) -> Mixture:
    cells = stats.unflatten(-1, (-1, 2 * size + 1))  # (B, C, 2 K + 1)
    return Mixture(SLOW * cells[..., 0], cells[..., 1 : size + 1], positive(cells[..., size + 1 :]))


def _apart(components: int, size: int) -> Tensor:
    """Outputs of equal weights, and of locations spread as the prior is: from one place all would climb one hill."""
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(components, dtype=torch.float32)
    loc = torch.special.ndtri(points.clamp(0.02, 0.98))
    raw = torch.full((components, size), NARROW)
    return torch.cat([torch.zeros(components, 1), loc, raw], 1).flatten()


class Mixture(dist.TorchDistribution):
    """A mixture of normal distributions of vectors, each of independent numbers.

    Its draws carry gradients. A draw moves with the component that it came from; by the weights it moves so that u(z)
    stays as it is, with u the distribution functions of each number given those before it: dz = - (du/dz)^-1 du
    (implicit reparameterization, Graves 2016; Figurnov, Mohamed and Mnih 2018). Both have the right mean, and the
    first has far less noise than the second has for locations and scales.

    Parameters
    ----------
    logits : Tensor (..., C)
        Of the weights.
    loc, scale : Tensor (..., C, K)
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(loc.shape[:-2], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.logits.softmax(-1).unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        second = self.scale**2 + (self.loc - self.mean.unsqueeze(-2)) ** 2
        return (self.logits.softmax(-1).unsqueeze(-1) * second).sum(-2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        lead = torch.Size(batch_shape)
        parts = (self.loc.expand(*lead, *self.loc.shape[-2:]), self.scale.expand(*lead, *self.scale.shape[-2:]))
        return Mixture(self.logits.expand(*lead, self.logits.shape[-1]), *parts)

    def log_prob(self, value: Tensor) -> Tensor:
        each = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(value.unsqueeze(-2)).sum(-1)
        return (each + self.logits.log_softmax(-1)).logsumexp(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        which = dist.Categorical(logits=self.logits.detach()).sample(torch.Size(sample_shape))  # (..., B)
        index = which[..., None, None].expand(*which.shape, 1, self.loc.shape[-1])
        both = (self.loc.expand(*which.shape, -1, -1), self.scale.expand(*which.shape, -1, -1))
        loc, scale = (cells.gather(-2, index).squeeze(-2) for cells in both)
        value = loc + scale * torch.randn_like(loc)
        return value + self._moved(value.detach()) if self.logits.requires_grad else value

    def _moved(self, value: Tensor) -> Tensor:
        """Zeros whose gradient is that of a draw by the weights."""
        with torch.no_grad():
            away = (value.unsqueeze(-2) - self.loc) / self.scale  # (..., C, K)
            each = -0.5 * away**2 - self.scale.log()
            before = each.cumsum(-1) - each  # log density of the numbers before each, up to a constant
        share = (before + self.logits.unsqueeze(-1)).softmax(-2)  # of the components, given these
        with torch.no_grad():
            lower = (share * torch.special.ndtr(away)).sum(-2)
            sign = torch.where(lower < 0.5, 1.0, -1.0)  # from the nearer tail, where a small number is no difference
            tail = torch.special.ndtr(away * sign.unsqueeze(-2))
        u = (share * tail).sum(-2)  # (..., K)
        with torch.no_grad():
            slope = -away / self.scale  # of each component's log density, by number
            common = torch.einsum("...ck,...cj->...kj", share, slope)
            rise = torch.einsum("...ck,...ck,...cj->...kj", share, tail, slope)
            density = (share * (each - 0.5 * LOG_2PI).exp()).sum(-2)
            density = sign * density.clamp_min(torch.finfo(density.dtype).tiny)
            jacobian = (rise - u.unsqueeze(-1) * common).tril(-1) + torch.diag_embed(density)
        return -torch.linalg.solve_triangular(jacobian, (u - u.detach()).unsqueeze(-1), upper=False).squeeze(-1)


CONTEXT = 16  # numbers by which an encoder bends a flow, beside its location and scale
UNITS, BINS, BOUND = 32, 8, 4.0  # of a flow's two layers; their splines are straight lines beyond the bound


# --- flows ------------------------------------------------------------------------------------------------------------


class Bends(nn.Module):
    """The layers of a flow of vectors of `size` numbers, each a spline of every number given those before it, and what
    the encoder says.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        order: Any = torch.arange(size)
        units = [max(UNITS, 2 * size)] * 2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input_dim = 1")  # one number bends by the context alone
            layers = [
                ConditionalAutoRegressiveNN(size, CONTEXT, units, [BINS, BINS, BINS - 1, BINS], turned)
                for turned in (order, order.flip(0))
            ]
        self.layers = nn.ModuleList(layers).to(torch.float32)

    def given(self, context: Tensor) -> list[Any]:
        """The transforms for some rows."""
        return [
            ConditionalSplineAutoregressive(self.size, layer, count_bins=BINS, bound=BOUND).condition(context)
            for layer in self.layers
        ]


class Flow(dist.TorchDistribution):
    """Normal noise bent by a network, then moved and scaled.

    Parameters
    ----------
    stats : Tensor (..., 2 K + CONTEXT)
        Location, free numbers of the scale, and what the network is told.
    network : Bends
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, stats: Tensor, network: Bends) -> None:
        self.stats, self.network = stats, network
        size = network.size
        loc, raw, context = stats.split([size, size, CONTEXT], -1)
        noise = dist.Normal(torch.zeros_like(loc), 1.0, validate_args=False).to_event(1)
        last = AffineTransform(loc, positive(raw), event_dim=1, cache_size=1)
        self.bent = torch.distributions.TransformedDistribution(noise, [*network.given(context), last], False)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        return Flow(self.stats.expand(*batch_shape, self.stats.shape[-1]), self.network)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.bent.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.bent.log_prob(value)

    def frozen(self) -> Flow:
        """The same distribution, whose arguments pass no gradients."""
        return Flow(self.stats.detach(), copy.deepcopy(self.network).requires_grad_(False))
