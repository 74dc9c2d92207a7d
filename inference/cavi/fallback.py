"""What of a model has no closed form: latents that are fitted by gradient, and sites that are scored at their draws."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor

from ..base.errors import ModelError, NotConjugate
from ..base.unconstrained import MATRICES, base_constraint
from ..families.factors import factor_family
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import Bind, base_of, run
from ..trace.provenance import symbols_of
from ..trace.structure import Structure
from .mean_field import DrawnPrior, Moment
from .monte_carlo import DrawnFactor, DrawnProgram, Draws, key_of


class ByDraws(NamedTuple):
    """What has no closed form, and is fitted by gradient over draws."""

    latents: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()  # scored at draws; a latent's own density among them


def more(given: ByDraws, error: NotConjugate, structure: Structure) -> ByDraws | None:
    """What is fitted by gradient beside what was, for a derivation to get further; None where that cannot be."""
    if error.latent is not None and error.latent not in given.latents | set(structure.continuous):
        return given._replace(latents=given.latents | {error.latent})
    if error.site is None or error.site in given.sites or error.site in structure.continuous:
        return None
    inside = inside_of(error.site, structure)
    if inside & set(structure.continuous):
        return None
    drawn = {name for name in inside if structure.params[name].prior is not None}
    return ByDraws(given.latents | drawn, given.sites | {error.site})


def inside_of(site: str, structure: Structure) -> frozenset[str]:
    """Latents and params that a site depends on; of a latent's own density the latent itself too."""
    if site in structure.params:
        prior = structure.params[site].prior
        return symbols_of(prior["fn"]) | {site}
    return symbols_of(structure.trace.nodes[site]["fn"]) - {"data"}


def at_draws(program: Program, wanted: dict[str, Moment], start: Params) -> DrawnProgram:
    """The program with its scored sites scored at draws of what they depend on."""
    structure = program.structure
    needs = {}
    for site in program.scored:
        inside = sorted(inside_of(site, structure))
        needs[site] = {name: structure.params[name].value.shape for name in inside}
        for name in inside:
            wanted[key_of(site, name)] = Moment(site, f"draws of {name}", Draws(name), "draws")
    as_it_is = {f.name: getattr(program, f.name) for f in fields(Program)}
    return DrawnProgram(**as_it_is, needs=needs, fixed=start)


def drawn_prior(
    name: str, model: Any, data: Any, structure: Structure, wanted: dict[str, Moment], start: Params
) -> DrawnPrior:
    names = inside_of(name, structure)
    for one in names:
        wanted[key_of(name, one)] = Moment(name, f"draws of {one}", Draws(one), "draws")
    prior = structure.params[name].prior

    def density(values: Params) -> Tensor:
        fn = prior["fn"]
        if len(names) > 1:
            fn = run(model, data, Bind({**start, **values}), structure.nesting).nodes[name]["fn"]
        found: Tensor = fn.log_prob(values[name]).sum()
        return found

    return DrawnPrior(name, names, density)


def drawn_factor(name: str, node: Any, value: Tensor, given: ByDraws, seed: int) -> DrawnFactor:
    """The factor of a latent that is fitted by gradient."""
    fn = base_of(node["fn"])
    if base_constraint(fn.support) in MATRICES:
        raise ModelError(
            f"cavi: latent '{name}' is a matrix, and fallback=\"svi\" fits numbers and vectors by gradient: "
            f'use inference="svi"'
        )
    known = None if name in given.sites else factor_family(fn)
    return DrawnFactor(node["fn"], value, known, seed)
