"""Normal means of many groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import DataError, OptionError
from ...inference.data.columns import column_name, location_and_variance, num_categories, places
from ...inference.data.schema import Schema
from ...inference.pair import Pair
from ..registry import register


class Measurements(NamedTuple):
    """Rows of a table by the parts that its columns play."""

    group: Tensor  # (N,) codes
    y: Tensor  # (N,)
    scale: Tensor  # (N,) known standard deviations, empty where they are not
    groups: int  # how many have names; 0 where they are numbers


@register(
    family="hierarchical",
    summary="the means of many groups, each drawn towards what all have in common",
    data="a table with a column of groups (named 'group', or the first), as text or codes 0, 1, ..., a column of "
    "numbers, and, where it is known, one of the standard deviation of each; a number may be missing",
    inference=("cavi", "svi"),
    references=(
        "Rubin (1981), Journal of Educational Statistics 6, 377-401",
        "Gelman et al. (2013), Bayesian Data Analysis, chapter 5",
    ),
    checks=(
        "dyestuff: the variance within batches is 2451 (Davies and Goldsmith 1972), to 2 %",
        "eight schools: means of the schools by quadrature, to 0.2; the bound is 1.07 nats below log p(y)",
    ),
    example="dyestuff",
)
def hierarchical_normal(scale: str | int | None = None, strength: float = 1.0) -> Pair:
    r"""Hierarchical normal model (Rubin 1981; Gelman et al. 2013, chapter 5).

    .. math::

        \mu &\sim \mathcal{N}(m, s^2), \qquad
            \tau \sim \mathrm{Gamma}(a / 2, a s^2 / 2) \\
        \theta_j &\sim \mathcal{N}(\mu, \tau^{-1}), \qquad j = 1, \dots, J \\
        y_n \mid \text{group } j &\sim \mathcal{N}(\theta_j, \sigma_n^2), \qquad
            \sigma_n \text{ known, or } \sigma_n^{-2} = \lambda \sim \mathrm{Gamma}(a / 2, a s^2 / 2)

    ====================  ====================================================================================
    ``mean`` ()           :math:`\mu`, of the population
    ``between`` ()        :math:`\tau`, precision of the group means around it
    ``within`` ()         :math:`\lambda`, precision of the values in a group; without `scale`
    ``group_mean`` (J,)   :math:`\theta_j`
    ``y`` (N,)            observed
    ====================  ====================================================================================

    `scale` is the column of known standard deviations :math:`\sigma_n`, as where each row is a study with its standard
    error. m and :math:`s^2` are mean and variance of all values; the priors of the precisions count as `strength` (a)
    groups, or values, of that variance.
    """
    if not strength > 0:
        raise OptionError(f"strength: met {strength}, expected a number above 0")

    def model(data: Measurements) -> None:
        center, variance = location_and_variance(data.y)
        prior = dist.Gamma(strength / 2, strength * variance / 2)
        mean = pyro.sample("mean", dist.Normal(center, variance.sqrt()))
        between = pyro.sample("between", prior)
        J = data.groups or num_categories(data.group)
        group_mean = pyro.sample("group_mean", dist.Normal(mean, between**-0.5).expand([J]).to_event(1))
        sd = data.scale if scale is not None else pyro.sample("within", prior) ** -0.5
        with pyro.plate("data", len(data.y)):
            pyro.sample("y", dist.Normal(group_mean[data.group], sd), obs=data.y)

    def initialize(data: Measurements, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Every group at its own mean, half way to that of all."""
        center, _ = location_and_variance(data.y)
        J = data.groups or num_categories(data.group)
        seen = ~data.y.isnan()
        total = torch.full((J,), float(center)).index_add(0, data.group[seen], data.y[seen].double())
        return {"group_mean": total / (1 + torch.bincount(data.group[seen], minlength=J)), "mean": center}

    def arrange(table: Tensor, schema: Schema) -> Measurements:
        columns = schema.columns or ()
        if table.dim() != 2:
            raise DataError(f"data: met shape {tuple(table.shape)}, expected a table with columns group and value")
        place = columns.index("group") if "group" in columns else 0
        known = places(schema, table.shape[1], () if scale is None else (scale,), "scale")
        values = [column for column in range(table.shape[1]) if column not in (place, *known)]
        if len(values) != 1:
            raise DataError(
                f"data: met {len(values)} columns of values beside {column_name(schema, place)} of groups, expected "
                f"one: drop the others, or name the column of standard deviations, scale=..."
            )
        group = _codes(table[:, place], column_name(schema, place))
        names = schema.labels.get(columns[place], ()) if columns else ()
        sd = table[:, known[0]] if known else table.new_empty(0)
        if known and not bool((sd > 0).all()):
            raise DataError(f"{column_name(schema, known[0])} holds standard deviations: expected numbers above 0")
        return Measurements(group, table[:, values[0]], sd, len(names))

    return Pair(model, initialize=initialize, arrange=arrange)


def _codes(column: Tensor, name: str) -> Tensor:
    if bool(column.isnan().any()) or bool((column < 0).any()) or bool((column != column.floor()).any()):
        raise DataError(f"{name} holds groups: expected text, or codes 0, 1, ..., none missing")
    return column.long()
