"""What a mean field over products of latents expects of each cell: ratings, principal components."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.errors import DataError, ModelError, OptionError
from ..cavi.fit import CONJUGATE
from ..data.schema import Dataset
from ..program.deterministic import Moments
from ..trace.handlers import Bind, base_of, engine_state, run
from ..trace.provenance import known_cells, plain, symbol
from ..trace.structure import Structure
from . import generate
from .compiled import bound
from .conjugate import FactorGuide, factor_guide


class Cells(NamedTuple):
    """What is expected of the observed cells of one site."""

    place: Tensor  # (n,) in the flattened data
    mean: Tensor  # (n,)
    sd: Tensor  # (n,)


def predictions(fit: Any, data: Any = None) -> Moments:
    """Posterior mean and standard deviation of the expected value of each cell, missing ones too, given what is known
    of its row.

    Parameters
    ----------
    fit : Fit
        By CAVI, of a model whose latents multiply (`bayesian_pca`, `probabilistic_matrix_factorization`).
    data : anything ``fit.adapted`` takes, optional
        Rows in place of those of the fit; of a long table, a rating of NaN is one to be foretold.

    Returns
    -------
    Moments
        Mean and sd, each of the data's shape (of a long table, one number for each of its lines, in the order of
        ``fit.impute``); NaN in columns that the model does not observe. The sd leaves the noise out: a new value varies
        by that too.

    Raises
    ------
    OptionError
        The fit has no such posterior.
    """
    dataset = fit.adapted(data)
    found = _expected(fit, dataset)
    if found is None:
        raise OptionError(
            "predictions: met a fit without a mean field over products of latents; use sample_posterior or to_arviz, "
            "whose posterior_predictive holds draws"
        )
    out = torch.full((2, dataset.values.numel()), float("nan"), dtype=torch.float64)
    for cells in found:
        out[0, cells.place], out[1, cells.place] = cells.mean, cells.sd
    mean, sd = out.reshape(2, *dataset.values.shape)
    if fit.pair.by is not None:
        lines = ~dataset.values.isnan().all(-1)
        observed = (~mean[lines].isnan()).any(0)
        mean, sd = (part[lines][:, observed].squeeze(-1) for part in (mean, sd))
    return Moments(mean, sd)


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """Every observed cell at its expected value, E z E w where latents multiply."""
    return _filled(fit, dataset, everywhere=True)


def impute(fit: Any, dataset: Dataset) -> Any:
    """Missing cells at their expected value given the rest of their row."""
    return _filled(fit, dataset, everywhere=False)


def _filled(fit: Any, dataset: Dataset, everywhere: bool) -> Any:
    found = _expected(fit, dataset) if isinstance(dataset.values, Tensor) else None
    if found is None:
        return (generate.reconstruct if everywhere else generate.impute)(fit, dataset)
    out = dataset.values.to(torch.float64).clone().flatten()
    for place, mean, _ in found:
        chosen = torch.ones_like(mean, dtype=torch.bool) if everywhere else out[place].isnan()
        out[place[chosen]] = mean[chosen]
    return generate.filled_in(fit, dataset, out.reshape(dataset.values.shape))


def _expected(fit: Any, dataset: Dataset) -> list[Cells] | None:
    """By site; None where not all sites are products of latents.

    A product of independent latents has as its mean the product of their means, so a run of the model with each latent
    at its mean has the expected location of every cell.
    """
    if fit.guide != CONJUGATE:
        return None
    if not isinstance(dataset.values, Tensor):
        raise DataError("predictions: the data are a structure, expected a table")
    with engine_state(fit.seed), torch.no_grad():
        program = bound(fit, dataset, drawn=True)
        guide, structure = factor_guide(fit, program), program.structure
        field = guide.field
        if set(field.bilinear) != set(structure.observed):
            return None
        values = {**fit.params, **{name: mean for name, (mean, _) in guide.moments().items()}}
        nodes = run(fit.pair.model, symbol(dataset.values, "data"), Bind(values), structure.nesting).nodes
        return [_cells(name, nodes[name], guide, structure) for name in structure.observed]


def _cells(name: str, node: Any, guide: FactorGuide, structure: Structure) -> Cells:
    place = known_cells(node["value"])
    if place is None:
        raise ModelError(f"site '{name}' observes values computed from the data, so they cannot be put back in place")
    rows_dim = structure.data_dim - len(node["fn"].event_shape)
    mean = plain(base_of(node["fn"]).mean).expand(place.shape)
    variance = guide.field.bilinear[name].variances(guide.field.means(guide.state), guide.field.families)
    by_row = [part.movedim(rows_dim, 0) for part in (place, mean)]  # as the entries of a bilinear site lie
    return Cells(by_row[0].flatten(), by_row[1].flatten(), variance.flatten().sqrt())
