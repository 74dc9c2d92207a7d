r"""Normal latents that rows share, such as the effects of groups, summed out of normal data: mixed models.

With u = m + L e, e standard normal, and every mean affine in e, the data are one normal vector. In units of its noise,
with r what the means at e = 0 leave of it and Z the slopes of the means,

.. math:: \log p(y) = \log p(y \mid e = 0) - \tfrac12 \log |A| + \tfrac12 b' A^{-1} b, \quad A = I + Z'Z, \; b = Z'r

(Bates, Maechler, Bolker and Walker 2015, section 3). A row takes one cell of what stands in a plate of groups, so Z is
kept as slopes and cell numbers: one derivative of the model for each effect of a group, however many groups there are.
In A the effects of the plate of most groups meet only those of their own group: they are eliminated block by block, and
what is left is as small as the other plates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import ModelError
from ..distributions.missing import observed_part, scoring
from ..optimize.starts import jitter
from ..trace.handlers import DATA_PLATE, Bind, base_of, double, run
from ..trace.linear import follows, slopes
from ..trace.provenance import plain, symbols_of
from ..trace.structure import Structure
from .distribution import FactorNormal, covariance
from .marginalize import WAY_OUT, lean, spread_of

DENSE = 1 << 25  # numbers of the slopes of latents of which a row takes many cells
ROOTS = 1000  # latents whose covariance is kept whole
LARGEST = 1 << 26  # numbers of what is left when the largest plate is eliminated
TINY = 1e-9  # relative: a slope below it is none


class Effects(NamedTuple):
    """Numbers of a latent of which each row takes one: of its own group."""

    cells: Tensor  # (G,) their places in e
    group: Tensor  # (M,) of each observed number
    live: Tensor  # (M,) whether it was seen to take one


class Terms(NamedTuple):
    """The data as the latents see them, in units of their noise."""

    away: Tensor  # (M,) what the means at e = 0 leave
    slope: Tensor  # (M, S) of each effect
    dense: Tensor  # (M, Q) of latents of which a row takes many cells
    rest: Tensor  # () log density at e = 0, but for the squares of `away`


class Solved(NamedTuple):
    """e given the data."""

    log_prob: Tensor
    mean: Tensor  # (q,)
    variance: Tensor  # (q,)
    root: Tensor | None  # (q, q) the covariance is root root'; None where there are too many


class Seen(NamedTuple):
    """One run of the model."""

    e: Tensor
    sites: dict[str, Any]  # what is observed of the latents
    values: dict[str, Tensor]  # of the latents
    nodes: dict[str, Any]  # all else


class Shared(Messenger):
    """Put e at a point, and keep what is observed of it."""

    def __init__(self, shapes: Mapping[str, torch.Size], sites: tuple[str, ...], point: Tensor | None) -> None:
        super().__init__()
        self.shapes, self.sites, self.point = shapes, sites, point
        self.values: dict[str, Tensor] = {}
        self.met: dict[str, Any] = {}

    def __enter__(self) -> Shared:
        super().__enter__()
        self.grad = torch.enable_grad()
        self.grad.__enter__()
        width = sum(shape.numel() for shape in self.shapes.values())
        self.e = torch.zeros(width, requires_grad=True) if self.point is None else self.point
        return self

    def __exit__(self, *args: Any) -> None:
        self.grad.__exit__(*args)
        super().__exit__(*args)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.shapes:
            names = list(self.shapes)
            start = sum(self.shapes[other].numel() for other in names[: names.index(name)])
            part = self.e[start : start + self.shapes[name].numel()].reshape(self.shapes[name])
            base = base_of(msg["fn"])
            if isinstance(base, dist.Normal):
                value = base.loc + base.scale * part
            else:
                value = base.loc + (base.scale_tril @ part.unsqueeze(-1)).squeeze(-1)
            self.values[name] = msg["value"] = value
            msg["done"], msg["stop"] = True, True
        elif name in self.sites:
            self.met[name] = msg.copy()
            msg["done"], msg["stop"] = True, True


@dataclass(frozen=True)
class Mixed:
    """A model on its data whose shared normal latents are summed out."""

    model: Any
    data: Any
    structure: Structure
    shapes: dict[str, torch.Size]  # latent -> its shape, plates first
    sites: tuple[str, ...]  # what is observed of them
    effects: tuple[Effects, ...]
    dense: Tensor  # (Q,) places in e of latents of which a row takes many cells
    share: Tensor | None = None  # (N,) weights of the rows

    @property
    def width(self) -> int:
        """Coordinates of e."""
        return sum(shape.numel() for shape in self.shapes.values())

    def seen(self, values: Mapping[str, Tensor], point: Tensor | None = None) -> Seen:
        """A run of the model under params, e at a point."""
        handler = Shared(self.shapes, self.sites, point)

        def handled(data: Any) -> None:
            with handler:
                self.model(data)

        with scoring(True):
            nodes = run(handled, self.data, Bind(values), self.structure.nesting).nodes
        return Seen(handler.e, handler.met, handler.values, nodes)

    def terms(self, values: Mapping[str, Tensor]) -> Terms:
        """The data as the latents see them under params (*shape). Gradients flow to these."""
        seen = self.seen(values)
        flat = _flat_means(seen)
        along = torch.zeros(len(self.effects) + len(self.dense), self.width)
        for number, one in enumerate(self.effects):
            along[number, one.cells] = 1.0
        along[torch.arange(len(self.effects), len(along)), self.dense] = 1.0
        slope = slopes(flat, seen.e, along)
        sizes = [_size_of(msg) for msg in seen.sites.values()]
        parts = [
            self._in_noise(msg, loc, own)
            for msg, loc, own in zip(seen.sites.values(), flat.split(sizes), slope.split(sizes), strict=True)
        ]
        away, slope, rest = (torch.cat(list(each)) for each in zip(*parts, strict=True))
        count = len(self.effects)
        return Terms(away, slope[:, :count], slope[:, count:], rest.sum() + self._others(seen))

    def _in_noise(self, msg: Any, loc: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one site: (m,) what its means leave and (m, S) their slopes, in units of its noise, and the rest (1,)."""
        fn, base = msg["fn"], base_of(msg["fn"])
        shape = torch.Size((*fn.batch_shape, *fn.event_shape))
        value = plain(msg["value"]).double().expand(shape)
        loc = loc.reshape(shape)
        seen = ~value.isnan()
        if isinstance(msg["mask"], Tensor):
            mask = msg["mask"].expand(fn.batch_shape)
            seen = seen & mask.reshape(*mask.shape, *(1,) * len(fn.event_shape))
        share = self._share(msg, shape)
        if isinstance(base, dist.Normal):
            scale = plain(base.scale).expand(shape)
            unit = torch.where(seen, share.sqrt() / scale, 0.0)
            away = (torch.where(seen, value, 0.0) - loc) * unit
            rest = -(share * torch.where(seen, scale.log() + 0.5 * math.log(2 * math.pi), 0.0)).sum()
            return away.flatten(), slope * unit.reshape(-1, 1), rest.reshape(1)
        part = observed_part(torch.where(seen, value, 0.0), seen, loc, _covariance(base))
        slope = torch.where(seen.unsqueeze(-1), slope.reshape(*shape, -1), 0.0)
        slope = torch.linalg.solve_triangular(part.tril, slope, upper=False) * share.sqrt().unsqueeze(-1)
        each = part.log_det + 0.5 * seen.sum(-1) * math.log(2 * math.pi)
        rest = -(share[..., 0] * each).sum()
        return (part.white * share.sqrt()).flatten(), slope.flatten(0, -2), rest.reshape(1)

    def _share(self, msg: Any, shape: torch.Size) -> Tensor:
        """The weight of each observed number."""
        dims = [frame.dim for frame in msg["cond_indep_stack"] if frame.name == self.structure.data_plate]
        if self.share is None or not dims:
            return torch.ones(shape)
        place = dims[0] - len(msg["fn"].event_shape)
        return self.share.reshape(-1, *(1,) * (-place - 1)).expand(shape)

    def _others(self, seen: Seen) -> Tensor:
        """Log density of what is observed beside, and of the priors of other shared latents."""
        total = torch.zeros(())
        for name in (*self.structure.observed, *self.structure.outside):
            if name in self.sites:
                continue
            node = seen.nodes[name]
            log_prob = node["fn"].log_prob(node["value"])
            if isinstance(node["mask"], Tensor):
                log_prob = torch.where(node["mask"], log_prob, 0.0)
            total = total + (log_prob * self._share({**node, "fn": Flat()}, log_prob.shape) * node["scale"]).sum()
        return total + self._priors(seen.nodes)

    def _priors(self, nodes: Mapping[str, Any]) -> Tensor:
        """Log density of the priors of shared latents that are not summed out."""
        total = torch.zeros(())
        for name, param in self.structure.params.items():
            if param.prior is not None and name not in self.shapes:
                node = nodes[name]
                total = total + (node["fn"].log_prob(node["value"]) * node["scale"]).sum()
        return total

    # --- what follows ---

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p of all data under params, and of the priors of other shared latents."""
        return self.solve(self.terms(values), moments=False).log_prob

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """The part of `log_prob` that is the priors of other shared latents."""
        with torch.no_grad():
            return self._priors(self.seen(values).nodes)

    def solve(self, terms: Terms, moments: bool = True) -> Solved:
        """The normal of e given the data, the effects of the plate of most groups first."""
        big, others = _largest(self.effects)
        groups = len(big[0].cells) if big else 1
        first = [number for number, one in enumerate(self.effects) if any(one is other for other in big)]
        second = [number for number in range(len(self.effects)) if number not in first]
        k, group = len(first), big[0].group if big else torch.zeros(len(terms.away), dtype=torch.long)
        own, side = terms.slope[:, first], terms.slope[:, second]
        starts = [0]
        for one in others:
            starts.append(starts[-1] + len(one.cells))
        left = starts[-1] + len(self.dense)
        place = [one.group + start for one, start in zip(others, starts, strict=False)]
        if groups * k * left > LARGEST or left * left > LARGEST:
            raise ModelError(
                f"em: beside the {groups} groups of the largest plate {left} other effects of groups stand, more than "
                f"can be summed out together: {WAY_OUT}"
            )

        a11 = torch.eye(k) + torch.zeros(groups, k, k).index_add(0, group, own.unsqueeze(2) * own.unsqueeze(1))
        b1 = torch.zeros(groups, k).index_add(0, group, own * terms.away.unsqueeze(1))
        a12, a22 = torch.zeros(groups * k * left), torch.zeros(left * left)
        b2 = torch.zeros(left)
        for j, cell in enumerate(place):
            for i in range(k):
                a12 = a12.index_add(0, (group * k + i) * left + cell, own[:, i] * side[:, j])
            for other, its in enumerate(place):
                a22 = a22.index_add(0, cell * left + its, side[:, j] * side[:, other])
            b2 = b2.index_add(0, cell, side[:, j] * terms.away)
        a12, a22 = a12.reshape(groups * k, left), torch.eye(left) + a22.reshape(left, left)
        if len(self.dense):
            wide = torch.zeros(left, left - starts[-1])
            for j, cell in enumerate(place):
                wide = wide.index_add(0, cell, side[:, j : j + 1] * terms.dense)
            for i in range(k):
                room = torch.zeros(groups * k, len(self.dense)).index_add(
                    0, group * k + i, own[:, i : i + 1] * terms.dense
                )
                a12 = a12 + torch.nn.functional.pad(room, (starts[-1], 0))
            corner = torch.zeros(starts[-1], len(self.dense))
            wide = wide + torch.cat([corner, terms.dense.mT @ terms.dense])
            a22 = a22 + torch.nn.functional.pad(wide, (starts[-1], 0))
            below = torch.nn.functional.pad(wide[: starts[-1]].mT, (0, len(self.dense)))
            a22 = a22 + torch.cat([torch.zeros(starts[-1], left), below])
            b2 = b2 + torch.nn.functional.pad(terms.dense.mT @ terms.away, (starts[-1], 0))

        tril = torch.linalg.cholesky(a11)
        cross = torch.linalg.solve_triangular(tril, a12.reshape(groups, k, left), upper=False)
        y1 = torch.linalg.solve_triangular(tril, b1.unsqueeze(-1), upper=False)
        flat = cross.reshape(groups * k, left)
        root = torch.linalg.cholesky(a22 - flat.mT @ flat)
        y2 = torch.linalg.solve_triangular(root, (b2 - flat.mT @ y1.reshape(-1)).unsqueeze(-1), upper=False)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum() + root.diagonal().log().sum()
        gained = 0.5 * (y1.square().sum() + y2.square().sum() - terms.away.square().sum())
        log_prob = terms.rest + gained - log_det
        if not moments:
            return Solved(log_prob, terms.away, terms.away, None)

        inverse = torch.linalg.solve_triangular(root, torch.eye(left), upper=False)
        e2 = (inverse.mT @ y2).squeeze(-1)
        spread = torch.linalg.solve_triangular(tril.mT, torch.eye(k).expand(groups, k, k), upper=True)  # L11^-T
        e1 = (spread @ (y1 - (cross @ e2.unsqueeze(-1)))).squeeze(-1)
        through = spread @ cross @ inverse.mT  # (G, k, left)
        mean, variance = torch.zeros(self.width), torch.ones(self.width)
        for i, one in enumerate(big):
            mean[one.cells] = e1[:, i]
            variance[one.cells] = spread[:, i].square().sum(-1) + through[:, i].square().sum(-1)
        cells = torch.cat([*(one.cells for one in others), self.dense])
        mean[cells], variance[cells] = e2, inverse.square().sum(0)
        if self.width > ROOTS:
            return Solved(log_prob, mean, variance, None)
        found = torch.zeros(self.width, self.width)
        for i, one in enumerate(big):
            for j in range(k):
                found[one.cells, torch.arange(groups) * k + j] = spread[:, i, j]
            found[one.cells, groups * k :] = -through[:, i]
        found[cells, groups * k :] = inverse.mT
        return Solved(log_prob, mean, variance, found)

    def latents(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The posterior means (*shape) of the latents, and roots (*shape, q) of their covariance; where they are too
        many, their standard deviations (*shape) as far as these follow from their own e.
        """
        with torch.no_grad():
            solved = self.solve(self.terms(values))
            origin, there = self.seen(values), self.seen(values, solved.mean)
            out = {}
            for name, value in origin.values.items():
                mean = plain(there.values[name]).detach()
                if solved.root is not None:
                    out[name] = (mean, slopes(plain(value), origin.e, solved.root.mT))
                else:
                    away = self.seen(values, solved.variance.sqrt()).values[name]
                    out[name] = (mean, (plain(away) - plain(value)).detach().abs())
            return out


