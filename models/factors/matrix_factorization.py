"""Ratings as products of what users like and what items have."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import DataError, OptionError
from ...inference.data.columns import num_categories
from ...inference.data.schema import Schema
from ...inference.pair import Pair
from ..registry import register

COLUMNS = ("item", "rating")
LAYOUTS = ("long", "wide")


@register(
    family="factors",
    summary="ratings of items by users, as products of a few tastes and traits",
    data="a long table with a rating a row and columns user, item, rating; or, with layout='wide', a table of users by "
    "items with NaN where there is no rating",
    inference=("cavi", "svi"),
    references=(
        "Salakhutdinov and Mnih (2008), Probabilistic matrix factorization, NIPS 20, 1257-1264",
        "Lim and Teh (2007), Variational Bayesian approach to movie rating prediction, KDD Cup",
    ),
    checks=("held-out ratings of a simulated table are predicted as well as the noise allows",),
    example="iris",
    examples=({"num_factors": 2, "layout": "wide"},),
)
def probabilistic_matrix_factorization(num_factors: int = 2, layout: str = "long") -> Pair:
    r"""Probabilistic matrix factorization, with biases and a factor for every latent (Lim and Teh 2007).

    .. math::

        v_j &\sim \mathrm{N}(0, \alpha^{-1} I_K), \qquad b_j \sim \mathrm{N}(m, \beta^{-1}) \\
        u_i &\sim \mathrm{N}(0, I_K), \qquad a_i \sim \mathrm{N}(0, \gamma^{-1}) \\
        x_{ij} &\sim \mathrm{N}(u_i^\top v_j + a_i + b_j, \tau^{-1})

    Precisions have Gamma(1, 1) priors in units of the ratings' variance; `m` is their mean.

    ============================  ======================================================
    ``traits`` (J, K)             :math:`v_j` of each item
    ``item_bias`` (J,)            :math:`b_j`
    ``trait_precision`` ()        :math:`\alpha`
    ``item_precision`` ()         :math:`\beta`
    ``user_precision`` ()         :math:`\gamma`
    ``precision`` ()              :math:`\tau`, of the ratings
    ``tastes`` (N, K)             :math:`u_i` of each user, a row
    ``user_bias`` (N,)            :math:`a_i`
    ``rating`` (N, M)             observed
    ============================  ======================================================

    ``fit.predictions(data)`` foretells ratings, each with its standard deviation.
    """
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    if layout not in LAYOUTS:
        raise OptionError(f"layout: met {layout!r}, expected one of {', '.join(LAYOUTS)}")
    K, wide = num_factors, layout == "wide"

    def model(x: Tensor) -> None:
        rating = x if wide else x[..., 1]  # (N, M)
        J = x.shape[1] if wide else num_categories(x[..., 0])
        mean, variance = rating.nanmean(), rating[~rating.isnan()].var()
        traits = pyro.sample("traits", dist.Normal(torch.zeros(J, K), precision("trait", variance) ** -0.5).to_event(2))
        item_scale = precision("item", variance) ** -0.5
        item_bias = pyro.sample("item_bias", dist.Normal(mean, item_scale).expand([J]).to_event(1))
        user = precision("user", variance)
        noise = pyro.sample("precision", dist.Gamma(1.0, variance))
        with pyro.plate("data", len(x)):
            tastes = pyro.sample("tastes", dist.Normal(torch.zeros(K), 1.0).to_event(1))  # (N, K)
            user_bias = pyro.sample("user_bias", dist.Normal(0.0, user**-0.5))
            if wide:
                products, bias = tastes @ traits.T, item_bias
            else:
                item = x[..., 0].nan_to_num(nan=0.0).long()
                products, bias = (tastes.unsqueeze(1) * traits[item]).sum(-1), item_bias[item]
            loc = products + bias + user_bias.unsqueeze(-1)
            pyro.sample("rating", dist.Normal(loc, noise**-0.5).to_event(1), obs=rating)

    def precision(name: str, variance: Tensor) -> Tensor:
        return pyro.sample(f"{name}_precision", dist.Gamma(1.0, variance))

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        rating = x if wide else x[..., 1]
        J = x.shape[1] if wide else num_categories(x[..., 0])
        spread = rating[~rating.isnan()].std() / K**0.5
        return {"traits": spread * torch.randn(J, K, generator=generator, dtype=rating.dtype)}

    def arrange(table: Tensor, schema: Schema) -> Tensor:
        """The columns named item and rating, or the first two: (N, M, 2)."""
        columns = schema.columns or ()
        if table.dim() != 3 or table.shape[-1] < 2:
            raise DataError(
                f"data: met shape {tuple(table.shape)}, expected a rating a row, of three columns: user, item, rating"
            )
        places = [columns.index(name) for name in COLUMNS] if set(COLUMNS) <= set(columns) else [0, 1]
        return table[..., places]

    return Pair(model, initialize=initialize, arrange=None if wide else arrange, by=None if wide else "user")
