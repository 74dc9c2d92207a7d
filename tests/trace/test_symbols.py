"""Cell numbers survive every operation that only moves cells, and no operation that computes."""

import pytest
import torch

from latentzoo.inference.trace.provenance import Symbol, plain, provenance, symbol, symbols_of

ROWS = torch.tensor([2, 0, 0, 1])
# name -> a selection of cells of a (3, 4) root
SELECTIONS = {
    "an index": lambda x: x[ROWS],
    "an index with broadcast": lambda x: x[torch.arange(3).reshape(3, 1, 1), ROWS],
    "a number": lambda x: x[1],
    "a slice": lambda x: x[:, 1:3],
    "a negative step in an index": lambda x: x[..., torch.tensor([3, 2, 1, 0])],
    "a new dim": lambda x: x[:, None],
    "an ellipsis": lambda x: x[..., 0],
    "a mask": lambda x: x[torch.tensor([True, False, True])],
    "index_select": lambda x: x.index_select(0, ROWS),
    "take": lambda x: torch.take(x, torch.tensor([5, 0, 11])),
    "gather": lambda x: x.gather(1, torch.tensor([[0], [3], [2]])),
    "select": lambda x: x.select(1, 2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "reshape": lambda x: x.reshape(2, 6),
    "view": lambda x: x.view(-1),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:1].squeeze(0),
    "transpose": lambda x: x.transpose(0, 1),
    "permute": lambda x: x.permute(1, 0),
    "movedim": lambda x: x.movedim(0, -1),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "t()": lambda x: x.t(),
    ".T": lambda x: x.T,
    ".mT": lambda x: x.mT,
    "expand": lambda x: x.unsqueeze(0).expand(5, 3, 4),
    "expand_as": lambda x: x.expand_as(torch.zeros(2, 3, 4)),
    "broadcast_to": lambda x: torch.broadcast_to(x, (2, 3, 4)),
    "repeat": lambda x: x.repeat(2, 1),
    "tile": lambda x: x.tile(2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 0),
    "contiguous": lambda x: x.mT.contiguous(),
    "clone": lambda x: x.clone(),
    "a change of dtype": lambda x: x.double().to(torch.float32),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float32)),
    "a selection of a selection": lambda x: x[ROWS].mT.flatten()[3:],
    "stack": lambda x: torch.stack([x[0], x[1]]),
    "cat": lambda x: torch.cat([x, x]),
}
COMPUTED = {
    "a sum": lambda x: x + x,
    "a product": lambda x: 2 * x,
    "exp": lambda x: x.exp(),
    "a matrix product": lambda x: torch.ones(2, 3, dtype=x.dtype) @ x,
    "a reduction": lambda x: x.sum(0),
    "a sum that keeps the dim": lambda x: x.sum(-1, keepdim=True),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "cumsum": lambda x: x.cumsum(0),
    "sort": lambda x: x.sort(dim=1).values,
    "max over a dim": lambda x: torch.max(x, 0).values,
    "a matrix decomposition": lambda x: torch.linalg.qr(x)[0],
    "a selection of what was computed": lambda x: x.exp()[ROWS],
    "softmax": lambda x: x.softmax(-1),
    "division by another sum": lambda x: x / x.sum(0, keepdim=True),
}


def root(seed=0):
    return symbol(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), "root")


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_keeps_the_numbers_of_its_cells(name):
    x = root()
    out = SELECTIONS[name](x)
    known = provenance(out)
    assert known.names == {"root"}
    assert known.cells.shape == out.shape
    torch.testing.assert_close(plain(x).flatten()[known.cells].to(out.dtype), plain(out), rtol=0, atol=0)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computation_drops_the_numbers_and_keeps_the_name(name):
    x = root()
    out = COMPUTED[name](x)
    known = provenance(out)
    assert known.cells is None
    assert known.names == {"root"}
    assert known.operation
    torch.testing.assert_close(plain(out), COMPUTED[name](plain(x)), rtol=0, atol=0)


def test_several_outputs_are_each_numbered():
    x = root()
    for parts in (x.unbind(0), x.split(2, 1), x.chunk(2, 1)):
        assert isinstance(parts, tuple | list)
        for part in parts:
            torch.testing.assert_close(plain(x).flatten()[provenance(part).cells], plain(part), rtol=0, atol=0)


