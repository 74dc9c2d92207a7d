"""One start of stochastic variational inference: its objective, its vector of free numbers, its place in the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.unconstrained import Parts, base_constraint, free_param, values_of
from ..data.batches import Batches
from ..pair import Pair
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import double
from ..trace.structure import Structure
from .ascent import Ascent, State
from .elbo import Objective
from .guide import NormalGuide, Sampler, derive, has_normal_prior
from .normal_guides import GuideShape
from .preconditioner import WIDE, WIDEST, Vector, curvature, units
from .user_guide import own_guide

PROBED_ROWS = 2_000  # that the curvature is measured on
CLOSE = 0.3  # of numbers whose scale is one by nature (the logarithm of a scale): how near is near


class Options(NamedTuple):
    """What the driver was asked for, resolved."""

    shape: GuideShape | None  # None: the pair's own guide
    num_particles: int
    alpha: float
    batch_size: int | None
    learning_rate: float
    tol: float
    clip: float
    seed: int


@dataclass
class Run:
    """An ascent from one start."""

    program: Program
    objective: Objective
    vector: Vector
    ascent: Ascent
    state: State
    batches: Batches
    start: Params

    def parts(self, x: Tensor | None = None) -> Parts:
        """The free numbers by name at a point, by default where the ascent stands."""
        return self.vector.unpack(self.ascent.ended(self.state) if x is None else x)

    def params(self) -> Params:
        """The values that the model's params, and the centres of its shared latents, have reached."""
        with torch.no_grad():
            return params_of(self.objective, self.parts(), self.program)


def params_of(objective: Objective, free: Parts, program: Program) -> Params:
    """Learned params, and each shared latent at the centre of its factor."""
    found = {name: value.detach() for name, value in objective.values(free).items()}
    centers = objective.sampler.centers(free, program)
    # in the order of the model
    return {name: {**found, **centers}[name] for name in program.structure.params}


def begin(pair: Pair, program: Program, start: Params, options: Options, weights: Tensor | None) -> Run:
    """Everything that a run from `start` needs."""
    structure = program.structure
    learned = {name: param for name, param in structure.params.items() if param.prior is None}
    params = {name: free_param(param.constraint, start[name]) for name, param in learned.items()}
    origin = {f"param/{name}": torch.zeros(one.shape, dtype=torch.float64) for name, one in params.items()}

    def of_model(free: Parts) -> Parts:
        return values_of(params, free, "param/")

    sampler, first = _sampler(pair, program, start, options, of_model, origin)
    objective = Objective(program, params, sampler, options.num_particles, options.alpha, weights)
    vector = _vector(objective, {**origin, **first}, options, weights)
    batches = Batches(program.num_rows, options.batch_size, options.seed + 1)

    def bound(x: Tensor) -> Tensor:
        return objective(vector.unpack(x), batches.next())

    total = float(program.num_rows if weights is None else weights.sum())
    spread = {
        name: torch.full_like(value, total**-0.5 if name.startswith(("param/", "shared/loc")) else CLOSE)
        for name, value in vector.origin.items()
    }
    # the factor of a low-rank guide is known up to a rotation, so its numbers need never come to rest
    loose = ("local/", *(("shared/factor", "shared/log_scale") if "shared/factor" in vector.origin else ()))
    watched = {name: torch.full_like(v, not name.startswith(loose)).bool() for name, v in vector.origin.items()}
    home = structure.trace.nodes[structure.observed[0]]["value"].device
    if not any(bool(one.any()) for one in watched.values()):
        watched = {name: torch.ones_like(one) for name, one in watched.items()}
    x = torch.zeros(vector.size, dtype=torch.float64, device=home)
    noisy = objective.noisy or options.batch_size is not None
    rate, tol, clip = options.learning_rate, options.tol, options.clip
    ascent = Ascent(bound, noisy, _flat(spread), _flat(watched), rate, tol, clip)
    return Run(program, objective, vector, ascent, State.start(x, rate), batches, start)


def exact_of_rows(structure: Structure, shape: GuideShape | None, guide: Any, data: Any) -> set[str]:
    """Latents of a row whose expected log prior is exact under the guide: they need not be scored at draws."""
    if shape is None:
        learned = {n: double(param.value) for n, param in structure.params.items() if param.prior is None}
        own, _ = own_guide(guide, data, structure, lambda free: learned, learned)
        return set(own.exact) & set(structure.continuous)
    if shape.name != "mean_field":
        return set()
    return {n for n in structure.continuous if has_normal_prior(structure.trace.nodes[n]["fn"], structure)}


def _sampler(
    pair: Pair,
    program: Program,
    start: Params,
    options: Options,
    of_model: Callable[[Parts], Parts],
    origin: Parts,
) -> tuple[Sampler, Parts]:
    structure = program.structure
    if options.shape is None:
        assert pair.guide is not None
        return own_guide(pair.guide, program.data, structure, of_model, of_model(origin))
    sampler, center, local = derive(structure, options.shape, start)
    parts: Parts = {}
    for prefix, loc in {**center, **local}.items():
        declared = options.shape.declare(loc, torch.ones(loc.shape[-1], dtype=torch.float64))
        parts |= {prefix + name: value.clone() for name, value in declared.items()}
    return sampler, parts


def _vector(objective: Objective, origin: Parts, options: Options, weights: Tensor | None) -> Vector:
    """Units from the curvature of the bound at the start; the guide starts about as wide as the posterior is there."""
    program = objective.program
    names = [name for name in origin if name.startswith("param/") or name == "shared/loc"]
    unit = {name: torch.ones_like(value) for name, value in origin.items()}
    if names:
        rows = None
        if program.num_rows > PROBED_ROWS:
            rows = Batches(program.num_rows, PROBED_ROWS, options.seed).next()
        generator = torch.Generator().manual_seed(options.seed)
        total = float(program.num_rows if weights is None else weights.sum())
        probe = replace(objective, alpha=1.0)
        diagonal = curvature(lambda free: probe(free, rows), origin, names, generator)
        found = units(diagonal, total, _widest(objective, {name: origin[name] for name in names}))
        unit |= found
        if "shared/log_scale" in origin:
            sd = found["shared/loc"] * total**-0.5
            before = origin["shared/log_scale"].exp()
            origin = {**origin, "shared/log_scale": sd.log()}
            if "shared/factor" in origin:
                unit["shared/factor"] = sd.unsqueeze(-1).expand_as(origin["shared/factor"]).clone()
                origin["shared/factor"] = origin["shared/factor"] * (sd / before).unsqueeze(-1)
    return Vector(origin, unit)


def _widest(objective: Objective, origin: Parts) -> Parts:
    """How wide the unit of each number may be: that of a number of any size, or that of a logarithm."""
    params = objective.program.structure.params

    def width(name: str) -> float:
        return WIDEST if base_constraint(params[name].constraint) is constraints.real else WIDE

    out = {f"param/{name}": torch.full(one.shape, width(name)).double() for name, one in objective.params.items()}
    if isinstance(objective.sampler, NormalGuide) and objective.sampler.blocks:
        each = [torch.full((block.size,), width(block.name)).double() for block in objective.sampler.blocks]
        out["shared/loc"] = torch.cat(each)
    return {name: out[name].to(value) for name, value in origin.items()}


def _flat(parts: Parts) -> Tensor:
    return torch.cat([value.flatten() for value in parts.values()]) if parts else torch.empty(0)
