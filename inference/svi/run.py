"""One start of stochastic variational inference: its objective, its vector of free numbers, its place in the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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
from .ascent import Ascent, optimizer_of
from .guide import NormalGuide, Sampler, derive, has_normal_prior
from .normal_guides import GuideShape
from .objective import Objective
from .options import SVIOptions
from .plateau import WINDOW, IteratesStationary, PatienceEnded, State
from .preconditioner import WIDE, WIDEST, Vector, curvature, units
from .replay import Steps
from .user_guide import own_guide

PARTICLES, RATE = 2, 0.05  # of a step; of Adam
BETAS = (0.9, 0.99)  # its running means
PROBED_ROWS = 2_000  # that the curvature is measured on
PATIENCE = 2  # looks at a bound without noise that is no higher
CLOSE = 0.3  # of numbers whose scale is one by nature (the logarithm of a scale): how near is near


@dataclass(frozen=True)
class Run:
    """An ascent from one start."""

    program: Program
    objective: Objective
    vector: Vector
    ascent: Ascent
    start: Params

    def parts(self, x: Tensor | None = None) -> Parts:
        """The free numbers by name at a point, by default where the ascent stands."""
        return self.vector.unpack(self.ascent.leaves["x"].detach() if x is None else x)

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


def begin(
    pair: Pair, program: Program, start: Params, shape: GuideShape | None, options: SVIOptions, weights: Tensor | None
) -> Run:
    """Everything that a run from `start` needs; without a shape the pair's own guide."""
    structure = program.structure
    learned = {name: param for name, param in structure.params.items() if param.prior is None}
    params = {name: free_param(param.constraint, start[name]) for name, param in learned.items()}
    origin = {f"param/{name}": torch.zeros(one.shape, dtype=torch.float64) for name, one in params.items()}

    def of_model(free: Parts) -> Parts:
        return values_of(params, free, "param/")

    sampler, first = _sampler(pair, program, start, shape, of_model, origin)
    assert options.num_particles is not None
    objective = Objective(program, params, sampler, options.num_particles, options.alpha, weights)
    vector = _vector(objective, {**origin, **first}, options.seed, weights)

    def loss(rows: Tensor | None) -> Tensor:
        return -objective(vector.unpack(x), rows)

    home = structure.trace.nodes[structure.observed[0]]["value"].device
    x = torch.zeros(vector.size, dtype=torch.float64, device=home, requires_grad=True)
    rate = options.learning_rate or RATE
    noisy = objective.noisy or options.batch_size is not None
    total = float(program.num_rows if weights is None else weights.sum())
    ascent = Ascent(
        {"x": x},
        Steps(loss, [x], compile=False),
        lambda rows, _: (rows, []),
        Batches(program.num_rows, options.batch_size, options.seed + 1),
        optimizer_of({"x": x}, rate, betas=BETAS, eps=1e-12),
        _stationary(vector, total, options.tol)
        if noisy
        else PatienceEnded(options.tol, PATIENCE, lambda state: max(state.bounds[-WINDOW:])),
        State(rate),
        noisy=noisy,
        clip=options.clip,
    )
    return Run(program, objective, vector, ascent, start)


def _stationary(vector: Vector, total: float, tol: float) -> IteratesStationary:
    """When a noisy bound is at rest: how near is near, and what is waited for."""
    spread = {
        name: torch.full_like(value, total**-0.5 if name.startswith(("param/", "shared/loc")) else CLOSE)
        for name, value in vector.origin.items()
    }
    # the factor of a low-rank guide is known up to a rotation, so its numbers need never come to rest
    loose = ("local/", *(("shared/factor", "shared/log_scale") if "shared/factor" in vector.origin else ()))
    watched = {name: torch.full_like(v, not name.startswith(loose)).bool() for name, v in vector.origin.items()}
    if not any(bool(one.any()) for one in watched.values()):
        watched = {name: torch.ones_like(one) for name, one in watched.items()}
    return IteratesStationary(tol, _flat(spread), _flat(watched))


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
    shape: GuideShape | None,
    of_model: Callable[[Parts], Parts],
    origin: Parts,
) -> tuple[Sampler, Parts]:
    structure = program.structure
    if shape is None:
        assert pair.guide is not None
        return own_guide(pair.guide, program.data, structure, of_model, of_model(origin))
    sampler, center, local = derive(structure, shape, start)
    parts: Parts = {}
    for prefix, loc in {**center, **local}.items():
        declared = shape.declare(loc, torch.ones(loc.shape[-1], dtype=torch.float64))
        parts |= {prefix + name: value.clone() for name, value in declared.items()}
    return sampler, parts


def _vector(objective: Objective, origin: Parts, seed: int, weights: Tensor | None) -> Vector:
    """Units from the curvature of the bound at the start; the guide starts about as wide as the posterior is there."""
    program = objective.program
    names = [name for name in origin if name.startswith("param/") or name == "shared/loc"]
    unit = {name: torch.ones_like(value) for name, value in origin.items()}
    if names:
        rows = None
        if program.num_rows > PROBED_ROWS:
            rows = Batches(program.num_rows, PROBED_ROWS, seed).next()
        generator = torch.Generator().manual_seed(seed)
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
