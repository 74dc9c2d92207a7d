"""A page of plain words and numbers on a fit."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..amortized.bounds import draw
from ..base.errors import DataError, ModelError
from ..data.schema import Dataset, Schema
from ..data.structures import slice_rows
from ..linear_gaussian.posterior import Loadings, loadings_of, summed_out, varimax
from ..program.deterministic import Moments
from ..trace.handlers import DIVIDER, Bind, engine_state
from .amortized import Opened, laid_out, opened
from .base import Fitted
from .compiled import compiled_on, program_of

SHOWN = 12  # columns
LINES = 24
WORDS = 8  # of a line of many columns
WEAK = 0.3  # correlation with a factor, below which it is not listed
MADE_UP = 5  # rows


def summary(fit: Fitted) -> str:
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
    if fit.unchecked:
        state = f"NOT checked against Pyro: {fit.unchecked}; {'met' if fit.converged else 'did NOT meet'} its tolerance"
    notes = fit.kind.notes()
    rows = f"{fit.num_rows:g} {fit.kind.noun}"
    lines = [
        f"{name}({options}) on {rows}, by {fit.inference}" + (f" ({fit.reason})" if fit.reason else ""),
        f"  {state}; {len(fit.mode_map.bounds)} start(s), {len(fit.mode_map)} distinct optimum/optima",
        f"  evidence lower bound {fit.history[-1]:.4f}{_error(fit)}{'' if notes else _beside_the_bound(fit)}"
        if fit.kind.guided
        else f"  log-likelihood {'at the joint mode (MAP) ' if fit.at_mode else ''}{fit.log_likelihood:.4f}   "
        f"parameters {fit.num_parameters}   AIC {fit.aic:.2f}   BIC {fit.bic:.2f}   ICL {fit.icl:.2f}",
        *_at_mode(fit),
        *notes,
        "",
    ]
    networks: dict[str, int] = {}
    for key, value in fit.params.items():
        network, divider, _ = key.partition(DIVIDER)
        if divider:
            networks[network] = networks.get(network, 0) + value.numel()
            continue
        lines += [f"  {key} {tuple(value.shape)}", *("    " + line for line in _table(value, fit.schema.columns))]
    lines += [f"  {network}: a network of {size:,} weights" for network, size in networks.items()]
    lines += _topics(fit) if networks else _turned(fit)
    if len(fit.mode_map.bounds) > 1:
        lines += ["", "  where the starts ended:", *("    " + line for line in str(fit.mode_map).splitlines())]
    return "\n".join(lines)


def _at_mode(fit: Fitted) -> list[str]:
    if not fit.guide and fit.guide_parts:
        names = ", ".join(map(repr, fit.guide_parts))
        stand = f"  {names}, which rows share, summed out: at the posterior mean below, and so in the scores of rows"
        return [stand, *_of_mode(fit)]
    return _of_mode(fit)


def _of_mode(fit: Fitted) -> list[str]:
    if not fit.at_mode:
        return []
    names = ", ".join(map(repr, fit.at_mode))
    return [f'  MAP: {names} at the joint mode, which is no posterior: for that, inference="cavi" or "svi"']


def _table(value: Tensor, columns: tuple[str, ...] | None) -> list[str]:
    if value.dim() == 0:
        return [f"{value.item():.4f}"]
    if columns and value.dim() == 2 and len(columns) == value.shape[1] > SHOWN and bool((value >= 0).all()):
        found = [f"{k:3}  {_largest(row, columns)}" for k, row in enumerate(value[:LINES])]
        return ["the largest of each line:", *found, *_more(len(value))]
    rows = value.reshape(-1, value.shape[-1])
    block = value.shape[-2] if value.dim() > 2 else len(rows)
    shown = [
        ("\n    " if n and n % block == 0 else "")
        + " ".join(f"{v:9.4f}" for v in row[:SHOWN].tolist())
        + (" ..." if len(row) > SHOWN else "")
        for n, row in enumerate(rows[:LINES])
    ]
    if columns and value.dim() > 1 and value.shape[-1] == len(columns):
        shown.insert(0, " ".join(f"{name[:9]:>9}" for name in columns[:SHOWN]))
    return shown + _more(len(rows))


def _topics(fit: Fitted) -> list[str]:
    """The most probable words of the topics of a fit with networks, where its rows mix any."""
    found, columns = topics_of(fit), fit.schema.columns
    if found is None:
        return []
    names = tuple(columns) if columns else tuple(map(str, range(found.shape[1])))
    lines = [f"    {k:3}  {_largest(row, names)}" for k, row in enumerate(found[:LINES])]
    return ["", "  words of a row wholly of one topic:", *lines, *("    " + line for line in _more(len(found)))]


def _more(count: int) -> list[str]:
    return [f"... {count - LINES} more rows"] if count > LINES else []


def _largest(row: Tensor, columns: tuple[str, ...]) -> str:
    order = row.argsort(descending=True)[:WORDS].tolist()
    return ", ".join(f"{columns[v]} {row[v].item():.3g}" for v in order)


def _error(fit: Fitted) -> str:
    return f" ± {fit.bound_error:.2g}" if fit.bound_error else ""


def _beside_the_bound(fit: Fitted) -> str:
    """What is known of log p(x) beside its bound: nothing, where nobody sums out the latents of rows."""
    if fit.bounded:
        return "   (log p(x) lies above it, how far is not known)"
    return f"   log-likelihood at the centre {fit.log_likelihood:.4f}"


# --- factors in words -------------------------------------------------------------------------------------------------


def _turned(fit: Fitted) -> list[str]:
    """Which columns go with each factor, where rows have normal latents; a fit from disk has no data, nor needs it."""
    found = _loadings(fit)
    if found is None:
        return []
    total = found.noise[0] + found.load[0].square().sum(1)
    correlations = varimax(found.load[0] / total.sqrt().unsqueeze(1)).loadings  # (D, E)
    width, factors = correlations.shape
    names = fit.schema.columns
    columns = tuple(names) if names and len(names) == width else tuple(f"x{d}" for d in range(width))
    how = " after varimax" if factors > 1 else ""
    lines = ["", f"  correlations of columns with factors{how}, those of {WEAK} or more:"]
    for k, column in enumerate(correlations.mT[:LINES]):
        order = [d for d in column.abs().argsort(descending=True).tolist() if abs(column[d]) >= WEAK]
        listed = ", ".join(f"{columns[d]} {column[d].item():.2f}" for d in order[:SHOWN])
        more = f", and {len(order) - SHOWN} more" if len(order) > SHOWN else ""
        share = column.square().mean().item()
        lines.append(f"    factor {k + 1} ({share:.0%} of variance): {listed or 'none'}{more}")
    own = (found.noise[0] / total).mean().item()
    return [*lines, f"    noise ({own:.0%} of variance)"]


def _loadings(fit: Fitted) -> Loadings | None:
    """Those of a fit on a table. They do not depend on rows: a few that are made up stand for all."""
    schema = fit.schema
    if schema.width is None or schema.width < 2 or fit.pair.by is not None or schema.container == "structure":
        return None
    rows = torch.randn(MADE_UP, schema.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        with engine_state(fit.seed), torch.no_grad():
            made_up = Dataset(rows, Schema(None, {}, "tensor", schema.width))
            program = program_of(fit) or compiled_on(fit, made_up)
            params = {name: value.unsqueeze(0) for name, value in fit.params.items()}
            if len(summed_out(program)) != 1:  # a latent beside the factors has loadings that nobody may turn
                return None
            found = loadings_of(program, params)
    except (ModelError, DataError, ValueError):  # a model of other rows than numbers
        return None
    return found if found is not None and len(found.load) == 1 else None


class Standing(Messenger):
    """What a model computes of its latents stands at a value."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.name, self.value = name, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            msg["value"] = self.value


