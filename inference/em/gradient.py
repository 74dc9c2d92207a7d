"""Generalized EM: steps up the expected complete log density, for params without a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import transform_to

from ..base.rng import forked
from ..optimize.newton import ROUNDING, Free, lbfgs, newton
from ..program.estep import Expectations
from ..program.objective import expected_complete
from ..program.program import Program
from ..program.sites import Params, Site
from ..trace.provenance import symbols_of

LARGEST = 16  # numbers of a block: each costs a gradient
MOST_CELLS = 4096  # of the sites: each costs one gradient, once


def climb(
    program: Program, names: tuple[str, ...], params: Params, expected: Expectations, steps: int, blocks: Tensor | None
) -> Params:
    """Raise the expected complete log density in the params `names`: by Newton steps where the Hessian falls into
    small `blocks` (`blocks.find_blocks`), by L-BFGS where it does not, or where Newton finds no way up.
    """
    transforms = {name: transform_to(program.structure.params[name].constraint) for name in names}
    free = {name: transforms[name].inv(params[name]).detach().clone() for name in names}

    def at(values: Free) -> Params:
        return {**params, **{name: transforms[name](value) for name, value in values.items()}}

    def objective(values: Free) -> Tensor:
        return expected_complete(program, at(values), expected)

    start = expected_complete(program, params, expected).detach()
    with torch.enable_grad():
        reached = newton(free, objective, blocks, steps) if blocks is not None else None
        if reached is None or not reached.sound:
            reached = lbfgs(free if reached is None else reached.free, objective, steps)
    gain = reached.value - start
    # what is lost to rounding is no loss
    return at(reached.free) if torch.isfinite(gain) and gain >= -ROUNDING * start.abs() else params


class Influence(NamedTuple):
    """The free numbers that bear on one cell of a site."""

    site: str
    cell: int
    numbers: Tensor


def find_blocks(program: Program, names: Sequence[str]) -> Tensor | None:
    """Blocks of the free numbers of `names`, laid end to end: (blocks, largest block), -1 where a block is smaller.

    None where a block would have more numbers than `LARGEST`.
    """
    total = sum(value.numel() for value in free_values(program, names).values())
    alone = torch.arange(total).unsqueeze(0) if 0 < total <= LARGEST else None
    if alone is not None or total == 0 or _meet_everywhere(program, set(names)):
        return alone
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups = [one.numbers for one in influences(program, names)]
    first, other = torch.cat([group[:1].expand(len(group)) for group in groups]), torch.cat(groups)
    graph = coo_matrix((torch.ones(len(first)).numpy(), (first.numpy(), other.numpy())), shape=(total, total))
    count, label = connected_components(graph, directed=False)
    if np.bincount(label).max() > LARGEST:
        return None
    found = [torch.from_numpy(label == number).nonzero().flatten() for number in range(count)]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)


def free_values(program: Program, names: Sequence[str]) -> dict[str, Tensor]:
    """Params in unconstrained space."""
    params = program.structure.params
    return {name: transform_to(params[name].constraint).inv(params[name].value).detach() for name in names}


def _meet_everywhere(program: Program, names: set[str]) -> bool:
    """Whether a term that is no sum over cells takes any of them: a scored site, a prior, data outside the plate."""
    nodes, params = program.structure.trace.nodes, program.structure.params
    if any(params[name].prior is not None for name in names):
        return True
    terms = [nodes[site]["fn"] for site in (*program.scored, *program.structure.outside)]
    terms += [param.prior["fn"] for param in params.values() if param.prior is not None]
    sites = [s for s in (*program.latents.values(), *program.products.values()) if _takes(s, names)]
    many = sum(torch.Size(site.cells).numel() for site in sites) > MOST_CELLS
    return many or any(symbols_of(fn) & names for fn in terms)


def influences(program: Program, names: Sequence[str]) -> list[Influence]:
    """Which free numbers of `names`, laid end to end, bear on which cells of sites that are not scored."""
    out = []
    with forked(), torch.enable_grad():
        torch.manual_seed(0)
        # a derivative may be 0 by chance at a special point, such as a slope of 0: look at one that is not special
        moved = {n: v + 0.1 * torch.randn_like(v) for n, v in free_values(program, names).items()}
        free = {name: value.requires_grad_() for name, value in moved.items()}
        params = {name: param.value.unsqueeze(0) for name, param in program.structure.params.items()}
        constraints = {name: program.structure.params[name].constraint for name in names}
        params |= {name: transform_to(constraints[name])(value).unsqueeze(0) for name, value in free.items()}
        computed = program.computed(program.trace(params)) if program.runs_model else {}
        for site in (*program.latents.values(), *program.products.values()):
            if not _takes(site, set(names)):
                continue
            eta, log_normalizer = site.natural(site.arguments(params, computed))
            terms = (eta * torch.rand_like(eta)).sum(-1) + log_normalizer * torch.rand_like(log_normalizer)
            for cell, term in enumerate(terms.flatten(0, site.num_latents).sum(0).flatten()):
                found = torch.autograd.grad(term, list(free.values()), retain_graph=True, materialize_grads=True)
                out.append(Influence(site.name, cell, torch.cat([g.flatten() for g in found]).nonzero().flatten()))
    return out


def _takes(site: Site, names: set[str]) -> bool:
    return any(argument.depends & names for argument in site.args.values())
