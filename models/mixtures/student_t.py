"""Mixture of Student's t."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import center_and_variance
from ...inference.data.seeding import kmeans_plusplus
from ...inference.pair import Pair
from ..registry import register

COVARIANCES = ("full", "diagonal")
HEAVIEST, LIGHTEST = 2.0, 200.0  # learned degrees of freedom: a finite variance, and what no data tell from a normal


@register(
    family="mixtures",
    summary="clusters of numeric rows with heavy tails, so that outliers do not pull them",
    data="a table of numbers (N, D), or one column (N,); NaN is missing",
    references=(
        "Peel and McLachlan (2000), Statistics and Computing 10, 339-348",
        "Liu and Rubin (1995), Statistica Sinica 5, 19-39",
    ),
    checks=("one component: the maximum likelihood of a multivariate t, as scipy finds it by quasi-Newton steps",),
    example="iris",
    size="num_components",
    examples=(
        {"num_components": 2, "covariance": "full"},
        {"num_components": 2, "covariance": "diagonal"},
        {"num_components": 3, "covariance": "full", "df": 4.0},
    ),
)
def student_t_mixture(num_components: int = 2, covariance: str = "full", df: float | None = None) -> Pair:
    r"""Mixture of Student's t (Peel and McLachlan 2000).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_n \mid z_n = k &\sim t_{\nu_k}(\mu_k, \Sigma_k)

    ======================  ==================================================================================
    ``weights`` (K,)        :math:`\pi`, on the simplex
    ``loc`` (K, D)          :math:`\mu_k`
    ``scale_tril``          full: the Cholesky factor of :math:`\Sigma_k`, (K, D, D)
    ``scale``               diagonal: (K, D); the columns are then independent t's, each with tails of its own
    ``df`` (K,)             :math:`\nu_k`, between 2 and 200, unless `df` fixes it
    ``z`` (N,)              latent of each row, enumerated
    ``x`` (N, D)            observed
    ======================  ==================================================================================

    A single column (N,) is a mixture of univariate t's: ``loc`` (K,), ``scale`` (K,).
    """
    if covariance not in COVARIANCES:
        raise OptionError(f"covariance: met {covariance!r}, expected one of {', '.join(COVARIANCES)}")
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    if df is not None and not df > 0:
        raise OptionError(f"df: met {df}, expected degrees of freedom above 0, or None to learn them")
    K = num_components

    def model(x: Tensor) -> None:
        D = x.shape[1:]
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x[torch.arange(K) % len(x)].double().nan_to_num())  # (K, D)
        tails = torch.full((K,), float(df or 0.0))
        if df is None:
            tails = pyro.param("df", torch.full((K,), 10.0), constraint=constraints.interval(HEAVIEST, LIGHTEST))
        if D and covariance == "full":
            eye = torch.eye(*D).expand(K, *D, *D).clone()
            tril = pyro.param("scale_tril", eye, constraint=constraints.lower_cholesky)
        else:
            scale = pyro.param("scale", lambda: torch.ones(K, *D), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if not D:
                pyro.sample("x", dist.StudentT(tails[z], loc[z], scale[z]), obs=x)
            elif covariance == "full":
                pyro.sample("x", dist.MultivariateStudentT(tails[z], loc[z], tril[z]), obs=x)
            else:
                pyro.sample("x", dist.StudentT(tails[z].unsqueeze(-1), loc[z], scale[z]).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, and the spread of the whole table for every component."""
        table = x.reshape(len(x), -1)
        spread = center_and_variance(table)[1].sqrt()
        loc = kmeans_plusplus(table, K, generator).reshape(K, *x.shape[1:])
        if x.dim() > 1 and covariance == "full":
            return {"loc": loc, "scale_tril": torch.diag(spread).expand(K, -1, -1)}
        return {"loc": loc, "scale": spread.expand(K, -1).reshape(K, *x.shape[1:])}

    return Pair(model, initialize=initialize)
