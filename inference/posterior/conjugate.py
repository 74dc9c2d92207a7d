"""The guide that CAVI leaves: a product of conjugate factors over the latents that rows share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..base.unconstrained import Parts
from ..cavi.derivation import mean_field
from ..cavi.mean_field import MeanField
from ..families.factors import Point
from ..program.estep import Expectations
from ..program.posteriors import marginals
from ..program.program import Program
from ..svi.guide import Sampled
from ..trace.provenance import plain

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

    noisy: ClassVar[bool] = True
    shared: ClassVar[bool] = True

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

    def centers(self, free: Parts, program: Program) -> Parts:
        """The mean of each factor."""
        return {name: self.field.families[name].center(self.state[name])[0] for name in self.field.priors}

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


def factor_guide(fit: Any, program: Program) -> FactorGuide:
    """A fit's factors on the rows of its program; those on its own rows are kept."""
    held = fit.compiled
    if program is not held.own.get(True):
        return _derived(fit, program)
    if held.factors is None:
        held.factors = _derived(fit, program)
    found: FactorGuide = held.factors
    return found


def _derived(fit: Any, program: Program) -> FactorGuide:
    structure = program.structure
    derived = mean_field(fit.pair.model, program.data, structure, fallback=True)
    shared = {
        name: fit.params[name] if isinstance(derived.families[name], Point) else fit.guide_parts[name]
        for name in structure.params
    }
    state = {name: value.unsqueeze(0) for name, value in shared.items()}
    return FactorGuide(derived, {**state, **of_rows(derived, state)})


def of_rows(derived: MeanField, shared: Parts) -> Parts:
    """The optimal factors of the latents of rows, what is shared held: updated in turn until they stand still."""
    names = derived.program.structure.continuous
    if not names:
        return {}
    nodes = derived.program.structure.trace.nodes
    values = {name: plain(nodes[name]["value"]).double().unsqueeze(0) for name in names}
    means = {**derived.means(shared), **{n: derived.families[n].statistics(v) for n, v in values.items()}}
    nothing = Expectations(torch.zeros(1, dtype=torch.float64), {}, {})
    found: Parts = {}
    for _ in range(LOCAL_SWEEPS):
        before = dict(found)
        for name in names:
            found[name] = derived.update(name, means, nothing)
            means[name] = derived.families[name].mean(found[name])
        if len(names) == 1 or (before and all(torch.allclose(found[n], before[n], rtol=1e-10) for n in names)):
            break
    return found