class Flat:
    """A distribution without events, where only their number is asked for."""

    event_shape = torch.Size()


def _covariance(base: Any) -> Tensor:
    if isinstance(base, FactorNormal):
        inner = {"loc": 1, "factor": 2, "scale": 1, "noise_tril": 2}
        return covariance({name: lean(plain(value), inner[name]) for name, value in base.arguments.items()})
    tril = lean(plain(base.scale_tril), 2)
    return tril @ tril.mT


def _size_of(msg: Any) -> int:
    return torch.Size((*msg["fn"].batch_shape, *msg["fn"].event_shape)).numel()


def _flat_means(seen: Seen) -> Tensor:
    """All means of what is observed of the latents, laid end to end."""
    parts = []
    with torch.enable_grad():
        for msg in seen.sites.values():
            loc = plain(base_of(msg["fn"]).loc)
            parts.append(loc.expand(*msg["fn"].batch_shape, *msg["fn"].event_shape).reshape(-1))
        return torch.cat(parts)


def _largest(effects: tuple[Effects, ...]) -> tuple[list[Effects], list[Effects]]:
    """Those effects of one grouping that are most numbers, and the others."""
    alike: list[list[Effects]] = []
    for one in effects:
        for own in alike:
            if len(one.cells) == len(own[0].cells) and torch.equal(one.group, own[0].group):
                own.append(one)
                break
        else:
            alike.append([one])
    best = max(alike, key=lambda own: len(own) * len(own[0].cells), default=[])
    return best, [one for own in alike if own is not best for one in own]


