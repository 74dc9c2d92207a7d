"""Lines found by asking a function: against their matrices, in every way that one may be written."""

import pytest
import torch

from latentzoo.inference.trace.linear import linear_in

A = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
B = torch.arange(5.0, dtype=torch.float64)
ZERO = {"u": torch.zeros(3, dtype=torch.float64)}


def by_loop(u):
    out = torch.zeros(5, dtype=torch.float64)
    for number in range(5):
        out[number] = (A[number] * u).sum() + B[number]
    return out


@pytest.mark.parametrize(
    "write",
    [
        lambda u: A @ u + B,
        lambda u: torch.einsum("k,dk->d", u, A) + B,
        lambda u: torch.stack([(A[d] * u).sum() for d in range(5)]) + B,
        lambda u: torch.cat([A[:2] @ u, A[2:] @ u]) + B,
        lambda u: torch.cumsum(torch.cat([A[:1], A.diff(dim=0)]) @ u, 0) + B,
        by_loop,
    ],
    ids=["matmul", "einsum", "stack", "cat", "cumsum", "in place"],
)
@pytest.mark.parametrize("grad", [True, False])
def test_the_matrix_of_a_line_is_found_however_it_is_written(write, grad):
    with torch.set_grad_enabled(grad):
        found = linear_in(lambda given: write(given["u"]), ZERO, ("u",))
    assert found.exact
    torch.testing.assert_close(found.base, B)
    torch.testing.assert_close(found.jacobian, A)


@pytest.mark.parametrize("write", [lambda u: (A @ u) ** 2, lambda u: torch.relu(A @ u) + B, lambda u: (A @ u).exp()])
def test_what_bends_is_found_out(write):
    assert not linear_in(lambda given: write(given["u"]), ZERO, ("u",)).exact


def test_a_bend_far_off_is_found_out():
    def bent(given):
        return torch.nn.functional.hardtanh(A @ given["u"], -30.0, 30.0)

    assert linear_in(bent, ZERO, ("u",), (0.1,)).exact
    assert not linear_in(bent, ZERO, ("u",), (0.1, 100.0)).exact


def test_gradients_flow_through_the_matrix():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    found = linear_in(lambda given: scale**2 * (A @ given["u"]), ZERO, ("u",))
    (slope,) = torch.autograd.grad(found.jacobian.sum(), scale, create_graph=True)
    torch.testing.assert_close(slope, 4 * A.sum())
    torch.testing.assert_close(torch.autograd.grad(slope, scale)[0], 2 * A.sum())


def test_what_does_not_depend_on_the_values_has_slopes_of_zero():
    found = linear_in(lambda given: B + 0 * given["u"].detach().sum(), ZERO, ("u",))
    assert found.exact
    assert not found.jacobian.any()
