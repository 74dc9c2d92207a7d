"""Arguments as sums of products of latents: ``offset + sum_t coef_t * prod_l latent_l[cells_l] ** power_l``.

A model says ``tau[z] ** -0.5`` or ``mu[z] + shift[rater]``. Variational inference needs expectations of such arguments,
and these follow from moments of each latent as soon as it is known how they are made. A `Form` says how: it rides on
the `Symbol` of an argument through indexing, reshaping, and the arithmetic below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}
TIMES = frozenset(("mul", "multiply", "__mul__", "__rmul__"))
OVER = frozenset(("div", "divide", "true_divide", "__truediv__"))
PLUS = frozenset(("add", "__add__", "__radd__"))
MATRIX = frozenset(("matmul", "__matmul__", "__rmatmul__", "mm", "mv"))
MINUS = frozenset(("sub", "subtract", "__sub__"))


class Leaf(NamedTuple):
    """Cells of one latent, raised to a power."""

    name: str
    cells: Tensor  # cell numbers, like the values
    power: float


class Term(NamedTuple):
    """A product of latents with a constant, or (`summed`) the sum of such products over one more dim, the last."""

    coef: Tensor  # like the values
    leaves: tuple[Leaf, ...]
    summed: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> Term:
        """The term with its tensors moved as the values were."""
        moved = torch.vmap(change, in_dims=-1, out_dims=-1) if self.summed else change
        leaves = tuple(leaf._replace(cells=moved(leaf.cells)) for leaf in self.leaves)
        return Term(moved(self.coef), leaves, self.summed)

    def scaled(self, by: Any) -> Term:
        """Times a constant, which may broadcast."""
        if self.summed and isinstance(by, Tensor):
            by = by.unsqueeze(-1)
        return self._replace(coef=times(self.coef, torch.as_tensor(by)))


class Form(NamedTuple):
    """How an argument is made of latents."""

    offset: Tensor  # like the values
    terms: tuple[Term, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Form:
        """The form with its tensors moved as the values were."""
        return Form(change(self.offset), tuple(term.map(change) for term in self.terms))

    def scaled(self, by: Any) -> Form:
        """Times a constant, which may broadcast."""
        return Form(self.offset * by, tuple(term.scaled(by) for term in self.terms))

    @property
    def monomial(self) -> Term | None:
        """The one term that is all there is."""
        return self.terms[0] if len(self.terms) == 1 and not bool(self.offset.any()) else None


def times(a: Tensor, b: Tensor) -> Tensor:
    """A product that stays as lazily broadcast as its factors are."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return (unbroadcast(a) * unbroadcast(b)).expand(shape)


def unbroadcast(tensor: Tensor) -> Tensor:
    """A tensor without the copies that `expand` made: dims of stride 0 have size 1."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def root(name: str, cells: Tensor) -> Form:
    """The form of a latent's own cells."""
    one = torch.ones((), dtype=torch.float64, device=cells.device)
    return Form((one * 0).expand(cells.shape), (Term(one.expand(cells.shape), (Leaf(name, cells, 1.0),)),))


def combined(name: str, args: tuple, form_of: Callable[[Any], Form | None], shape: torch.Size) -> Form | None:
    """The form of the outcome of an operation; None where it is no sum of products."""
    if name in POWERS:
        return _power(form_of(args[0]), POWERS[name])
    if name in ("pow", "__pow__") and isinstance(args[1], int | float):
        return _power(form_of(args[0]), float(args[1]))
    if name in ("__rdiv__", "__rtruediv__"):
        found = _power(form_of(args[0]), -1.0)
        return None if found is None else _spread(found.scaled(args[1]), shape)
    if name in ("neg", "negative", "__neg__"):
        found = form_of(args[0])
        return None if found is None else found.scaled(-1.0)
    if name == "sum" and len(args) > 1:
        return _contracted(form_of(args[0]), args[1])
    if len(args) < 2:
        return None
    left, right = form_of(args[0]), form_of(args[1])
    if name in MATRIX:
        return _matmul(left, right, args, shape)
    if name in TIMES:
        return _product(left, right, args, shape)
    if name in OVER:
        if left is not None and right is None:
            return _spread(left.scaled(1.0 / args[1]), shape)
        inverse = _power(right, -1.0)
        if inverse is None:
            return None
        return _product(left, inverse, args, shape)
    if name in PLUS:
        return _sum(left, right, args[0], args[1], shape)
    if name in MINUS:
        return _sum(left, None if right is None else right.scaled(-1.0), args[0], _negative(args[1], right), shape)
    if name in ("rsub", "__rsub__"):
        return _sum(None if left is None else left.scaled(-1.0), right, _negative(args[0], left), args[1], shape)
    return None