# --- reading ----------------------------------------------------------------------------------------------------------


def find_mixed(model: Any, data: Any, structure: Structure, share: Tensor | None = None) -> Mixed | None:
    """The shared latents of a model that are summed out: normal ones of which the spread is learned, and those of the
    groups of rows; None where there are none.

    Raises
    ------
    ModelError
        The spread of a shared latent is learned, and it cannot be summed out: learned at a point beside its spread, it
        would be found where the spread is 0 and the density infinite.
    """
    learned = [name for name, param in structure.params.items() if param.prior is not None and _learns_spread(param)]
    found: Mixed | None = None
    problem = ""
    for names in _candidates(structure, learned):
        try:
            found = _read(model, data, structure, names, share)
            if set(learned) <= set(found.shapes) and (learned or _by_row(found)):
                return found
        except (ModelError, RuntimeError, ValueError, IndexError) as error:
            problem = problem or str(error).splitlines()[0]
    if learned:
        spread = ", ".join(repr(n) for n in sorted(_spread_names(structure.params[learned[0]])))
        why = problem or "what depends on it is not normal with a mean affine in it"
        raise ModelError(
            f"em: the prior of latent '{learned[0]}', which rows share, has a spread that is learned ({spread}), and "
            f"it cannot be summed out ({why}): learned at a point, it would run to a spread of 0; give its prior a "
            f"fixed spread, or {WAY_OUT}"
        )
    return None


