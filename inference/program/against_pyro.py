"""What Pyro itself makes of a model as its author wrote it: the witness that every fit is held against.

The engine reads a model and computes log p(x) in ways of its own. Here the model is run unread, by Pyro alone: discrete
latents are summed out by `TraceEnum_ELBO` under an empty guide; continuous ones stand at given values, or, where the
engine sums them out too, are integrated in closed form, for a density whose logarithm is quadratic in them. Nothing of
how the engine reads, compiles or scores is used, so that a fault there can't hide itself.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import DataError, ModelError, OptionError
from ..base.rng import forked
from ..data.structures import num_rows, slice_rows, tensors_of

COMPARED = 12  # rows that are compared
CELLS = 200_000  # log densities of a comparison on few rows
ALL = 50_000_000  # of one on all rows, where few do not stand for themselves
ROUNDING = 1e-7  # of the terms' size, in float64
NUMBERS = 100  # integrated at once
TRIES = 5  # draws of a prior, to see whether a latent matters
CONFIGURATIONS = 8  # of discrete latents beside continuous ones that are integrated


class Unchecked(Exception):
    """Pyro alone can't say what the density is: why."""


class Density(NamedTuple):
    """What Pyro gives."""

    log_prob: float
    size: float  # of its terms: rounding is a share of it
    sites: list[str]
    used: list[str]  # sites with gaps whose value the model goes on with


Engine = Callable[[Tensor | None, dict[str, Tensor]], float]
Sites = Callable[[Tensor | None, dict[str, Tensor]], dict[str, float]]


