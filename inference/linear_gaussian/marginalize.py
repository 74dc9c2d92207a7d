r"""Summing normal latents of a row out of a model, where everything that depends on them is linear and Gaussian.

Written as u = m + L e with e standard normal, such latents make the means of what is observed affine in e. So one run
of the model, with e at 0, tells the whole map: the means, and their slopes (`trace.linear`). All sites that depend on
the latents are then one normal vector of each row, e summed out (`distribution.FactorNormal`), which the model says in
their place. To the engine that is a model like any other.

An observed value that is handed on, such as ``x`` in a regression of y on x, is met as a latent where some of its cells
are missing: it then enters the vector as it stands, without noise of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import ModelError
from ..base.unconstrained import base_constraint
from ..trace.handlers import Bind, base_of, double, is_bookkeeping, run
from ..trace.idioms import MADE_HOLES
from ..trace.linear import follows, slopes
from ..trace.polynomials import unbroadcast
from ..trace.provenance import computed_like, drawn, plain, provenance, symbols_of
from ..trace.structure import Structure, read, read_again
from .distribution import FactorNormal

WAY_OUT = 'use inference="svi"'
NUMBERED = (constraints.real, constraints.positive, constraints.nonnegative, constraints.softplus_positive)


# --- a model without its latents --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gather:
    """Cells of one param that an argument of a site is made of."""

    param: str
    cells: Tensor
    by_row: bool = False  # other cells for other rows

    def of(self, values: Mapping[str, Tensor], met: Tensor) -> Tensor:
        """These cells in the shape in which they were met in a run, whose dims of size 1 may stand elsewhere."""
        if met.numel() != self.cells.numel():
            return met
        return values[self.param].reshape(-1)[self.cells.reshape(met.shape)]


@dataclass(frozen=True)
class Marginal:
    """A model with the normal latents of its rows summed out; itself a plain function of the data."""

    model: Any
    latents: dict[str, torch.Size]  # name -> event shape
    gaps: dict[str, torch.Size]  # observed sites whose values are handed on, and have missing cells: met as latents
    sites: tuple[str, ...]  # what is observed of the latents, in order
    data_dim: int
    derived: frozenset[str] = frozenset()  # what `pyro.deterministic` keeps of them
    of_row: bool = False  # whether the latents stand at each row, for a model that looks at their shape
    still: frozenset[str] = frozenset()  # arguments ("loc", "factor") that are then the same in all rows, as was seen
    gathers: dict[str, Gather] = field(default_factory=dict)  # argument ("loc", "factor") -> cells it was seen to be

    @property
    def width(self) -> int:
        """Coordinates of e."""
        return sum(shape.numel() for shape in (*self.latents.values(), *self.gaps.values()))

    @property
    def site(self) -> str:
        """The name of the vector of all that is observed."""
        return self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} to {self.sites[-1]}"

    def __call__(self, data: Any) -> None:
        with SumOut(self):
            self.model(data)

    def maps(self, data: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Each latent (batch, *event) at e = 0, and its slopes (batch, *event, E), as one run of the model under the
        handlers in force has them.
        """
        with SumOut(self) as handler:
            self.model(data)
        found = {n: (value, handler.slopes(value, len(self.latents[n]))) for n, value in handler.values.items()}
        return found if handler.with_grad else {n: (value.detach(), slope) for n, (value, slope) in found.items()}


class Part(NamedTuple):
    """An observed site as cells of the vector."""

    loc: Tensor  # (batch, D)
    scale: Tensor | None  # (batch, D)
    tril: Tensor | None  # (batch, D, D); neither where there is no noise
    value: Tensor  # (N, D)
    batch: torch.Size


def varies_by_row(model: Any) -> bool:
    """Whether something was seen of these very rows, which cells an argument takes in each of them, or that it is the
    same in all: on other rows it must be seen again.
    """
    return isinstance(model, Marginal) and bool(model.still or any(one.by_row for one in model.gathers.values()))


