"""Where the argument of a site comes from, cell by distinct cell, and what is expected of it under a mean field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import NotConjugate
from ..families.factors import FactorFamily, Point
from ..trace.polynomials import Form, Leaf, Term

Means = Mapping[str, Tensor]  # latent -> mean parameters of its factor, (R, *B, T); of a param its values
Families = Mapping[str, FactorFamily]
WAY_OUT = 'use inference="svi", or fallback="svi" for that site alone'


class Source(NamedTuple):
    """The distinct events of an argument: U of them, of E cells each (1 where the event is a number)."""

    where: str  # for messages: "site 'x', argument 'loc'"
    event: tuple[int, ...]
    form: Form  # tensors (U, E)

    @property
    def uses(self) -> list[str]:
        """Every latent and param in it, as often as it is met."""
        return [leaf.name for term in self.form.terms for leaf in term.leaves]

    @property
    def names(self) -> frozenset[str]:
        """Every latent and param in it."""
        return frozenset(self.uses)


def distinct(where: str, form: Form, event: torch.Size) -> tuple[Source, Tensor]:
    """The distinct events of an argument, and for each event of a tensor (*batch, *event) which of them it is."""
    size = event.numel()

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, size)

    form = form.map(flat)
    columns = [form.offset, *(part for t in form.terms for part in (t.coef, *(leaf.cells for leaf in t.leaves)))]
    random = torch.Generator().manual_seed(0)
    mark = torch.zeros(len(form.offset), dtype=torch.long, device=form.offset.device)
    for column in columns:
        bits = column.double().view(torch.int64) if column.is_floating_point() else column
        factor = torch.randint(2**62, (size,), generator=random).to(bits.device)
        mark = mark * 1_000_003 + (bits * factor).sum(-1)
    _, inverse = torch.unique(mark, return_inverse=True)
    first = inverse.new_full((int(inverse.max()) + 1,), len(mark))
    first = first.scatter_reduce(0, inverse, torch.arange(len(mark), device=mark.device), "amin")
    return Source(where, tuple(event), form.map(lambda tensor: tensor[first].contiguous())), inverse


def expected(source: Source, moment: str, means: Means, families: Families) -> Tensor:
    """One moment of an argument, (R, U, E): see `MOMENTS`; "covariance" is (R, U, D, D) and "log_det" (R, U)."""
    return MOMENTS[moment](source, means, families)


def _refuse(source: Source, leaf: Leaf, family: FactorFamily, wanted: str) -> NotConjugate:
    return NotConjugate(
        f"cavi: {source.where} needs {wanted} of '{leaf.name}', whose factor is {family.name}, and has none in its "
        f"statistics: the pair is not conjugate; choose another prior for '{leaf.name}', or {WAY_OUT}",
        latent=leaf.name,
    )


def _power(source: Source, leaf: Leaf, power: float, means: Means, families: Families) -> Tensor:
    """E latent ** (leaf's power * power) at the leaf's cells, (R, U, E)."""
    family = families[leaf.name]
    found = family.power(means[leaf.name], leaf.power * power)
    if found is None:
        raise _refuse(source, leaf, family, f"the expected power {leaf.power * power:g}")
    return found.reshape(len(found), -1)[:, leaf.cells]


def _product(source: Source, term: Term, power: float, means: Means, families: Families) -> Tensor:
    out = (term.coef**power).unsqueeze(0)
    for leaf in term.leaves:
        out = out * _power(source, leaf, power, means, families)
    return out


def _single(source: Source) -> Term:
    term = source.form.monomial
    if term is None:
        raise NotConjugate(
            f"cavi: {source.where} is a sum that depends on {_listed(source)}, where only a product is conjugate: "
            f"{WAY_OUT}"
        )
    return term


def _mean(source: Source, means: Means, families: Families) -> Tensor:
    out = source.form.offset.unsqueeze(0)
    for term in source.form.terms:
        out = out + _product(source, term, 1.0, means, families)
    return out


def _variance(source: Source, means: Means, families: Families) -> Tensor:
    out = torch.zeros_like(source.form.offset).unsqueeze(0)
    for term in source.form.terms:
        if all(isinstance(families[leaf.name], Point) for leaf in term.leaves):
            continue
        first = _product(source, term, 1.0, means, families)
        out = out + _product(source, term, 2.0, means, families) - first**2
    return out


def _precision(source: Source, means: Means, families: Families) -> Tensor:
    if not source.form.terms:
        return (source.form.offset**-2).unsqueeze(0)
    return _product(source, _single(source), -2.0, means, families)


def _log(source: Source, means: Means, families: Families) -> Tensor:
    if not source.form.terms:
        return source.form.offset.log().unsqueeze(0)
    term = _single(source)
    out = term.coef.log().unsqueeze(0)
    for leaf in term.leaves:
        found = families[leaf.name].log(means[leaf.name])
        if found is None:
            raise _refuse(source, leaf, families[leaf.name], "the expected logarithm")
        out = out + leaf.power * found.reshape(len(found), -1)[:, leaf.cells]
    return out


def _log1m(source: Source, means: Means, families: Families) -> Tensor:
    if not source.form.terms:
        return (-source.form.offset).log1p().unsqueeze(0)
    term = _single(source)
    (leaf, *others) = term.leaves
    found = families[leaf.name].log1m(means[leaf.name])
    if found is None or others or leaf.power != 1.0 or bool((term.coef != 1).any()):
        raise _refuse(source, leaf, families[leaf.name], "the expected logarithm of one minus it")
    return found.reshape(len(found), -1)[:, leaf.cells]


def _value(source: Source, means: Means, families: Families) -> Tensor:
    if all(isinstance(families[name], Point) for name in source.names):
        return _mean(source, means, families)
    raise NotConjugate(
        f"cavi: {source.where} depends on {_listed(source)}, and no conjugate update follows from that argument: give "
        f"it a number, or {WAY_OUT}"
    )


def _covariance(source: Source, means: Means, families: Families) -> Tensor:
    out = torch.zeros(1, len(source.form.offset), *source.event * 2, dtype=torch.float64)
    for term in source.form.terms:
        if all(isinstance(families[leaf.name], Point) for leaf in term.leaves):
            continue
        (leaf, *others) = term.leaves
        found = families[leaf.name].covariance(means[leaf.name])
        if found is None or others or leaf.power != 1.0:
            raise _refuse(source, leaf, families[leaf.name], "the covariance of a vector")
        size = source.event[0]
        of = torch.div(leaf.cells[:, 0], size, rounding_mode="floor")
        out = out + found.reshape(len(found), -1, size, size)[:, of] * term.coef.unsqueeze(-1) * term.coef.unsqueeze(-2)
    return out


def _log_det(source: Source, means: Means, families: Families) -> Tensor:
    if not source.form.terms:
        return source.form.offset.reshape(-1, *source.event).logdet().unsqueeze(0)
    term = _single(source)
    (leaf, *others) = term.leaves
    found = families[leaf.name].log_det(means[leaf.name])
    if found is None or others or leaf.power != 1.0:
        raise _refuse(source, leaf, families[leaf.name], "the expected log determinant")
    size = source.event[0]
    of = torch.div(leaf.cells[:, 0], size**2, rounding_mode="floor")
    return found.reshape(len(found), -1)[:, of] + size * term.coef[:, 0].log()


def _listed(source: Source) -> str:
    return ", ".join(f"'{name}'" for name in sorted(source.names))


MOMENTS = {
    "mean": _mean,
    "variance": _variance,
    "precision": _precision,  # E x ** -2
    "log": _log,
    "log1m": _log1m,
    "value": _value,
    "covariance": _covariance,
    "log_det": _log_det,
}