@dataclass
class Witness:
    """A model on its data, beside the engine's own account of it.

    Attributes
    ----------
    inference : str
        Whose account it is.
    model, data :
        As the user's model gets it; all rows.
    engine : callable
        ``engine(rows, values)``: the engine's log density of some rows (of all, where it is None) and of the latents
        in `values`, a float.
    sites : callable, optional
        The same site by site, summed over rows and averaged over the values of enumerated latents.
    rows : int
        Of the plate that holds them; where the data have another number, only all of them together are compared.
    plate : str
    whole : bool
        Whether only all rows together can be compared.
    along : dict
        Latents of the rows -> the dim of their values that runs over these.
    """

    inference: str
    model: Any
    data: Any
    engine: Engine
    rows: int
    sites: Sites | None = None
    plate: str = "data"
    whole: bool = False
    along: Mapping[str, int] = field(default_factory=dict)

    def compare(self, when: str, values: Mapping[str, Tensor]) -> str:
        """Hold the engine against Pyro at given params and latents; why it couldn't be, or nothing.

        Raises
        ------
        ModelError
            They differ by more than rounding: the site, and both numbers.
        """
        every = {name: value.detach() for name, value in values.items()}
        why, gone = "", False  # why it could not be; whether it differed on some rows
        with quietly():
            for rows in self._choices():
                data, values = (self.data, every) if rows is None else self._on(rows, every)
                try:
                    theirs = log_density(self.model, data, values, self.plate)
                    ours = self.engine(rows, values)
                except (DataError, OptionError, ModelError):
                    raise
                except Unchecked as error:
                    why = why or str(error)
                except (ValueError, RuntimeError, IndexError, NotImplementedError, TypeError, KeyError) as error:
                    why = why or f"Pyro's own run of the model failed ({first_line(error)})"
                else:
                    if when == "start" and math.isnan(theirs.log_prob):  # a param that was moved out of its support
                        why = why or "by Pyro log p is no number at the start"
                        continue
                    apart = abs(ours - theirs.log_prob) > ROUNDING * (1 + theirs.size)
                    if apart and self._restless(theirs, data, values):
                        return "by Pyro log p is another number at each run"
                    same = self._same(ours, theirs, data, values)
                    if rows is None:
                        self.whole = True  # the rows do not stand for themselves
                        if not same:
                            raise ModelError(self._told(when, rows, ours, theirs, data, values))
                        return ""
                    if same and not gone:
                        torn = bool(why) and not bool(gaps_of(data).any()) and bool(gaps_of(self.data).any())
                        return f"its rows with gaps could not be: {why}" if torn else ""
                    gone = gone or not same
        return why or "its rows do not stand for themselves, and are too many to be compared as a whole"

    def _on(self, rows: Tensor, values: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Some rows of the data, and of the latents that are theirs."""
        at = {name: value.index_select(self.along[name], rows) for name, value in values.items() if name in self.along}
        return slice_rows(self.data, rows), {**values, **at}

    def _choices(self) -> Iterator[Tensor | None]:
        """Rows to try: a few, complete ones and ones with gaps; then complete ones alone; then all."""
        total = num_rows(self.data)
        if total > COMPARED and not self.whole and total == self.rows:
            gaps = gaps_of(self.data)
            full, holed = (~gaps).nonzero().flatten(), gaps.nonzero().flatten()
            half = spread(holed, COMPARED // 2)
            yield torch.cat([spread(full, COMPARED - len(half)), half]).sort().values
            if len(half) and len(full) > 1:
                yield spread(full, COMPARED)
            if len(full) > 1:  # of rows with many latents
                yield spread(full, 2)
        if total * self._cells() <= ALL:
            yield None

    def _cells(self) -> int:
        """Numbers of a row of the data."""
        return sum(t.numel() for t in tensors_of(self.data).values()) // max(1, num_rows(self.data)) + 1

    def _restless(self, theirs: Density, data: Any, values: dict[str, Tensor]) -> bool:
        """Whether the model draws random numbers of its own."""
        again = log_density(self.model, data, values, self.plate).log_prob
        return abs(again - theirs.log_prob) > ROUNDING * (1 + theirs.size)  # never so of what is no number

    def _same(self, ours: float, theirs: Density, data: Any, values: dict[str, Tensor]) -> bool:
        """Whether two numbers are one, but for rounding: where the density is steep, that of the params counts too."""
        if ours == theirs.log_prob or (math.isnan(ours) and math.isnan(theirs.log_prob)):
            return True
        gap = abs(ours - theirs.log_prob)
        allowed = ROUNDING * (1 + theirs.size) * (1 if torch.get_default_dtype() == torch.float64 else 1e2)
        if gap <= allowed:
            return True
        if not math.isfinite(gap):
            return False
        nudged = {n: v * (1 + 1e-12) if v.is_floating_point() else v for n, v in values.items()}
        steep = abs(log_density(self.model, data, nudged, self.plate).log_prob - theirs.log_prob)
        return gap <= allowed + 10 * steep

    def _told(
        self, when: str, rows: Tensor | None, ours: float, theirs: Density, data: Any, values: dict[str, Tensor]
    ) -> str:
        count = num_rows(self.data) if rows is None else len(rows)
        part = f"the value that site '{theirs.used[0]}' returns is used again where it has gaps" if theirs.used else ""
        part = part or self._first_part(rows, data, values, theirs.sites)
        return (
            f"{self.inference}: this model is not read rightly, so there is no fit: {part}. At the {when} log p of "
            f"{count} rows is {ours:.6f} here, and {theirs.log_prob:.6f} by Pyro for the model as it is written: write "
            f"that part in another way, or report it"
        )

    def _first_part(self, rows: Tensor | None, data: Any, values: dict[str, Tensor], names: list[str]) -> str:
        try:
            theirs = site_sums(self.model, data, values)
            ours = self.sites(rows, values) if self.sites is not None else {}
        except Exception:  # it only finds words for an error
            return f"one of its sites {', '.join(map(repr, names))}"
        for name in theirs:
            one, other = ours.get(name), theirs[name]
            if one is not None and abs(one - other) > 1e-6 * (1 + abs(other)):
                return f"site '{name}' is {one:.6f} here and {other:.6f} there"
        lacking = [name for name in theirs if ours and name not in ours]
        if lacking:
            return f"site '{lacking[0]}' is not counted as it is there ({theirs[lacking[0]]:.6f})"
        if not ours:
            return f"one of its sites {', '.join(map(repr, theirs))}"
        return f"each of {', '.join(map(repr, theirs))} agrees by itself, and their sum over the latents does not"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the shapes that Pyro adds."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Random numbers aside, no gradients, no warnings of what is only looked at."""
    with forked(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def spread(places: Tensor, count: int) -> Tensor:
    """So many of some places, evenly."""
    if len(places) <= count:
        return places
    return places[torch.linspace(0, len(places) - 1, count).round().long()]


def gaps_of(data: Any) -> Tensor:
    """Which rows have a missing cell, (N,)."""
    rows = num_rows(data)
    out = torch.zeros(rows, dtype=torch.bool)
    for value in tensors_of(data).values():
        if value.dim() and len(value) == rows and value.is_floating_point():
            out |= value.reshape(rows, -1).isnan().any(1).cpu()
    return out


# --- the model, unread ------------------------------------------------------------------------------------------------


def held(model: Any, values: Mapping[str, Tensor]) -> Any:
    """The model with its params and some latents at values."""
    given = dict(values)
    return Unmasked(set(given))(poutine.condition(poutine.substitute(model, data=given), data=given))


class Unmasked(Messenger):
    """Latents count whole under a mask, as they do in Pyro's own sums over enumerated ones: summed out, they then add
    nothing.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["mask"] = None


def traced(model: Any, data: Any, gaps: Gaps, **latents: Tensor) -> dict[str, Any]:
    """The sample sites of a plain run, scored."""
    with gaps, Unmasked(set(latents)):
        trace = poutine.trace(poutine.condition(model, data=latents) if latents else model).get_trace(data)
    sites: dict[str, Any] = dict(trace.nodes)
    for name, site in sites.items():
        if type(site.get("fn")).__name__ == "_Subsample" and len(site["value"]) < site["fn"].size:
            part = len(site["value"])
            raise ModelError(
                f"plate '{name}' takes {part} of its {site['fn'].size} rows at random (subsample_size): write the "
                f"plate without it, and give batch_size={part} to the fit"
            )
    trace.compute_log_prob()
    return {name: site for name, site in sites.items() if counted(site)}


def counted(site: Any) -> bool:
    """A statement that has a density: no plate, and nothing that is only kept."""
    kept = bool((site.get("infer") or {}).get("_deterministic"))
    return site["type"] == "sample" and not kept and type(site["fn"]).__name__ != "_Subsample"


class Gaps(Messenger):
    """Leave missing cells (NaN) of observed values out by Pyro's own masks; of normal vectors take the margin.

    Parameters
    ----------
    high : bool
        Missing cells hold the largest value that was seen, otherwise the smallest: neither may matter.
    cells : dict, optional
        Values of the missing cells by site: these then count as they are.
    """

    def __init__(self, high: bool = False, cells: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.high, self.cells = high, cells or {}
        self.found: dict[str, int] = {}  # site -> missing cells
        self.constant = 0.0  # what the margins of vectors add

    def __enter__(self) -> Gaps:
        self.constant = 0.0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        value, name = msg["value"], msg["name"]
        if not msg["is_observed"] or not isinstance(value, Tensor):
            return
        if not value.is_floating_point():
            base = msg["fn"].base_dist if isinstance(msg["fn"], torch.distributions.Independent) else msg["fn"]
            if isinstance(base, dist.Bernoulli):  # which scores no integers
                msg["value"] = value.to(torch.get_default_dtype())
            return
        seen = ~value.isnan()
        if bool(seen.all()):
            return
        self.found[name] = int((~seen).sum())
        if name in self.cells:
            place = (~seen).flatten().cumsum(0).sub(1).clamp_min(0).reshape(seen.shape)
            msg["value"] = torch.where(seen, value, self.cells[name][place])
            return
        if not bool(seen.any()):
            raise Unchecked(f"site '{name}' has no value at all in the rows that were compared")
        fill = value[seen].max() if self.high else value[seen].min()
        if hasattr(msg["fn"], "parts"):  # of a row whose columns are of several families, each by itself
            parts = [p._replace(fn=part_of(p.fn, seen[..., p.place])) for p in msg["fn"].parts]
            msg["value"], msg["fn"] = torch.where(seen, value, fill), type(msg["fn"])(tuple(parts))
            return
        fn, depth = msg["fn"], 0
        while isinstance(fn, torch.distributions.Independent):
            fn, depth = fn.base_dist, depth + fn.reinterpreted_batch_ndims
        msg["value"] = torch.where(seen, value, fill)
        if isinstance(fn, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
            both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
            eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
            fn = dist.MultivariateNormal(torch.where(seen, fn.loc, 0.0), torch.where(both, fn.covariance_matrix, eye))
            msg["value"] = torch.where(seen, value, 0.0)
            self.constant += 0.5 * math.log(2 * math.pi) * self.found[name]
        else:
            if fn.event_dim:
                whole, some = seen.flatten(-fn.event_dim).all(-1), seen.flatten(-fn.event_dim).any(-1)
                if not torch.equal(whole, some):
                    raise Unchecked(f"site '{name}' has events with only some cells missing")
                seen = whole
            fn = fn.mask(seen)
        msg["fn"] = fn.to_event(depth) if depth else fn


def part_of(fn: Any, seen: Tensor) -> Any:
    """Independent cells, of which only some count."""
    depth = 0
    while isinstance(fn, torch.distributions.Independent):
        fn, depth = fn.base_dist, depth + fn.reinterpreted_batch_ndims
    if fn.event_dim:
        raise Unchecked(f"{type(fn).__name__} has events with only some cells missing")
    return fn.mask(seen).to_event(depth)


def log_density(model: Any, data: Any, values: Mapping[str, Tensor], plate: str = "data") -> Density:
    """log p of the data and of the latents in `values`, all others summed out or integrated, by Pyro alone.

    Raises
    ------
    Unchecked
        There is no such way.
    """
    model = held(model, values)
    gaps = Gaps()
    sites = traced(model, data, gaps)
    size = sum(float(site["log_prob"].abs().sum()) for site in sites.values())
    free = [name for name, site in sites.items() if not site["is_observed"]]
    discrete = [name for name in free if sites[name]["infer"].get("enumerate") == "parallel"]
    continuous = [name for name in free if name not in discrete]
    used = used_again(model, data, sites, free) if gaps.found else []
    for name in continuous:
        if sites[name]["fn"].support.is_discrete:
            raise Unchecked(f"latent '{name}' is discrete and not enumerated")
    if continuous or used:
        total = integrated(model, data, sites, continuous, discrete, used, gaps, plate)
        return Density(total, size, list(sites), used)
    if not discrete:
        total = sum(float(site["log_prob_sum"]) for site in sites.values())
        return Density(total + gaps.constant, size, list(sites), used)
    nesting = max((-frame.dim for site in sites.values() for frame in site["cond_indep_stack"]), default=0)

    def watched(data: Any) -> None:
        with gaps:
            model(data)

    elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
    return Density(-float(elbo.loss(watched, lambda data: None, data)) + gaps.constant, size, list(sites), used)


def used_again(model: Any, data: Any, sites: dict[str, Any], free: list[str]) -> list[str]:
    """Sites whose missing cells matter to others: the model goes on with the value that the site returns."""
    fixed = {name: sites[name]["value"] for name in free}
    gaps = Gaps()
    low, high = traced(model, data, gaps, **fixed), traced(model, data, Gaps(high=True), **fixed)
    moved = [n for n in low if not math.isclose(float(low[n]["log_prob_sum"]), float(high[n]["log_prob_sum"]))]
    return list(gaps.found) if moved else []


def without_gradient(model: Any, data: Any, values: Mapping[str, Tensor], latents: Iterable[str]) -> str | None:
    """A shared latent that what is observed depends on by steps alone, as in ``t < tau``; no gradient leads to it.

    Its gradient is 0, yet draws of its prior change the density.
    """
    base = traced(held(model, values), data, Gaps())
    observed = [name for name, site in base.items() if site["is_observed"] and name not in values]
    fixed = {**values, **{name: site["value"] for name, site in base.items() if not site["is_observed"]}}

    def density(given: Mapping[str, Tensor]) -> Tensor:
        sites = traced(held(model, given), data, Gaps())
        return torch.stack([sites[name]["log_prob_sum"] for name in observed]).sum()

    for name in latents:
        leaf = values[name].detach().clone().requires_grad_()
        with torch.enable_grad():
            total = density({**fixed, name: leaf})
            slope = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
        if slope is not None and bool((slope != 0).any()):
            continue
        others = {other: value for other, value in fixed.items() if other != name}
        if any(not torch.isclose(density(others), total.detach(), rtol=1e-9) for _ in range(TRIES)):
            return name
    return None


# --- what is integrated -----------------------------------------------------------------------------------------------


def integrated(
    model: Any,
    data: Any,
    sites: dict[str, Any],
    continuous: list[str],
    discrete: list[str],
    used: list[str],
    gaps: Gaps,
    plate: str,
) -> float:
    """log of the integral over continuous latents, and missing cells that the model goes on with, of a log density that
    is quadratic in them: Laplace's approximation, which is then exact.
    """
    shapes = {name: sites[name]["value"].shape for name in continuous}
    if discrete and used:
        raise Unchecked(f"the value of site '{used[0]}' is used again where it has gaps, beside discrete latents")
    if discrete:
        return mixed(model, data, sites, continuous, discrete, plate)
    sizes = {**{n: shape.numel() for n, shape in shapes.items()}, **{n: gaps.found[n] for n in used}}
    total = sum(sizes.values())
    if total > NUMBERS:
        raise Unchecked(f"{total} continuous numbers are summed out together, too many to be compared")
    constant = 0.0

    def joint(point: Tensor) -> Tensor:
        nonlocal constant
        parts = dict(zip(sizes, point.split(list(sizes.values())), strict=True))
        latents = {name: parts[name].reshape(shape) for name, shape in shapes.items()}
        cells = Gaps(cells={name: parts[name] for name in used})
        found = traced(model, data, cells, **latents)
        constant = cells.constant
        return torch.stack([site["log_prob_sum"] for site in found.values()]).sum()

    peak, curvature, _ = quadratic(joint, torch.randn(total))
    sign, log_det = torch.linalg.slogdet(-curvature)
    if sign <= 0:
        raise Unchecked("its continuous latents have no proper posterior")
    return float(peak + 0.5 * total * math.log(2 * math.pi) - 0.5 * log_det) + constant


def quadratic(joint: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest value, the matrix of second derivatives and the peak of a quadratic function of a vector."""
    with torch.enable_grad():
        point = start.detach().requires_grad_()
        value = joint(point)
        (slope,) = torch.autograd.grad(value, point, create_graph=True)
        eye = torch.eye(len(start), dtype=start.dtype)
        (curvature,) = torch.autograd.grad(slope, point, eye, is_grads_batched=True)
    step = torch.linalg.solve(-curvature, slope.detach())
    peak = value.detach() + 0.5 * slope.detach() @ step
    reached = joint(point.detach() + step)
    if not (peak - reached).abs() <= 1e-7 * (1 + value.abs() + peak.abs()):
        raise Unchecked("its continuous latents are not jointly normal given the data")
    return reached, curvature, point.detach() + step


def mixed(
    model: Any, data: Any, sites: dict[str, Any], continuous: list[str], discrete: list[str], plate: str
) -> float:
    """The same beside discrete latents of the rows: configuration by configuration, all rows side by side."""
    dims = {frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.name == plate}
    frames = [{frame.name for frame in sites[name]["cond_indep_stack"]} for name in (*continuous, *discrete)]
    if any(one != {plate} for one in frames) or len(dims) != 1:
        raise Unchecked("continuous and discrete latents lie in several plates")
    (dim,) = dims
    tables = [sites[name]["fn"].enumerate_support(expand=False).flatten() for name in discrete]
    if math.prod(len(table) for table in tables) > CONFIGURATIONS:
        raise Unchecked("continuous latents are summed out under too many values of discrete ones")
    sizes = {name: sites[name]["fn"].event_shape.numel() for name in continuous}
    width, events = sum(sizes.values()), {name: sites[name]["fn"].event_shape for name in continuous}
    each, shared = [], torch.zeros(())

    def by_row(point: Tensor, fixed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        parts = dict(zip(sizes, point.split(list(sizes.values()), 1), strict=True))
        latents = {n: parts[n].reshape(len(point), *(1,) * (-dim - 1), *events[n]) for n in continuous}
        found = traced(model, data, Gaps(), **latents, **fixed)
        rows, outside = torch.zeros(len(point)), torch.zeros(())
        for site in found.values():
            if any(frame.name == plate for frame in site["cond_indep_stack"]):
                lp = site["log_prob"]
                lp = lp.movedim(dim, 0) if lp.dim() >= -dim else lp.unsqueeze(0)
                rows = rows + lp.flatten(1).sum(1) if lp.dim() > 1 else rows + lp
            else:
                outside = outside + site["log_prob_sum"]
        return rows, outside

    count = sites[continuous[0]]["value"].shape[dim - len(events[continuous[0]])]
    for chosen in itertools.product(*tables):
        shape = {name: sites[name]["value"].shape for name in discrete}
        fixed = {name: v.expand(shape[name]).clone() for name, v in zip(discrete, chosen, strict=True)}
        with torch.enable_grad():
            point = torch.randn(count, width).requires_grad_()
            rows, shared = by_row(point, fixed)
            (slope,) = torch.autograd.grad(rows.sum(), point, create_graph=True)
            columns = [torch.autograd.grad(slope[:, k].sum(), point, retain_graph=True)[0] for k in range(width)]
        curvature = torch.stack(columns, 1)
        step = torch.linalg.solve(-curvature, slope.detach())
        peak = rows.detach() + 0.5 * (slope.detach() * step).sum(1)
        reached, _ = by_row(point.detach() + step, fixed)
        if not bool(((peak - reached).abs() <= 1e-7 * (1 + rows.abs() + peak.abs())).all()):
            raise Unchecked("its continuous latents are not jointly normal given the data and the discrete ones")
        each.append(reached + 0.5 * width * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(-curvature)[1])
    return float(torch.stack(each).logsumexp(0).sum() + shared.detach())


def site_sums(model: Any, data: Any, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Each site by itself: summed over its plates, and averaged over the values of enumerated latents."""
    model = held(model, values)
    sites = traced(model, data, Gaps())
    nesting = max((-frame.dim for site in sites.values() for frame in site["cond_indep_stack"]), default=0)
    with poutine.enum(first_available_dim=-1 - nesting):
        found = traced(model, data, Gaps())
    out = {}
    for name, site in found.items():
        lp = site["log_prob"]
        lp = lp.reshape((1,) * max(0, nesting - lp.dim()) + lp.shape)
        sizes = [1] * nesting
        for frame in site["cond_indep_stack"]:
            sizes[frame.dim] = frame.size
        lp = lp.flatten(0, lp.dim() - nesting - 1).mean(0) if lp.dim() > nesting else lp
        out[name] = float(lp.expand(sizes).sum()) if nesting else float(lp.mean())
    return out