class SumOut(Messenger):
    """Put e at a point, and the marginal of all that is observed of it in the place of the last site."""

    def __init__(self, marginal: Marginal, point: Tensor | None = None) -> None:
        super().__init__()
        self.marginal, self.point = marginal, point
        self.params: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}  # of the latents
        self.spreads: dict[str, Tensor] = {}  # of latents and sites, which may not depend on e
        self.others: dict[str, Any] = {}  # distributions that may not depend on it either
        self.parts: dict[str, Part] = {}
        self.joint: tuple[Tensor, Tensor] | None = None  # loc and factor as they were met

    def __enter__(self) -> SumOut:
        super().__enter__()
        self.with_grad, self.grad = torch.is_grad_enabled(), torch.enable_grad()
        self.grad.__enter__()
        self.e = torch.zeros(self.marginal.width, requires_grad=True) if self.point is None else self.point
        return self

    def __exit__(self, *args: Any) -> None:
        self.grad.__exit__(*args)
        super().__exit__(*args)

    def _pyro_post_param(self, msg: Any) -> None:
        self.params[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg: Any) -> None:
        self.params[msg["name"]] = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        name, marginal = msg["name"], self.marginal
        if name in marginal.derived:  # computed from e: its posterior is not tabulated
            msg["done"], msg["stop"] = True, True
        elif name in marginal.latents:
            self.values[name] = msg["value"] = self._latent(name, msg, marginal.latents[name])
            msg["done"], msg["stop"] = True, True
        elif name in marginal.sites:
            self._observed(msg)
        elif not is_bookkeeping(msg):
            self.others[name] = msg["fn"]

    def _observed(self, msg: Any) -> None:
        """Keep an observed site; the last one is said for all."""
        name, base, value, marginal = msg["name"], base_of(msg["fn"]), msg["value"], self.marginal
        msg["done"], msg["stop"] = True, True
        if name in marginal.gaps:
            msg["value"] = self._latent(name, msg, marginal.gaps[name])
            self.parts[name] = self._part(msg, value, msg["value"], None)
        else:
            self.spreads[name] = spread_of(base)
            self.parts[name] = self._part(msg, value, base.loc, self.spreads[name])
        if name == marginal.sites[-1]:
            msg["name"], msg["stop"], msg["mask"] = marginal.site, False, None
            msg["infer"] = {**msg["infer"], MADE_HOLES: True}  # masked cells are written as missing ones
            msg["fn"], msg["value"] = self._marginal()
            msg["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f.dim == marginal.data_dim)

    def _latent(self, name: str, msg: Any, shape: torch.Size) -> Tensor:
        """Values (batch, *event) of a latent: of one row, or, for a model that looks at its shape, of each."""
        start, dim = 0, self.marginal.data_dim
        for other, size in {**self.marginal.latents, **self.marginal.gaps}.items():
            if other == name:
                break
            start += size.numel()
        rows = next(f.size for f in msg["cond_indep_stack"] if f.dim == dim) if self.marginal.of_row else 1
        part = self.e[start : start + shape.numel()].reshape(*(1,) * -dim, *shape)
        part = part.expand(rows, *part.shape[1:])
        base = base_of(msg["fn"])
        loc, self.spreads[name] = lean(base.loc, len(shape)), spread_of(base)
        if isinstance(base, dist.Normal):
            return loc + lean(base.scale, len(shape)) * part
        return loc + (lean(base.scale_tril, 2) @ part.unsqueeze(-1)).squeeze(-1)

    def _part(self, msg: Any, value: Tensor, loc: Tensor, spread: Tensor | None) -> Part:
        fn, dim, mask = msg["fn"], self.marginal.data_dim, msg["mask"]
        inner = len(fn.event_shape)
        if mask is not None and mask is not True:  # a cell that does not count is one that is not there
            shown = torch.as_tensor(mask).expand(fn.batch_shape).reshape(*fn.batch_shape, *(1,) * inner)
            value = torch.where(shown, value, torch.nan)
        beside = [(frame.dim, frame.size) for frame in msg["cond_indep_stack"] if frame.dim != dim]

        def cells(tensor: Tensor) -> Tensor:
            """(batch, event) as (batch, D): what stands in plates beside the data's is a cell too."""
            count = inner
            for place, size in beside:
                tensor = tensor.reshape((1,) * (count - place - tensor.dim()) + tensor.shape)
                sizes = [-1] * tensor.dim()
                sizes[place - count] = size
                tensor = tensor.expand(sizes).unsqueeze(tensor.dim() - count)
                count += 1
                tensor = tensor.transpose(place - count, tensor.dim() - count)
            return tensor.unsqueeze(-1) if count == 0 else tensor.flatten(tensor.dim() - count)

        batch = list(fn.batch_shape)
        for place, _ in beside:
            batch[place] = 1
        own = cells(value)
        own = own.reshape(own.shape[max(0, own.dim() - 1 + dim) :])
        while len(batch) > -dim and batch[0] == 1:
            batch = batch[1:]
        whole = isinstance(base_of(fn), dist.MultivariateNormal)
        scale = None if spread is None or whole else cells(lean(spread, inner))
        tril = None if spread is None or not whole else lean(spread, 2)
        return Part(cells(lean(loc, inner)), scale, tril, own, torch.Size(batch))

    def slopes(self, source: Tensor, inner: int) -> Tensor:
        """The slopes (batch, *event, E) of what was computed from e, without the copies that a batch makes of them."""
        with torch.enable_grad():  # without, a view of what has a gradient has none
            out = plain(source)
        with torch.set_grad_enabled(self.with_grad):
            found = lean(slopes(out, self.e), 1 + inner)
        return computed_like(found, source, "a slope")

    def factors(self, locs: list[Tensor]) -> list[Tensor]:
        """The slopes (batch, D, E) of means (batch, D). Those of one batch shape go together: some vary from row to
        row, and others need not know.
        """
        alike: dict[torch.Size, list[int]] = {}
        for number, loc in enumerate(locs):
            alike.setdefault(loc.shape[:-1], []).append(number)
        out: dict[int, Tensor] = {}
        for numbers in alike.values():
            found = self.slopes(stacked([locs[n] for n in numbers], 1), 1)
            out |= dict(zip(numbers, found.split([locs[n].shape[-1] for n in numbers], -2), strict=True))
        return [out[number] for number in range(len(locs))]

    def _marginal(self) -> tuple[FactorNormal, Tensor]:
        """The marginal of all parts, and their values."""
        marginal, parts = self.marginal, list(self.parts.values())
        met = {
            "loc": stacked([trimmed(part.loc, 1) for part in parts], 1),
            "factor": stacked([trimmed(one, 2) for one in self.factors([part.loc for part in parts])], 2),
        }
        if not self.with_grad:
            met["loc"] = met["loc"].detach()
        for key, inner in (("loc", 1), ("factor", 2)):
            dim = met[key].dim() - inner + marginal.data_dim
            if key in marginal.still and dim >= 0:
                met[key] = trimmed(met[key].narrow(dim, 0, 1), inner)
        self.joint = (met["loc"], met["factor"])
        for key, gather in marginal.gathers.items():
            met[key] = gather.of(self.params, met[key])
        if all(part.tril is None for part in parts):
            scales = [torch.zeros(p.loc.shape[-1]) if p.scale is None else trimmed(p.scale, 1) for p in parts]
            fn = FactorNormal(met["loc"], met["factor"], scale=stacked(scales, 1))
        else:
            fn = FactorNormal(met["loc"], met["factor"], noise_tril=block_diagonal(parts))
        batch = torch.broadcast_shapes(*(part.batch for part in parts))
        return fn.expand(batch), stacked([part.value for part in parts], 1)


def spread_of(base: Any) -> Tensor:
    spread: Tensor = base.scale if isinstance(base, dist.Normal) else base.scale_tril
    return spread


def lean(value: Tensor, inner: int) -> Tensor:
    """A tensor without the copies that `expand` made of its batch."""
    event = value.shape[value.dim() - inner :]
    value = unbroadcast(value)
    return value.expand(*value.shape[: value.dim() - inner], *event)


def trimmed(value: Tensor, inner: int) -> Tensor:
    """A tensor without leading dims of size 1 before its last `inner`."""
    extra = 0
    while extra < value.dim() - inner and value.shape[extra] == 1:
        extra += 1
    return value.reshape(value.shape[extra:]) if extra else value


def stacked(parts: list[Tensor], inner: int) -> Tensor:
    """Vectors, or matrices (`inner` 2) of as many columns, one below the other."""
    if len(parts) == 1:
        return parts[0]
    batch = torch.broadcast_shapes(*(part.shape[: part.dim() - inner] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[part.dim() - inner :]) for part in parts], -inner)