def _negative(value: Any, form: Form | None) -> Any:
    return value if form is not None else -value


def _power(form: Form | None, power: float) -> Form | None:
    term = None if form is None else form.monomial
    if term is None or form is None or term.summed:
        return None
    leaves = tuple(leaf._replace(power=leaf.power * power) for leaf in term.leaves)
    return Form(form.offset, (Term(term.coef**power, leaves),))


def _product(left: Form | None, right: Form | None, args: tuple, shape: torch.Size) -> Form | None:
    if left is None and right is None:
        return None
    if right is None:
        assert left is not None
        return _spread(left.scaled(args[1]), shape)
    if left is None:
        return _spread(right.scaled(args[0]), shape)
    if any(term.summed for term in (*left.terms, *right.terms)):
        return None
    left, right = _spread(left, shape), _spread(right, shape)
    products = [Term(times(a.coef, b.coef), a.leaves + b.leaves) for a in left.terms for b in right.terms]
    products += [term.scaled(right.offset) for term in left.terms if bool(right.offset.any())]
    products += [term.scaled(left.offset) for term in right.terms if bool(left.offset.any())]
    return Form(left.offset * right.offset, tuple(products))


def _matmul(left: Form | None, right: Form | None, args: tuple, shape: torch.Size) -> Form | None:
    """Rows of the first with columns of the second: one more dim, over which the products are summed."""
    if (left is None and right is None) or args[0].dim() < 1 or args[1].dim() < 1:
        return None
    size = args[0].shape[-1]
    row = args[1].dim() > 1  # whether the outcome has a dim for the columns of the second

    def of_left(tensor: Tensor) -> Tensor:
        return (tensor.unsqueeze(-2) if row else tensor).expand(*shape, size)

    def of_right(tensor: Tensor) -> Tensor:
        tensor = tensor.mT if row else tensor
        return (tensor.unsqueeze(-3) if row and args[0].dim() > 1 else tensor).expand(*shape, size)

    first = left.map(of_left) if left is not None else Form(of_left(torch.as_tensor(args[0])), ())
    second = right.map(of_right) if right is not None else Form(of_right(torch.as_tensor(args[1])), ())
    found = _product(first, second, (first.offset, second.offset), torch.Size((*shape, size)))
    if left is None:
        found = second.scaled(first.offset)
    elif right is None:
        found = first.scaled(second.offset)
    return _contracted(found, -1)


def _contracted(form: Form | None, dim: Any) -> Form | None:
    """The sum over one dim."""
    dim = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
    if form is None or not isinstance(dim, int) or any(term.summed for term in form.terms):
        return None
    moved = form.map(lambda tensor: tensor.movedim(dim, -1))
    return Form(moved.offset.sum(-1), tuple(term._replace(summed=True) for term in moved.terms))


def _sum(left: Form | None, right: Form | None, a: Any, b: Any, shape: torch.Size) -> Form | None:
    if left is None and right is None:
        return None
    if left is None or right is None:
        form, constant = (left, b) if right is None else (right, a)
        assert form is not None
        form = _spread(form, shape)
        return form._replace(offset=form.offset + constant)
    left, right = _spread(left, shape), _spread(right, shape)
    return Form(left.offset + right.offset, left.terms + right.terms)


def _spread(form: Form, shape: torch.Size) -> Form:
    return form.map(lambda tensor: tensor.expand(shape))
