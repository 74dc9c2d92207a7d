"""Normal sites whose location is bilinear in latents: ``z @ w.T + mu``, ``(u[i] * v[j]).sum(-1) + a[i]``, ``x @ b``.

Every location is a product of a left vector and a right vector, l_i . r_j, whose coordinates are cells of latents,
data, or ones (`mu` is a right coordinate whose left one is 1). Under a mean field E (l_i . r_j)^2 is the product of
the two second moments, so the expected log density of all entries is a sum of matrix products, and costs no entry-by-
entry work where all entries are observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ..base.errors import ModelError
from ..families.base import LOG_2PI
from ..families.factors import FactorFamily, MultivariateNormalFactor, NormalFactor, Point
from ..program.gathered import Sparse, by_rows
from ..program.sites import Params
from ..trace.polynomials import Form, Leaf, unbroadcast
from ..trace.provenance import form_of
from .moments import WAY_OUT, Families, Means, Source, expected


class Part(NamedTuple):
    """Some coordinates of the vectors of one side."""

    name: str | None  # of the latent; None for numbers
    cells: Tensor  # (I, q) cell numbers
    coef: Tensor  # (I, q)
    vectors: Tensor | None = None  # (I,) numbers of the vectors in a factor over vectors; None where it is in order


@dataclass(frozen=True)
class Bilinear:
    """One site: entries y at places (i, j), with E y = l_i . r_j.

    Attributes
    ----------
    left, right : tuple of Part
        Coordinates side by side; the same number on both sides.
    values : Tensor (I, J) or Sparse
        Entries minus what is constant in their location, 0 where missing.
    seen : Tensor (I, J), Sparse or None
        1 where there is an entry; None where there is one everywhere.
    precision : str
        What it differs over: "" (one number), "left" or "right".
    """

    left: tuple[Part, ...]
    right: tuple[Part, ...]
    values: Tensor | Sparse
    seen: Tensor | Sparse | None
    squares: Tensor  # sums of y^2: (1,) or (I,) or (J,) as the precision goes
    counts: Tensor  # of entries, likewise
    precision: str
    scale: Source  # of the distinct standard deviations
    places: tuple[Tensor, Tensor] | None = None  # (i, j) of every entry, row by row; None where entries are a table

    @property
    def size(self) -> int:
        """How many entries there are."""
        return int(self.counts.sum())

    @property
    def uses(self) -> list[str]:
        """Every latent and param in it, as often as it is met."""
        return [part.name for part in (*self.left, *self.right) if part.name is not None] + self.scale.uses

    def log_prob(self, means: Means, families: Families) -> Tensor:
        """E log p of all entries, (1,)."""
        precision = expected(self.scale, "precision", means, families).flatten()
        log_scale = expected(self.scale, "log", means, families).flatten()
        on = {name: precision if name == self.precision else None for name in ("left", "right")}
        left, right = _mean(self.left, means, families), _mean(self.right, means, families)
        cross = _between(_weighted(left, on["left"]), self.values, _weighted(right, on["right"]))
        if self.seen is None:
            totals = [
                _second_sum(parts, mean, means, families, on[name])
                for name, parts, mean in (("left", self.left, left), ("right", self.right, right))
            ]
            second = (totals[0] * totals[1]).sum()
        else:
            one = _second(self.left, left, means, families).flatten(1)
            two = _second(self.right, right, means, families).flatten(1)
            second = _between(_weighted(one, on["left"]), self.seen, _weighted(two, on["right"]))
        if not self.precision:
            cross, second = cross * precision.squeeze(), second * precision.squeeze()
        loss = (precision * self.squares).sum() - 2 * cross + second
        return (-0.5 * loss - (self.counts * (log_scale + 0.5 * LOG_2PI)).sum()).reshape(1)

    def variances(self, means: Means, families: Families) -> Tensor:
        """Of E y = l_i . r_j under the mean field, for every entry, missing ones too: (I, J), or (entries,)."""
        left, right = _mean(self.left, means, families), _mean(self.right, means, families)
        one = _second(self.left, left, means, families).flatten(1)
        two = _second(self.right, right, means, families).flatten(1)
        if self.places is None:
            return (one @ two.mT - (left @ right.mT) ** 2).clamp_min(0)
        i, j = self.places
        return (torch.linalg.vecdot(one[i], two[j]) - torch.linalg.vecdot(left[i], right[j]) ** 2).clamp_min(0)


def _mean(parts: tuple[Part, ...], means: Means, families: Families) -> Tensor:
    """Expected vectors of one side, (I, Q)."""
    found = []
    for part in parts:
        if part.name is None:
            found.append(part.coef)
            continue
        mean = families[part.name].power(means[part.name], 1.0)
        assert mean is not None
        found.append(part.coef * mean.flatten()[part.cells])
    return torch.cat(found, 1)


def _covariances(part: Part, means: Means, families: Families) -> Tensor | None:
    """Of the coordinates of one part, (I, q, q); None where they are numbers."""
    if part.name is None or isinstance(families[part.name], Point):
        return None
    family, mu = families[part.name], means[part.name]
    if isinstance(family, MultivariateNormalFactor):
        found = family.covariance(mu)
        found = found.reshape(-1, *found.shape[-2:])
        found = found if part.vectors is None else found[part.vectors]
    else:
        first, second = family.power(mu, 1.0), family.power(mu, 2.0)
        assert first is not None
        assert second is not None
        found = torch.diag_embed((second - first**2).flatten()[part.cells])
    return found * part.coef.unsqueeze(-1) * part.coef.unsqueeze(-2)


def _padded(block: Tensor, start: int, size: int) -> Tensor:
    """A block (..., q, q) in its place on the diagonal of a larger one."""
    pad = (start, size - start - block.shape[-1])
    return torch.nn.functional.pad(block, (*pad, *pad))


def _second(parts: tuple[Part, ...], mean: Tensor, means: Means, families: Families) -> Tensor:
    """Second moments of the vectors, (I, Q, Q)."""
    out = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    start = 0
    for part in parts:
        block = _covariances(part, means, families)
        if block is not None:
            out = out + _padded(block, start, mean.shape[1])
        start += part.cells.shape[1]
    return out


def _second_sum(
    parts: tuple[Part, ...], mean: Tensor, means: Means, families: Families, weights: Tensor | None
) -> Tensor:
    """Their sum over all vectors, (Q, Q), each with its weight: without making them one by one where that can be."""
    out = _weighted(mean, weights).mT @ mean
    start = 0
    for part in parts:
        family = None if part.name is None else families[part.name]
        block: Tensor | None
        if isinstance(family, MultivariateNormalFactor) and part.vectors is None and bool((part.coef == 1).all()):
            assert part.name is not None
            block = family.covariance_sum(means[part.name], weights)
        else:
            each = _covariances(part, means, families)
            block = None if each is None else _weighted(each, weights).sum(0)
        if block is not None:
            out = out + _padded(block, start, mean.shape[1])
        start += part.cells.shape[1]
    return out


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Each row of values times its weight."""
    return values if weights is None else values * weights.reshape(-1, *(1,) * (values.dim() - 1))