def block_diagonal(parts: list[Part]) -> Tensor:
    """The Cholesky factor (..., D, D) of the noise of all parts."""
    if len(parts) == 1 and parts[0].tril is not None:
        return trimmed(parts[0].tril, 2)
    sizes, blocks = [part.loc.shape[-1] for part in parts], []
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        scale = torch.zeros(size) if part.scale is None else part.scale
        block = torch.diag_embed(scale.expand(*scale.shape[:-1], size)) if part.tril is None else part.tril
        room = (sum(sizes[:number]), sum(sizes[number + 1 :]))
        blocks.append(trimmed(torch.nn.functional.pad(block, room), 2))
    return stacked(blocks, 2)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_exact(model: Any, data: Any, values: Mapping[str, Tensor] | None = None) -> tuple[Any, Structure]:
    """The model as exact inference takes it, normal latents of its rows summed out, and its structure.

    Raises
    ------
    ModelError
        A continuous latent of the rows that cannot be summed out; an observed value with missing cells on which another
        site depends in a way that is not linear and normal.
    """
    structure = read(model, data, values)
    gaps = handed_on(model, data, structure)
    if not structure.continuous and not gaps:
        return model, structure
    marginal = sum_out(model, data, structure, gaps)
    return marginal, read_again(marginal, data, structure)


