"""Scores, posteriors and words: what a fit says of data, by running its compiled program on them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .checks import check_values
from .compiler import compile_program
from .data import Dataset
from .derived import Moments, moments
from .errors import ModelError
from .networks import DIVIDER
from .normals import normal_moments, normal_posterior, summed_out
from .program import Program
from .sites import Params
from .structure import engine_state
from .sum_out import read_exact


def program_on(fit: Any, dataset: Dataset) -> tuple[Program, Params]:
    """A fit's model compiled on (new) data under its params. Call inside `engine_state`."""
    model, structure = read_exact(fit.pair.model, dataset.values, fit.params)
    check_values(structure, dataset.schema)
    program = compile_program(model, dataset.values, structure)
    return program, {name: value.unsqueeze(0) for name, value in fit.params.items()}


def score(fit: Any, dataset: Dataset) -> Tensor:
    """log p(x_n) of each row, (N,)."""
    with engine_state(fit.seed), torch.no_grad():
        program, params = program_on(fit, dataset)
        return program.row_log_prob(params).squeeze(0)


def latents(fit: Any, dataset: Dataset) -> dict[str, Tensor | Moments]:
    """Posterior probabilities of each latent of a row, (N, K) or (N, plates, K); moments of what comes of them."""
    with engine_state(fit.seed):
        program, params = program_on(fit, dataset)
        found: dict[str, Tensor | Moments] = {**marginals(program, params)}
        if summed_out(program):
            found |= normal_moments(program, params, joint_posterior(program, params))
        return {**found, **moments(program, params)}


def normal_factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The posterior of a normal latent of the rows, as a distribution; None of what is no such latent."""
    with engine_state(fit.seed):
        program, params = program_on(fit, dataset)
        if site not in summed_out(program):
            return None
        return normal_posterior(program, params, joint_posterior(program, params), site)


def joint_posterior(program: Program, params: Params) -> Tensor:
    """p(z_1..z_M | x_n) of the latents of a row, (N, E): all configurations of a row as one table.

    A latent that is alone, in a plate inside the rows, has a table of its own in each of its cells, (N, *cells, K).
    """
    if not program.layout.latents:
        return torch.ones(program.num_rows, 1)
    if len(program.layout.latents) == 1:
        return marginals(program, params)[program.layout.latents[0]]
    if any(step.plates for step in program.order):
        raise ModelError(
            "a latent lies in a plate of its own inside the rows: joint posteriors are not tabulated for it"
        )
    return torch.cat([table.reshape(len(table), -1) for table in program.joint_posteriors(params)])


def marginals(program: Program, params: Params) -> dict[str, Tensor]:
    """Marginal posterior of each latent from the counts of its own factor: its parents are summed over."""
    parts: dict[str, list[Tensor]] = {name: [] for name in program.structure.latents}
    for _, found in program.posteriors(params):
        for name, table in found.items():
            parts[name].append(_marginal(program, name, table))
    return {name: torch.cat(found) for name, found in parts.items()}


def _marginal(program: Program, name: str, table: Tensor) -> Tensor:
    count = len(program.structure.latents)
    own = list(program.structure.latents).index(name)
    others = [1 + i for i in range(count) if i != own]
    table = (table.sum(others, keepdim=True) if others else table).movedim(1 + own, -1)  # (n, 1s, plates, K)
    inner = set(program.structure.latents[name].plates) - {program.structure.data_plate}
    keep = [
        i for i, dim in enumerate(_other_dims(program)) if any(program.structure.plates[p][0] == dim for p in inner)
    ]
    table = table.reshape(len(table), *table.shape[count:])
    shape = [size for i, size in enumerate(table.shape[1:-1]) if i in keep]
    return table.reshape(len(table), *shape, table.shape[-1])


def _other_dims(program: Program) -> list[int]:
    return [d for d in range(-program.layout.nesting, 0) if d != program.layout.data_dim]


def entropy(program: Program, params: Params, weights: Tensor | None) -> float:
    """Sum over rows and latents of the entropy of the posterior (of the joint, where there is one latent), in nats."""
    total = 0.0
    if not program.structure.latents:
        return total
    for rows, found in program.posteriors(params):
        for name, table in found.items():
            probs = _marginal(program, name, table)
            values = -torch.special.xlogy(probs, probs).reshape(len(probs), -1).sum(1)
            total += float(values.sum() if weights is None else (values * weights[rows]).sum())
    return total


def summary(fit: Any) -> str:
    """A page of plain words and numbers."""
    name = fit.pair.origin.name if fit.pair.origin else getattr(fit.pair.model, "__name__", "model")
    given = fit.pair.origin.hyperparameters.items() if fit.pair.origin else ()
    options = ", ".join(f"{k}={v}" for k, v in given if v is not None)
    iterations = len(fit.history) - 1
    state = (
        f"converged after {iterations} iterations"
        if fit.converged
        else f"did NOT meet its tolerance in {iterations} iterations"
    )
    rows = f"{fit.num_rows:g} rows"
    lines = [
        f"{name}({options}) on {rows}, by {fit.inference}" + (f" ({fit.reason})" if fit.reason else ""),
        f"  {state}; {len(fit.mode_map.bounds)} start(s), {len(fit.mode_map)} distinct optimum/optima",
        f"  evidence lower bound {fit.history[-1]:.4f}"
        + ("" if math.isnan(fit.entropy) else f"   log-likelihood at the centre {fit.log_likelihood:.4f}")
        if fit.guide
        else f"  log-likelihood {fit.log_likelihood:.4f}   parameters {fit.num_parameters}   "
        f"AIC {fit.aic:.2f}   BIC {fit.bic:.2f}   ICL {fit.icl:.2f}",
        "",
    ]
    networks: dict[str, int] = {}
    for key, value in fit.params.items():
        if DIVIDER in key:
            network = key.partition(DIVIDER)[0]
            networks[network] = networks.get(network, 0) + value.numel()
            continue
        lines += [f"  {key} {tuple(value.shape)}", *("    " + line for line in _table(value, fit.schema.columns))]
    lines += [f"  {network}: a network of {size:,} weights" for network, size in networks.items()]
    if len(fit.mode_map.bounds) > 1:
        lines += ["", "  where the starts ended:", *("    " + line for line in str(fit.mode_map).splitlines())]
    return "\n".join(lines)


def _table(value: Tensor, columns: tuple[str, ...] | None) -> list[str]:
    if value.dim() == 0:
        return [f"{value.item():.4f}"]
    rows = value.reshape(-1, value.shape[-1])
    block = value.shape[-2] if value.dim() > 2 else len(rows)
    shown = [
        ("\n    " if n and n % block == 0 else "")
        + " ".join(f"{v:9.4f}" for v in row[:12].tolist())
        + (" ..." if len(row) > 12 else "")
        for n, row in enumerate(rows[:24])
    ]
    if columns and value.dim() > 1 and value.shape[-1] == len(columns):
        shown.insert(0, " ".join(f"{name[:9]:>9}" for name in columns[:12]))
    return shown + ([f"... {len(rows) - 24} more rows"] if len(rows) > 24 else [])