def _between(left: Tensor, matrix: Tensor | Sparse, right: Tensor) -> Tensor:
    """sum_ij left_i . right_j matrix_ij, gradients to the fewest numbers."""
    if left.requires_grad and not right.requires_grad:
        return (left * _times(matrix, right)).sum()
    return (_times(matrix.mT, left) * right).sum()


def _times(matrix: Tensor | Sparse, dense: Tensor) -> Tensor:
    return matrix.times(dense) if isinstance(matrix, Sparse) else matrix @ dense


class Sides(NamedTuple):
    """How entries (N, C) are places of a grid."""

    left: Tensor | None  # (N * C,) the left vector of each entry; None: each row is one, and each cell a right one
    right: Tensor | None
    first_left: Tensor  # an entry of each left vector
    first_right: Tensor
    shape: tuple[int, int]


class Factor(NamedTuple):
    """One factor of a term: cells of a latent or numbers, (N or 1, C or 1, q)."""

    name: str | None
    values: Tensor


def is_bilinear(loc: Tensor) -> bool:
    """Whether a location multiplies latents, or sums over some."""
    form = form_of(loc)
    return form is not None and any(term.summed or len(term.leaves) > 1 for term in form.terms)


def in_vectors(
    families: dict[str, FactorFamily], bilinear: dict[str, Bilinear], values: Params
) -> tuple[dict[str, FactorFamily], dict[str, Bilinear]]:
    """Normal latents that come in as vectors get factors over whole vectors; sites are told which vector is which."""
    out = dict(families)
    sites = {}
    for site, one in bilinear.items():
        parts: list[list[Part]] = [[], []]
        for place, side in enumerate((one.left, one.right)):
            for part in side:
                name = part.name
                if name is not None and not isinstance(families[name], Point):
                    part, out[name] = _vectors(site, part, families[name], values[name])
                parts[place].append(part)
        sites[site] = replace(one, left=tuple(parts[0]), right=tuple(parts[1]))
    return out, sites


