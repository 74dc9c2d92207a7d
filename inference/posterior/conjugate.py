"""What CAVI leaves: a product of conjugate factors over the latents that rows share, and of each row's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..base.errors import DataError, OptionError
from ..base.rng import forked
from ..base.unconstrained import Parts
from ..cavi.derivation import mean_field
from ..cavi.mean_field import MeanField
from ..cavi.sweeps import Sweeps
from ..data.schema import Dataset
from ..families.factors import Point as PointFactor
from ..optimize.modes import Cells as LabelCells
from ..optimize.modes import label_cells
from ..program.deterministic import Moments
from ..program.posteriors import marginals
from ..program.program import Program
from ..program.sites import Params
from ..svi.guide import Sampled
from ..trace.handlers import Bind, base_of, run
from ..trace.provenance import plain, symbol
from . import guided
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .compiled import bound
from .exact import observed_values
from .generate import places_of, predictive, replicates
from .guided import Opened, rows_first

LOCAL_SWEEPS = 1_000  # at most, over several latents of a row


@dataclass(frozen=True)
class FactorGuide:
    """Independent factors by natural parameters.

    Attributes
    ----------
    field : MeanField
        The model in expectation, on the data asked about.
    state : dict
        Latent -> natural parameters (1, *B, T); param -> value (1, *shape).
    """

    field: MeanField
    state: Parts

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int, density: bool = True) -> Sampled:
        """Draws of every factor; their log density where that is asked for."""
        structure = self.field.program.structure
        values: Parts = {}
        log_q, log_q_rows = torch.zeros(num, dtype=torch.float64), torch.zeros(num, 1, dtype=torch.float64)
        for name in self.field.priors:
            family, factor = self.field.families[name], self.factor(name)
            drawn = factor.sample((num,))
            values[name] = family.placed(drawn)
            if name in structure.params:
                values[name] = values[name].reshape(num, *structure.params[name].value.shape)
            if density:
                terms = factor.log_prob(drawn)
                if name in structure.params:
                    log_q = log_q + terms.reshape(num, -1).sum(1)
                else:
                    rows_dim = structure.data_dim - (self.priors_event(name) - family.event_dim)
                    log_q_rows = log_q_rows + terms.movedim(rows_dim, 1).reshape(num, structure.num_rows, -1).sum(2)
        return Sampled(values, log_q, log_q_rows, -log_q, -log_q_rows, {})

    def priors_event(self, name: str) -> int:
        """Event dims of a latent's own prior."""
        return len(self.field.program.structure.trace.nodes[name]["fn"].event_shape)

    def factor(self, name: str) -> Any:
        """One factor as a Pyro distribution."""
        return self.field.families[name].distribution(self.state[name][0])

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each continuous latent of a row, like its values."""
        out = {}
        for name in self.field.program.structure.continuous:
            family, factor = self.field.families[name], self.factor(name)
            out[name] = family.placed(factor.mean), family.placed(factor.variance.sqrt())
        return out

    def marginals(self) -> dict[str, Tensor]:
        """q of each enumerated latent of a row: probabilities by row."""
        if not self.field.program.latents:
            return {}
        with torch.no_grad():
            moments = self.field.moments(self.field.means(self.state))
        return marginals(self.field.program, moments)


@dataclass(frozen=True)
class Conjugate(Posterior):
    """Conjugate factors, by CAVI."""

    fit: Fitted
    dataset: Dataset | None = None

    @cached_property
    def at(self) -> Opened:
        """The program on the data, with the factors there; those on the rows that were fitted are kept."""
        fit, program = self.fit, bound(self.fit, self.data, drawn=True)
        learned = {n: v.unsqueeze(0) for n, v in fit.params.items() if program.structure.params[n].prior is None}
        held, here = fit.compiled, program is fit.compiled.own.get(True)
        guide = held.factors if here else None
        if guide is None:
            with forked():  # so that draws come out the same whether it was kept
                guide = self._guide(program)
        held.factors = guide if here else held.factors
        return Opened(program, guide, {}, learned)

    def _guide(self, program: Program) -> FactorGuide:
        fit, structure = self.fit, program.structure
        derived = mean_field(fit.pair.model, program.data, structure, fallback=True)
        shared = {
            name: fit.params[name] if isinstance(derived.families[name], PointFactor) else fit.guide_parts[name]
            for name in structure.params
        }
        state = {name: value.unsqueeze(0) for name, value in shared.items()}
        return FactorGuide(derived, {**state, **of_rows(derived, state)})

    @property
    def guide(self) -> FactorGuide:
        assert isinstance(self.at.sampler, FactorGuide)
        return self.at.sampler

    def log_evidence(self) -> Tensor:
        return guided.log_evidence(self.at)

    def marginals(self) -> Latents:
        program, guide = self.at.program, self.guide
        found = {n: [rows_first(program, n, part) for part in both] for n, both in guide.moments().items()}
        return {**guide.marginals(), **{n: Moments(*both) for n, both in found.items()}}

    def factor(self, site: str) -> Any:
        return self.guide.factor(site) if site in self.at.latents else None

    def shared(self, num: int) -> Params:
        return guided.shared_of(self.fit, guided.draws_of(self.at, num))

    def draw(self, num: int, scored: bool = False) -> Draws:
        return guided.draws(self.fit, self.at, num, scored)

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        found = self.products() if isinstance(self.data.values, Tensor) else None
        yield from guided.expected(self.fit, self.data, self.at, everywhere) if found is None else found

    def products(self) -> list[Cells] | None:
        """Mean and sd of each observed cell by its factors; None where not all sites are products of latents.

        A product of independent latents has as its mean the product of their means, so a run of the model with each
        latent at its mean has the expected location of every cell.
        """
        guide, structure = self.guide, self.at.program.structure
        if set(guide.field.bilinear) != set(structure.observed):
            return None
        values = {**self.fit.params, **{name: mean for name, (mean, _) in guide.moments().items()}}
        marked = symbol(self.data.values, "data")
        nodes = run(self.fit.pair.model, marked, Bind(values), structure.nesting).nodes
        return [self._cells(name, nodes[name]) for name in structure.observed]

    def _cells(self, name: str, node: Any) -> Cells:
        field, structure = self.guide.field, self.at.program.structure
        place = places_of(name, node["value"])
        rows_dim = structure.data_dim - len(node["fn"].event_shape)
        mean = plain(base_of(node["fn"]).mean).expand(place.shape)
        variance = field.bilinear[name].variances(field.means(self.guide.state), field.families)
        by_row = [part.movedim(rows_dim, 0) for part in (place, mean)]  # as the entries of a bilinear site lie
        return Cells(by_row[0].flatten(), by_row[1].flatten(), variance.flatten().sqrt())

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        return predictive(self, num, given, seed)

    def replicate(self, draws: Draws) -> Replicates:
        return replicates(self.fit.pair, self.data.values, draws, observed_values(self.at.program))

    def label_cells(self) -> LabelCells:
        return label_cells(self.at.program)


def predictions(fit: Fitted, data: Any = None) -> Moments:
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
    dataset, found = fit.adapted(data), None
    if isinstance(fit.kind, Conjugate):
        if not isinstance(dataset.values, Tensor):
            raise DataError("predictions: the data are a structure, expected a table")
        with fit.kind.on(dataset) as it:
            found = it.products()
    if found is None:
        raise OptionError(
            "predictions: met a fit without a mean field over products of latents; use sample_posterior or to_arviz, "
            "whose posterior_predictive holds draws"
        )
    out = torch.full((2, dataset.values.numel()), float("nan"), dtype=torch.float64)
    for place, mean, sd in found:
        assert sd is not None
        out[0, place], out[1, place] = mean, sd
    mean, sd = out.reshape(2, *dataset.values.shape)
    if fit.pair.by is not None:
        lines = ~dataset.values.isnan().all(-1)
        observed = (~mean[lines].isnan()).any(0)
        mean, sd = (part[lines][:, observed].squeeze(-1) for part in (mean, sd))
    return Moments(mean, sd)


def of_rows(derived: MeanField, shared: Parts) -> Parts:
    """The optimal factors of the latents of rows, what is shared held: updated in turn until they stand still."""
    names = derived.program.structure.continuous
    if not names:
        return {}
    nodes = derived.program.structure.trace.nodes
    random = torch.Generator().manual_seed(0)  # a start that is the same whenever, and symmetric in nothing
    noise = {n: torch.randn(nodes[n]["value"].shape, generator=random, dtype=torch.float64) for n in names}
    values = {n: transform_to(nodes[n]["fn"].support)(noise[n]).unsqueeze(0) for n in names}
    means = {**derived.means(shared), **{n: derived.families[n].statistics(v) for n, v in values.items()}}
    sweeps = Sweeps(derived, None, 1, 1)
    found: Parts = {}
    for _ in range(LOCAL_SWEEPS):
        before, stats = dict(found), sweeps.expect(means)
        for name in names:
            found[name] = derived.update(name, means, stats)
            means[name] = derived.families[name].mean(found[name])
        if len(names) == 1 or (before and all(torch.allclose(found[n], before[n], rtol=1e-10) for n in names)):
            break
    return found