def test_broadcasting_together_keeps_each_operand_apart():
    x, y, number = root(), symbol(torch.randn(4).double(), "other"), torch.ones(2, 1, 1)
    outs = torch.broadcast_tensors(x, y, number)
    assert [tuple(out.shape) for out in outs] == [(2, 3, 4)] * 3
    assert provenance(outs[0]).names == {"root"}
    assert provenance(outs[1]).names == {"other"}
    assert provenance(outs[2]) is None
    torch.testing.assert_close(plain(x).flatten()[provenance(outs[0]).cells], plain(outs[0]))
    torch.testing.assert_close(plain(y)[provenance(outs[1]).cells], plain(outs[1]))


def test_a_computation_of_two_roots_depends_on_both():
    x, y = root(), symbol(torch.randn(4).double(), "other")
    assert provenance(x + y).names == {"root", "other"}
    assert provenance(torch.einsum("ij,j->i", x, y)).names == {"root", "other"}
    assert provenance(torch.stack([x[0], y])).cells is None


def test_an_argument_that_lends_only_its_shape_or_dtype_is_no_dependency():
    x, number = root(), torch.arange(4)
    for out in (number.type_as(x), number.expand_as(x), number.to(x), torch.zeros_like(x), x.new_ones(3), 0 * number):
        assert provenance(out) is None
        assert not isinstance(out, Symbol)
    other = symbol(torch.randn(4), "other")
    for out in (other.expand_as(x), other.type_as(x)):
        known = provenance(out)
        assert known.names == {"other"}
        torch.testing.assert_close(plain(other)[known.cells].to(out.dtype), plain(out))


@pytest.mark.parametrize(
    "normalise",
    [
        lambda x: x / x.sum(-1, keepdim=True),
        lambda x: x - x.logsumexp(dim=-1, keepdim=True),
        lambda x: x / x.sum(-1, True),
    ],
)
def test_a_normalisation_over_the_last_dim_is_seen_as_one(normalise):
    x = root()[ROWS]
    known = provenance(normalise(x))
    assert known.normalized
    assert torch.equal(known.cells, provenance(x).cells)


def test_a_quotient_by_the_sum_of_other_cells_is_no_normalisation():
    x = root()
    for out in (x[:2] / x[1:].sum(-1, keepdim=True), x / x.sum(-1).unsqueeze(-1), x * x.sum(-1, keepdim=True)):
        assert provenance(out).cells is None


def test_an_index_made_of_a_symbol_is_a_computation():
    x, where = root(), symbol(torch.tensor([0, 2]), "where")
    assert provenance(x[where]).cells is None
    assert provenance(torch.randn(3, 4)[where]).names == {"where"}


def test_a_tensor_that_is_written_into_depends_on_what_was_written():
    x = root()
    padded, grown, column = torch.zeros(4, 4), torch.zeros(3, 4), root(1)
    padded[1:] = x
    grown.add_(x)
    column[:, 0] = 1.0
    assert provenance(padded).names == provenance(grown).names == {"root"}
    for out in (padded, grown, column, padded[2]):
        assert provenance(out).cells is None
    torch.testing.assert_close(plain(padded)[1:].double(), plain(x), rtol=0, atol=1e-6)
    assert provenance(x).cells is not None


def test_autograd_goes_through():
    leaf = torch.randn(3, 4, requires_grad=True)
    x = symbol(leaf, "root")
    (x[ROWS] * 2).exp().sum().backward()
    expected = torch.zeros(3, 4)
    for row in ROWS.tolist():
        expected[row] += 2 * (2 * leaf.detach()[row]).exp()
    torch.testing.assert_close(leaf.grad, expected)


def test_a_root_is_not_renamed_by_an_operation_that_returns_it():
    x = root()
    same = x.contiguous()
    assert provenance(same.exp()).cells is None
    assert provenance(x).cells is not None
    assert type(plain(x)) is torch.Tensor
    assert provenance(plain(x)) is None
    assert provenance(3.0) is None


def test_every_root_of_a_distribution_is_found_wherever_it_hides():
    scale, shift = symbol(torch.ones(2), "scale"), symbol(torch.zeros(2), "shift")
    transforms = [torch.distributions.AffineTransform(shift, 1.0)]
    base = torch.distributions.Normal(torch.zeros(2), scale, validate_args=False)
    fn = torch.distributions.TransformedDistribution(base, transforms, validate_args=False)
    fn = torch.distributions.Independent(fn, 1, validate_args=False)
    assert symbols_of(fn) == {"scale", "shift"}