def _vectors(site: str, part: Part, family: FactorFamily, value: Tensor) -> tuple[Part, FactorFamily]:
    """A part with the numbers of its vectors, and the family of factors over them."""
    size = part.cells.shape[1]
    if size == 1 and isinstance(family, NormalFactor):
        return part, family
    order = torch.arange(value.numel()).reshape(value.shape)
    for axis in range(-1, -value.dim() - 1, -1) if isinstance(family, NormalFactor) else (-1,):
        if value.shape[axis] != size:
            continue
        vectors = order.movedim(axis, -1).reshape(-1, size)
        number = torch.empty(value.numel(), dtype=torch.long)
        number[vectors.flatten()] = torch.arange(len(vectors)).repeat_interleave(size)
        mine = number[part.cells[:, 0]]
        if torch.equal(vectors[mine], part.cells):
            in_order = len(mine) == len(vectors) and torch.equal(mine, torch.arange(len(vectors)))
            return part._replace(vectors=None if in_order else mine), MultivariateNormalFactor(axis)
    raise ModelError(
        f"cavi: site '{site}' multiplies a part of the vectors of '{part.name}' {tuple(value.shape)}, {size} cells of "
        f"each: whole vectors along one dim have a conjugate factor; {WAY_OUT}"
    )


def bilinear_site(
    name: str, loc: Form, scale: Form, value: Tensor, rows_dim: int, families: Mapping[str, FactorFamily]
) -> Bilinear:
    """Compile a normal site.

    Parameters
    ----------
    loc, scale : Form
        Tensors that broadcast to the shape of `value`.
    value : Tensor
        With NaN where missing.
    rows_dim : int
        Negative dim of the rows.
    """
    shape = value.shape

    def table(tensor: Tensor, summed: bool = False) -> Tensor:
        """(N or 1, C or 1, q)."""
        tensor = tensor if summed else tensor.unsqueeze(-1)
        tensor = tensor.expand(*shape, tensor.shape[-1]).movedim(rows_dim - 1, 0)
        narrow = unbroadcast(tensor)
        lead = 1 if narrow.shape[0] == 1 else shape[rows_dim]
        cells = 1 if all(size == 1 for size in narrow.shape[1:-1]) else tensor[0, ..., 0].numel()
        source = tensor[:lead]
        source = narrow if cells == 1 else source
        return source.reshape(lead, cells, -1)

    entries = value.movedim(rows_dim, 0).reshape(shape[rows_dim], -1).double()
    offset = table(loc.offset).squeeze(-1)
    products: list[tuple[Tensor, list[Factor]]] = []
    for term in loc.terms:
        if len(term.leaves) > 2 or any(leaf.power != 1.0 for leaf in term.leaves):
            raise _refuse(name, term.leaves)
        found = [Factor(leaf.name, table(leaf.cells, term.summed)) for leaf in term.leaves]
        products.append((table(term.coef, term.summed), found))
    sides = _sides(name, products, entries)
    left: list[Part] = []
    right: list[Part] = []
    for coef, factors in products:
        one, two = _assigned(name, coef, factors, sides)
        left.append(_part(name, one, families))
        right.append(_part(name, two, families))
    return _compiled(name, tuple(left), tuple(right), sides, entries - offset, table, scale)