class Marked(Messenger):
    """Mark the values of observed sites with missing cells, so that what depends on them tells so."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] and not is_bookkeeping(msg) and has_gaps(value):
            msg["value"] = drawn(plain(value), msg["name"])


def has_gaps(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(plain(value).isnan().any())


def has_new_gaps(known: Structure, found: Structure) -> bool:
    """Whether sites have missing cells on other data that had none on those of a reading: who handed on such a value
    must be read again.
    """
    nodes, others = known.trace.nodes, found.trace.nodes
    return any(has_gaps(others[name]["value"]) and not has_gaps(nodes[name]["value"]) for name in found.observed)


def handed_on(model: Any, data: Any, structure: Structure) -> dict[str, tuple[str, ...]]:
    """Observed sites with missing cells whose values others depend on: name -> these others."""
    open_sites = [name for name in structure.observed if has_gaps(structure.trace.nodes[name]["value"])]
    if not open_sites:
        return {}

    def marked(data: Any) -> None:
        with Marked():
            model(data)

    values = {name: double(param.value) for name, param in structure.params.items()}
    nodes = run(marked, data, Bind(values), structure.nesting).nodes
    used = {other: depends_on(node) for other, node in nodes.items()}
    found = {name: tuple(other for other, names in used.items() if name in names) for name in open_sites}
    return {name: others for name, others in found.items() if others}


def check_handed_on(model: Any, data: Any, structure: Structure, inference: str) -> None:
    """An observed value with missing cells is handed on in no way, where gaps are not summed out as latents are."""
    for name, others in handed_on(model, data, structure).items():
        raise ModelError(
            f"{inference}: site '{name}' has missing cells, and site '{others[0]}' is computed from its value, so a "
            f'gap is a latent of its row: use inference="em", which sums normal ones out, or drop those rows'
        )


def depends_on(node: Any) -> frozenset[str]:
    """What a sample statement was given; of `pyro.deterministic`, what its value comes from."""
    if not is_bookkeeping(node):
        return symbols_of(node["fn"])
    known = provenance(node["value"])
    return frozenset() if known is None else known.names


def sum_out(model: Any, data: Any, structure: Structure, gaps: Mapping[str, tuple[str, ...]] | None = None) -> Marginal:
    """The model with its continuous latents summed out, `gaps` (`handed_on`) with them."""
    gaps = handed_on(model, data, structure) if gaps is None else gaps
    nodes = structure.trace.nodes
    named = names_of(structure.continuous, tuple(gaps))
    for name in (*structure.continuous, *gaps):
        _check_latent(name, nodes[name], structure, name in gaps)
    sites, derived = [], set()
    for name, node in nodes.items():
        given = depends_on(node) & set(structure.continuous) or any(name in others for others in gaps.values())
        if is_bookkeeping(node):
            derived |= {name} if given else set()
        elif (given or name in gaps) and name not in structure.continuous:
            _check_site(name, node, structure, named)
            sites.append(name)
    if not sites:
        raise ModelError(
            f"em: no observed site depends on latent '{structure.continuous[0]}': leave it out of the model"
        )
    latents = {name: nodes[name]["fn"].event_shape for name in structure.continuous}
    own = {name: nodes[name]["fn"].event_shape for name in gaps}
    marginal = Marginal(model, latents, own, tuple(sites), structure.data_dim, frozenset(derived))
    params = {name: double(param.value).nan_to_num() for name, param in structure.params.items()}
    problem: Exception | None = None
    for of_row in (False, True):
        marginal = replace(marginal, of_row=of_row)
        try:
            _check_affine(marginal, data, structure, params, named)
            break
        except (RuntimeError, ValueError, IndexError) as error:
            problem = error
    else:
        raise ModelError(
            f"em: the model fails where {named} stands at a value in all rows "
            f"({str(problem).splitlines()[0]}): {WAY_OUT}"
        ) from problem
    return _numbered(marginal, data, structure, params)


def names_of(latents: tuple[str, ...], gaps: tuple[str, ...]) -> str:
    parts = []
    if latents:
        parts.append("continuous latent " + ", ".join(f"'{name}'" for name in latents))
    if gaps:
        parts.append("observed value " + ", ".join(f"'{name}'" for name in gaps) + " (with missing cells)")
    return " and ".join(parts)


def _check_latent(name: str, node: Any, structure: Structure, is_gap: bool) -> None:
    fn = node["fn"]
    if is_gap and type(base_of(fn)) not in (dist.Normal, dist.MultivariateNormal):
        raise ModelError(
            f"em: site '{name}' is observed with missing cells, its value is used by other sites, and it is a "
            f"{type(base_of(fn)).__name__}: only normal ones can be summed out: leave rows with gaps in it out, or "
            f"make it a latent of the row that is enumerated"
        )
    if type(base_of(fn)) not in (dist.Normal, dist.MultivariateNormal):
        raise ModelError(
            f"em: site '{name}' is a continuous latent of each row, a {type(base_of(fn)).__name__}, and only "
            f"normal ones can be summed out: discretise it on nodes (Categorical over fixed points), or {WAY_OUT}"
        )
    inner = sorted({frame.name for frame in node["cond_indep_stack"]} - {structure.data_plate})
    if inner:
        raise ModelError(
            f"em: site '{name}' is a continuous latent inside the plate {', '.join(map(repr, inner))} of each row: "
            f"to sum it out, sample it in the data plate alone, as a vector with .to_event(1), or {WAY_OUT}"
        )


def _check_site(name: str, node: Any, structure: Structure, named: str) -> None:
    """What depends on the latents is observed, normal, and a number or vector of its row."""
    fn, base = node["fn"], base_of(node["fn"])
    if not node["is_observed"]:
        raise ModelError(
            f"em: site '{name}' depends on {named}, which can only be summed out of what is observed: {WAY_OUT}"
        )
    if type(base) not in (dist.Normal, dist.MultivariateNormal):
        raise ModelError(
            f"em: {named} cannot be summed out: site '{name}' depends on it and is a "
            f"{type(base).__name__}, not a normal whose mean is affine in it: {WAY_OUT}"
        )
    frames = {frame.name: frame for frame in node["cond_indep_stack"]}
    beside = len(frames) - 1
    inner, vector = len(fn.event_shape), isinstance(base, dist.MultivariateNormal)
    wide = vector and (fn is not base or beside)
    if structure.data_plate not in frames or inner > 1 or wide or (beside and structure.latents):
        raise ModelError(
            f"em: site '{name}' depends on {named} in batch shape {tuple(fn.batch_shape)} "
            f"and event shape {tuple(fn.event_shape)}: to sum it out, observe each row as one vector, "
            f"Normal(...).to_event(1), in the data plate alone, or {WAY_OUT}"
        )
    if node["scale"] != 1.0:
        raise ModelError(f"em: site '{name}' depends on {named} and is scaled, so it cannot be summed out: {WAY_OUT}")


def _met(
    marginal: Marginal, data: Any, structure: Structure, values: Mapping[str, Tensor], point: Tensor | None = None
) -> SumOut:
    handler = SumOut(marginal, point)

    def handled(data: Any) -> None:
        with handler:
            marginal.model(data)

    with torch.no_grad():
        run(handled, data, Bind(values), structure.nesting)
    return handler


def _check_affine(
    marginal: Marginal, data: Any, structure: Structure, values: Mapping[str, Tensor], named: str
) -> None:
    """The means are affine in the latents, and nothing else depends on them: seen at a random point."""
    point = torch.randn(marginal.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    origin, there = _met(marginal, data, structure, values), _met(marginal, data, structure, values, point)
    for name, spread in origin.spreads.items():
        if not torch.equal(spread, there.spreads[name]):
            what = "scale" if isinstance(base_of(structure.trace.nodes[name]["fn"]), dist.Normal) else "covariance"
            raise ModelError(
                f"em: site '{name}' has a {what} that depends on {named}, so it cannot be summed out: {WAY_OUT}"
            )
    for name, fn in origin.others.items():
        ours, theirs = vars(base_of(fn)), vars(base_of(there.others[name]))
        tensors = [key for key, value in ours.items() if isinstance(value, Tensor)]
        if not all(torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num()) for key in tensors):
            raise ModelError(f"em: site '{name}' depends on {named} in a way that cannot be followed: {WAY_OUT}")
    for name, part in origin.parts.items():
        slope = plain(origin.slopes(part.loc, 1))
        if not follows(plain(part.loc).detach(), slope, point, plain(there.parts[name].loc)):
            raise ModelError(
                f"em: {named} cannot be summed out: the mean of site '{name}' is not affine in it (a sum "
                f"of products of the latent with params, plus what does not depend on it): {WAY_OUT}"
            )


def _numbered(marginal: Marginal, data: Any, structure: Structure, values: dict[str, Tensor]) -> Marginal:
    """Which arguments are cells of a param as they stand, found by giving every cell a number of its own, twice; and
    whether the slopes of latents that stand at each row are the same in all.
    """
    names = [n for n, p in structure.params.items() if base_constraint(p.constraint) in NUMBERED]
    sizes = [values[name].numel() for name in names]
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes, dtype=torch.long))
    place = torch.cat([torch.arange(size) for size in sizes]) if sizes else torch.zeros(0, dtype=torch.long)
    numbers = torch.arange(sum(sizes)).double()

    def met(marginal: Marginal, codes: Tensor) -> tuple[Tensor, Tensor]:
        parts = codes.split(sizes)
        given = {n: part.reshape(values[n].shape) for n, part in zip(names, parts, strict=True)}
        found = _met(marginal, data, structure, {**values, **given}).joint
        assert found is not None
        return found

    try:  # whole numbers, so that no sum of them is rounded
        first, second = met(marginal, numbers + 2), met(marginal, 3 * numbers + 7)
        if marginal.of_row:
            same = [all(_same_in_rows(found[i], 1 + i, marginal.data_dim) for found in (first, second)) for i in (0, 1)]
            marginal = replace(
                marginal, still=frozenset(n for n, it in zip(("loc", "factor"), same, strict=True) if it)
            )
            first, second = met(marginal, numbers + 2), met(marginal, 3 * numbers + 7)
    except (RuntimeError, ValueError, IndexError):  # a param that will not be a number of any size
        return marginal
    gathers = {}
    for key, one, two in zip(("loc", "factor"), first, second, strict=True):
        cell = (one - 2).nan_to_num(nan=-1.0)
        whole = (cell == cell.round()) & (cell >= 0) & (cell < len(numbers))
        cells = torch.where(whole, cell, 0.0).long()
        if not bool(whole.all()) or not len(numbers) or not torch.equal(two, 3.0 * cells + 7):
            continue
        own = owner[cells].unique()
        if len(own) == 1:
            dim = structure.data_dim - (1 if key == "loc" else 2)
            gathers[key] = Gather(names[int(own)], place[cells], cells.dim() >= -dim and cells.shape[dim] > 1)
    return replace(marginal, gathers=gathers)


def _same_in_rows(value: Tensor, inner: int, data_dim: int) -> bool:
    dim = value.dim() + data_dim - inner
    return dim < 0 or torch.equal(value, value.narrow(dim, 0, 1).expand(value.shape))
