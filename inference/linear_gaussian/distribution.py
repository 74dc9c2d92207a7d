r"""The marginal of a linear Gaussian site: x = loc + factor e + noise, with e standard normal and summed out.

So x is normal, of covariance ``factor factor' + noise``. To the engine it is one more exponential family, with the
statistics of the multivariate normal: x and its products.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..distributions.missing import marginal_log_prob, observed_part
from ..families.base import Args
from ..families.continuous import MultivariateNormalFamily
from ..families.registry import family


class FactorNormal(TorchDistribution):
    """Normal (D,) with loc (..., D), factor (..., D, E), and noise: independent, of `scale` (..., D), or with the
    Cholesky factor `noise_tril` (..., D, D).
    """

    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, loc: Tensor, factor: Tensor, scale: Tensor | None = None, noise_tril: Tensor | None = None
    ) -> None:
        self.loc, self.factor = loc, factor
        if noise_tril is None:
            assert scale is not None
            self.scale, noise = scale, scale.shape[:-1]
        else:
            self.noise_tril, noise = noise_tril, noise_tril.shape[:-2]
        batch = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2], noise)
        super().__init__(batch, torch.Size(factor.shape[-2:-1]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactorNormal:
        batch_shape = torch.Size(batch_shape)
        new = FactorNormal.__new__(FactorNormal)
        for name, inner in (("loc", 1), ("scale", 1), ("factor", 2), ("noise_tril", 2)):
            if name in self.__dict__:
                value = getattr(self, name)
                setattr(new, name, value.expand(*batch_shape, *value.shape[value.dim() - inner :]))
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        return new

    @property
    def arguments(self) -> Args:
        return {name: getattr(self, name) for name in FactorNormalFamily.arguments if name in self.__dict__}

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def covariance_matrix(self) -> Tensor:
        return covariance(self.arguments)

    @property
    def variance(self) -> Tensor:
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return marginal_log_prob(self, value, torch.ones_like(value, dtype=torch.bool))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        tril = torch.linalg.cholesky(self.covariance_matrix)
        return self.loc + (tril @ torch.randn(shape, dtype=self.loc.dtype).unsqueeze(-1)).squeeze(-1)


def noise_covariance(args: Args) -> Tensor:
    """Covariance (..., D, D) of what the factors leave."""
    if "scale" in args:
        return torch.diag_embed(args["scale"] ** 2)
    return args["noise_tril"] @ args["noise_tril"].mT


def covariance(args: Args) -> Tensor:
    """Covariance (..., D, D) of x."""
    return args["factor"] @ args["factor"].mT + noise_covariance(args)


class FactorNormalFamily(MultivariateNormalFamily):
    arguments: ClassVar[dict[str, int]] = {"loc": 1, "factor": 2, "scale": 1, "noise_tril": 2}
    order: tuple[str, ...] = ()  # learned together (`factored`)
    spread: tuple[str, ...] = ("scale",)

    def cholesky(self, args: Args) -> Tensor:
        return torch.linalg.cholesky(covariance(args))


FAMILY = FactorNormalFamily()
family.register(FactorNormal, lambda fn: FAMILY)


@marginal_log_prob.register(FactorNormal)
def _(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    part = observed_part(value, observed, fn.loc, fn.covariance_matrix)
    return -0.5 * part.distance - part.log_det - 0.5 * observed.sum(-1) * math.log(2 * math.pi)
