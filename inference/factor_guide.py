"""The guide that CAVI leaves: a product of conjugate factors over the latents that rows share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .conjugate import MeanField
from .derivation import mean_field
from .factors import Point
from .free import Parts
from .guide_of import Sampled
from .program import Program
from .structure import Structure
from .verbs import marginals

GUIDE = "conjugate"  # the name of such a guide in a fit


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
        """Draws of every factor; its log density at them where that is asked for."""
        values: Parts = {}
        log_q, entropy = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
        for name in self.field.priors:
            factor = self.factor(name)
            drawn = factor.sample((num,))
            values[name] = drawn.reshape(num, *self.field.program.structure.params[name].value.shape)
            if density:
                log_q = log_q + factor.log_prob(drawn).reshape(num, -1).sum(1)
            entropy = entropy + factor.entropy().sum()
        nothing = torch.zeros(1, 1, dtype=torch.float64)
        return Sampled(values, log_q, nothing, entropy, nothing, {})

    def centers(self, free: Parts, program: Program) -> Parts:
        """The mean of each factor."""
        return {name: self.field.families[name].center(self.state[name])[0] for name in self.field.priors}

    def factor(self, name: str) -> Any:
        """One factor as a Pyro distribution."""
        return self.field.families[name].distribution(self.state[name][0])

    def marginals(self) -> dict[str, Tensor]:
        """q of each enumerated latent of a row: probabilities by row."""
        with torch.no_grad():
            moments = self.field.moments(self.field.means(self.state))
        return marginals(self.field.program, moments)


def factor_guide(fit: Any, data: Any, structure: Structure) -> FactorGuide:
    """A fit's factors on (new) data."""
    derived = mean_field(fit.pair.model, data, structure)
    state = {
        name: (fit.params[name] if isinstance(family, Point) else fit.guide_parts[name]).unsqueeze(0)
        for name, family in derived.families.items()
    }
    return FactorGuide(derived, state)