def _refuse(name: str, leaves: tuple[Leaf, ...]) -> ModelError:
    met = ", ".join(f"'{leaf.name}'" for leaf in leaves)
    return ModelError(
        f"cavi: site '{name}' multiplies {met} in its location, which is not bilinear in normal latents: {WAY_OUT}"
    )


def _sides(name: str, products: list[tuple[Tensor, list[Factor]]], entries: Tensor) -> Sides:
    """Rows against cells where terms allow; otherwise entries lie at places told by two latents."""
    rows, cells = entries.shape
    everything = [coef for coef, _ in products] + [f.values for _, factors in products for f in factors]
    pairs = [factors for _, factors in products if len(factors) == 2]
    crossed = any(all(f.values.shape[0] > 1 for f in factors) for factors in pairs)
    torn = any(tensor.shape[0] > 1 and tensor.shape[1] > 1 for tensor in everything)
    if not crossed and not torn:
        return Sides(None, None, torch.arange(rows), torch.arange(cells), (rows, cells))
    if not pairs:
        raise ModelError(
            f"cavi: site '{name}' has latents that meet neither as rows with columns nor as pairs: {WAY_OUT}"
        )
    index, first = [], []
    for factor in pairs[0]:
        marks = factor.values.expand(rows, cells, -1)[..., 0].flatten()
        _, inverse = torch.unique(marks, return_inverse=True)
        index.append(inverse)
        start = inverse.new_full((int(inverse.max()) + 1,), len(marks))
        first.append(start.scatter_reduce(0, inverse, torch.arange(len(marks)), "amin"))
    return Sides(index[0], index[1], first[0], first[1], (rows, cells))


def _assigned(
    name: str, coef: Tensor, factors: list[Factor], sides: Sides
) -> tuple[tuple[Factor, Tensor], tuple[Factor, Tensor]]:
    """Each side's factor with its numbers, (I, q) both."""
    slots: list[Factor | None] = [None, None]
    numbers: list[Tensor | None] = [None, None]
    for factor in factors:
        place = _place(factor.values, sides, slots)
        if place is None:
            raise ModelError(
                f"cavi: site '{name}' takes '{factor.name}' at cells that neither of its two sides tells: {WAY_OUT}"
            )
        slots[place] = Factor(factor.name, _at(factor.values, place, sides))
    place = _place(coef, sides, numbers)
    if place is None:
        raise ModelError(f"cavi: site '{name}' has coefficients that neither of its two sides tells: {WAY_OUT}")
    numbers[place] = _at(coef, place, sides)
    width = max([coef.shape[-1], *(f.values.shape[-1] for f in factors)])
    out = []
    for slot, own, first in zip(slots, numbers, (sides.first_left, sides.first_right), strict=True):
        ones = torch.ones(1, width, dtype=torch.float64) if own is None else own.double().expand(-1, width)
        if slot is None:
            out.append((Factor(None, ones.expand(len(first), width)), ones.expand(len(first), width)))
        else:
            out.append((slot._replace(values=slot.values.expand(len(first), width)), ones.expand(len(first), width)))
    return out[0], out[1]


def _place(tensor: Tensor, sides: Sides, taken: list) -> int | None:
    """0 where only left vectors tell the values apart, 1 where only right ones do; a free side for what is constant."""
    for place in (1, 0):
        if taken[place] is None and _told(tensor, place, sides):
            return place
    return None