def topics_of(fit: Fitted) -> Tensor | None:
    """Shares (K, V) of the columns in rows wholly of one topic, float64; None of a fit whose rows mix none.

    Rows mix topics where the model computes of their latents numbers that are positive and sum to 1, and observes
    counts.
    """
    width = fit.schema.width
    if width is None or fit.schema.container == "structure":
        return None
    with opened(fit, Dataset(torch.ones(2, width), fit.schema), fit.seed) as it:
        name, size = theta_of(it)
        if not name:
            return None
        rows = slice_rows(it.data, torch.zeros(size, dtype=torch.long))
        drawn = draw(it.story, it.values, rows, 1, False).guide
        play = Bind({**it.values, **{n: msg["value"] for n, msg in drawn.items()}}, centred=False)
        with play, Standing(name, torch.eye(size, dtype=it.story.dtype)):
            it.story.pair.model(rows)
        found: Tensor = play.nodes[it.story.observed[0]]["fn"].logits.double().softmax(-1)
    return found


def shares_of(fit: Fitted, dataset: Dataset) -> Tensor:
    """Expected shares (N, K) of the topics in rows."""
    with opened(fit, Dataset(slice_rows(dataset.values, slice(2)), dataset.schema), fit.seed) as it:
        name, _ = theta_of(it)
    with fit.kind.on(dataset) as posterior:
        found = posterior.marginals()[name]
    assert isinstance(found, Moments)
    return found.mean


def theta_of(it: Opened) -> tuple[str, int]:
    """The computed site that holds the shares of topics in a row, and how many; none and 0 where there are none."""
    story = it.story
    if story.discrete or len(story.computed) != 1 or len(story.observed) != 1 or not story.latents:
        return "", 0
    drawn = draw(story, it.values, slice_rows(it.data, slice(2)), 1, False)
    if not isinstance(drawn.model[story.observed[0]]["fn"], dist.Multinomial):
        return "", 0
    value = laid_out(story, drawn, drawn.model[story.computed[0]]["value"], 0)[0, 0]
    if value.dim() != 2 or bool((value < 0).any()) or not torch.allclose(value.sum(-1), torch.ones(len(value))):
        return "", 0
    return story.computed[0], value.shape[1]