def _candidates(structure: Structure, learned: list[str]) -> Iterator[tuple[str, ...]]:
    """Sets of normal latents to be tried: with those of groups whose spread is fixed, then without."""
    params, nodes = structure.params, structure.trace.nodes
    if structure.latents or structure.continuous:
        return
    normal = [
        name
        for name, param in params.items()
        if param.prior is not None and type(base_of(param.prior["fn"])) in (dist.Normal, dist.MultivariateNormal)
    ]

    def takers(name: str) -> list[str]:
        sites = [s for s in (*structure.observed, *structure.outside) if name in symbols_of(nodes[s]["fn"])]
        return sites + [n for n, p in params.items() if p.prior is not None and name in symbols_of(p.prior["fn"])]

    def fits(name: str) -> bool:
        kinds = [base_of(params[t].prior["fn"] if t in params else nodes[t]["fn"]) for t in takers(name)]
        return all(type(kind) in (dist.Normal, dist.MultivariateNormal, FactorNormal) for kind in kinds)

    def closed(names: list[str]) -> tuple[str, ...]:
        """With the latents whose priors hang on them."""
        out = list(names)
        for name in out:
            out += [t for t in takers(name) if t in params and t not in out]
        return tuple(name for name in params if name in out)

    in_plates = [name for name in normal if params[name].prior["cond_indep_stack"] and fits(name)]
    tried = []
    for names in (closed([*learned, *in_plates]), closed(learned)):
        if names and names not in tried and all(name in normal and fits(name) for name in names):
            tried.append(names)
            yield names