def _told(tensor: Tensor, place: int, sides: Sides) -> bool:
    index = sides.right if place else sides.left
    if index is None:
        return tensor.shape[1 - place] == 1
    first = sides.first_right if place else sides.first_left
    tensor = tensor.expand(*sides.shape, -1).flatten(0, 1)
    return torch.equal(tensor[first][index], tensor)


def _at(tensor: Tensor, place: int, sides: Sides) -> Tensor:
    """The values of each vector of a side, (I or 1, q)."""
    index, first = (sides.right, sides.first_right) if place else (sides.left, sides.first_left)
    if index is None:
        return tensor[0] if place else tensor[:, 0]
    return tensor.expand(*sides.shape, -1).flatten(0, 1)[first]


def _part(name: str, found: tuple[Factor, Tensor], families: Mapping[str, FactorFamily]) -> Part:
    """Coordinates of one side; latents there are normal, in vectors where there are several."""
    factor, coef = found
    if factor.name is None:
        return Part(None, torch.zeros_like(coef).long(), coef)
    family = families[factor.name]
    if not isinstance(family, NormalFactor | MultivariateNormalFactor | Point):
        raise ModelError(
            f"cavi: site '{name}' multiplies '{factor.name}' in its location, whose factor is {family.name}: only "
            f"normal latents are conjugate there; {WAY_OUT}"
        )
    return Part(factor.name, factor.values, coef)


def _compiled(
    name: str,
    left: tuple[Part, ...],
    right: tuple[Part, ...],
    sides: Sides,
    entries: Tensor,
    table: Callable[[Tensor], Tensor],
    scale: Form,
) -> Bilinear:
    spread = scale.map(lambda tensor: table(tensor).squeeze(-1))
    sizes = (max(t.shape[0] for t in _tensors(spread)), max(t.shape[1] for t in _tensors(spread)))
    where = f"site '{name}', argument 'scale'"
    if (sides.left is not None and sizes != (1, 1)) or (sizes[0] > 1 and sizes[1] > 1):
        over = "row to row" if sides.left is not None else "entry to entry"
        raise ModelError(f"cavi: {where} differs from {over}: let it be one number, or {WAY_OUT}")
    source = _source(where, spread)
    seen = ~entries.isnan()
    if sides.left is not None:
        assert sides.right is not None
        at = seen.flatten()
        y = entries.flatten()[at]
        place, shape = (sides.left[at], sides.right[at]), (len(sides.first_left), len(sides.first_right))
        values, ones = _sparse(y, place, shape), _sparse(torch.ones_like(y), place, shape)
        total, count = (y**2).sum().reshape(1), at.sum().double().reshape(1)
        return Bilinear(left, right, values, ones, total, count, "", source, (sides.left, sides.right))
    kind = "left" if sizes[0] > 1 else "right" if sizes[1] > 1 else ""
    filled, ones_at = entries.nan_to_num(nan=0.0), seen.double()
    over_all = [0, 1] if not kind else [1] if kind == "left" else [0]
    squares, counts = (t.sum(over_all).reshape(-1) for t in (filled**2, ones_at))
    return Bilinear(left, right, filled, None if bool(seen.all()) else ones_at, squares, counts, kind, source)


def _tensors(form: Form) -> list[Tensor]:
    return [form.offset, *(part for t in form.terms for part in (t.coef, *(leaf.cells for leaf in t.leaves)))]


def _source(where: str, form: Form) -> Source:
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in _tensors(form)))
    return Source(where, (), form.map(lambda tensor: tensor.expand(shape).reshape(-1, 1)))


def _sparse(values: Tensor, place: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Sparse:
    found = csr_matrix((values.numpy(), (place[0].numpy(), place[1].numpy())), shape)  # repeated entries add up
    return Sparse(by_rows(found, values.device), by_rows(found.T.tocsr(), values.device))