def _spread_names(param: Any) -> frozenset[str]:
    """What the prior's arguments other than its place hang on."""
    fn = param.prior["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return symbols_of(SimpleNamespace(**{k: v for k, v in vars(fn).items() if k != "loc" and not k.startswith("_")}))


def _learns_spread(param: Any) -> bool:
    return bool(_spread_names(param))


def _by_row(mixed: Mixed) -> bool:
    """Whether each row takes its effects by an index: other cells in other rows."""
    return bool(mixed.effects) and not len(mixed.dense) and all(bool(_varies(mixed, one)) for one in mixed.effects)


def _varies(mixed: Mixed, one: Effects) -> bool:
    """Whether the group differs from row to row within one observed column."""
    start = 0
    for name in mixed.sites:
        node = mixed.structure.trace.nodes[name]
        shape = torch.Size((*node["fn"].batch_shape, *node["fn"].event_shape))
        dims = [f.dim - len(node["fn"].event_shape) for f in node["cond_indep_stack"] if f.name == DATA_PLATE]
        group = one.group[start : start + shape.numel()].reshape(shape)
        start += shape.numel()
        if dims and bool((group != group.narrow(dims[0], 0, 1)).any()):
            return True
    return False


def _read(model: Any, data: Any, structure: Structure, names: tuple[str, ...], share: Tensor | None) -> Mixed:
    """Which cells each observed number takes, seen at two values of the params that are nothing special."""
    nodes = structure.trace.nodes
    sites = tuple(s for s in (*structure.observed, *structure.outside) if symbols_of(nodes[s]["fn"]) & set(names))
    if not sites:
        raise ModelError("no observed site depends on it")
    for name in sites:
        if nodes[name]["scale"] != 1.0:
            raise ModelError(f"site '{name}' is scaled")
    shapes = {name: structure.params[name].value.shape for name in names}
    blank = Mixed(model, data, structure, dict(shapes), sites, (), torch.zeros(0, dtype=torch.long), share)
    start = {n: double(p.value) for n, p in structure.params.items() if n not in names}
    generator = torch.Generator().manual_seed(0)
    points = [jitter(start, structure, generator) for _ in range(2)] if start else [start, start]
    with torch.no_grad():
        runs = [blank.seen(point) for point in points]
        flats = [_flat_means(one) for one in runs]
        effects, dense, first = [], [], 0
        for name, shape in shapes.items():
            own = _effects_of(first, shape, structure.params[name].prior, runs, flats)
            if own is None:
                dense.append(torch.arange(first, first + shape.numel()))
            effects += own or []
            first += shape.numel()
        wide = torch.cat(dense) if dense else blank.dense
        if len(wide) * len(flats[0]) > DENSE:
            raise ModelError(
                f"each of {len(flats[0])} observed numbers takes many of the {len(wide)} cells of it, more than can be "
                f"held"
            )
        effects = [_whole(one, runs[0]) for one in _unified(effects)]
        mixed = Mixed(model, data, structure, dict(shapes), sites, tuple(effects), wide, share)
        _check_line(mixed, points[1])
    return mixed


def _effects_of(
    first: int, shape: torch.Size, prior: Any, runs: list[Seen], flats: list[Tensor]
) -> list[Effects] | None:
    """A latent as effects, of each of which a row takes one cell; None where it is no such thing."""
    cells = first + torch.arange(shape.numel()).reshape(shape)
    plates = len(prior["fn"].batch_shape)
    ways = [tuple(range(plates))] + [(dim,) for dim in range(plates) if plates > 1 and shape[dim] > 1]
    for way in ways if plates else ():
        rest = [dim for dim in range(len(shape)) if dim not in way]
        table = cells.permute(*rest, *way).reshape(-1, torch.Size([shape[d] for d in way]).numel())  # (slots, G)
        if len(table) > 64:
            continue
        found = [_effect(own, runs, flats) for own in table]
        if all(one is not None for one in found):
            return [one for one in found if one is not None]
    return None


def _effect(cells: Tensor, runs: list[Seen], flats: list[Tensor]) -> Effects | None:
    """The group of each observed number, where it takes one of these cells at most: found by giving each a number."""
    numbers = torch.arange(1, len(cells) + 1).double()
    group, live = torch.zeros(len(flats[0]), dtype=torch.long), torch.zeros(len(flats[0]), dtype=torch.bool)
    for seen, flat in zip(runs, flats, strict=True):
        along = torch.zeros(3, len(seen.e))
        along[:, cells] = torch.stack([torch.ones(len(cells)), numbers, numbers**2])
        one, first, second = slopes(flat, seen.e, along).unbind(-1)
        there = one.abs() > TINY * one.abs().max()
        number = torch.where(there, first / one, 1.0)
        whole = number.round().clamp(1, len(cells))
        room = 1e-6 * one.abs()
        same = ((first - whole * one).abs() <= room * whole) & ((second - whole**2 * one).abs() <= room * whole**2)
        if not bool(torch.where(there, same, (first.abs() <= TINY * len(cells) * one.abs().max()))[:].all()):
            return None
        group = torch.where(there & ~live, whole.long() - 1, group)
        live = live | there
    return Effects(cells, group, live)


def _unified(effects: list[Effects]) -> list[Effects]:
    """Effects of one grouping have one vector of groups, also where a slope (a covariate of 0) is none."""
    out: list[Effects] = []
    for one in effects:
        for other in out:
            both = one.live & other.live
            if len(one.cells) == len(other.cells) and bool((one.group == other.group)[both].all()):
                group, live = torch.where(other.live, other.group, one.group), one.live | other.live
                alike = [n for n, own in enumerate(out) if own.group is other.group]
                for place in alike:
                    out[place] = Effects(out[place].cells, group, live)
                one = Effects(one.cells, group, live)
                break
        out.append(one)
    return out


def _whole(one: Effects, seen: Seen) -> Effects:
    """Vectors of a row are brought to unit noise together, so their numbers take one group."""
    group, start = one.group.clone(), 0
    for msg in seen.sites.values():
        size = _size_of(msg)
        if not isinstance(base_of(msg["fn"]), dist.Normal):
            width = msg["fn"].event_shape[0]
            own, live = (
                group[start : start + size].reshape(-1, width),
                one.live[start : start + size].reshape(-1, width),
            )
            chosen = torch.where(live, own, -1).amax(1, keepdim=True)
            if bool((live & (own != chosen)).any()):
                raise ModelError("the numbers of one vector take several groups")
            group[start : start + size] = chosen.clamp_min(0).expand_as(own).reshape(-1)
        start += size
    return Effects(one.cells, group, torch.ones_like(one.live))


def _check_line(mixed: Mixed, values: Mapping[str, Tensor]) -> None:
    """The means are affine in e, and no spread depends on it."""
    point = torch.randn(mixed.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    origin, there = mixed.seen(values), mixed.seen(values, point)
    for name, msg in origin.sites.items():
        ours, theirs = base_of(msg["fn"]), base_of(there.sites[name]["fn"])
        one, two = (_covariance(b) if not isinstance(b, dist.Normal) else plain(spread_of(b)) for b in (ours, theirs))
        if not torch.allclose(one, two, rtol=1e-8, atol=0):
            raise ModelError(f"the spread of site '{name}' depends on it")
    flat = _flat_means(origin)
    found = torch.zeros_like(flat)
    for effect in mixed.effects:
        along = torch.zeros(1, mixed.width)
        along[0, effect.cells] = 1.0
        found = found + slopes(flat, origin.e, along).squeeze(-1) * point[effect.cells][effect.group]
    along = torch.zeros(len(mixed.dense), mixed.width)
    along[torch.arange(len(mixed.dense)), mixed.dense] = 1.0
    found = found + slopes(flat, origin.e, along) @ point[mixed.dense]
    if not follows(flat.detach(), found.unsqueeze(-1), torch.ones(1), _flat_means(there)):
        raise ModelError("a mean is not affine in it")
