"""Every exponential family: its density is Pyro's, its closed forms are the maxima that an optimizer finds."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch.distributions import transform_to

from latentzoo.inference.families.registry import family, prior_ratio
from latentzoo.inference.linear_gaussian.distribution import FactorNormal
from latentzoo.inference.program.links import LINKS
from latentzoo.inference.trace.provenance import plain, symbol

REAL, POSITIVE, UNIT = constraints.real, constraints.positive, constraints.unit_interval
SIMPLEX, LOWER, DEFINITE = constraints.simplex, constraints.lower_cholesky, constraints.positive_definite
# name -> class, and shape and constraint of each argument
CASES = {
    "normal": (dist.Normal, {"loc": ((), REAL), "scale": ((), POSITIVE)}),
    "lognormal": (dist.LogNormal, {"loc": ((), REAL), "scale": ((), POSITIVE)}),
    "mvn_covariance": (dist.MultivariateNormal, {"loc": ((3,), REAL), "covariance_matrix": ((3, 3), DEFINITE)}),
    "mvn_tril": (dist.MultivariateNormal, {"loc": ((3,), REAL), "scale_tril": ((3, 3), LOWER)}),
    "mvn_precision": (dist.MultivariateNormal, {"loc": ((3,), REAL), "precision_matrix": ((3, 3), DEFINITE)}),
    "mvn_one_column": (dist.MultivariateNormal, {"loc": ((1,), REAL), "covariance_matrix": ((1, 1), DEFINITE)}),
    "categorical": (dist.Categorical, {"probs": ((4,), SIMPLEX)}),
    "categorical_logits": (dist.Categorical, {"logits": ((4,), REAL)}),
    "one_hot": (dist.OneHotCategorical, {"probs": ((4,), SIMPLEX)}),
    "one_hot_logits": (dist.OneHotCategorical, {"logits": ((4,), REAL)}),
    "multinomial": (dist.Multinomial, {"probs": ((4,), SIMPLEX)}),
    "multinomial_logits": (dist.Multinomial, {"logits": ((4,), REAL)}),
    "bernoulli": (dist.Bernoulli, {"probs": ((), UNIT)}),
    "bernoulli_logits": (dist.Bernoulli, {"logits": ((), REAL)}),
    "binomial": (dist.Binomial, {"probs": ((), UNIT)}),
    "binomial_logits": (dist.Binomial, {"logits": ((), REAL)}),
    "poisson": (dist.Poisson, {"rate": ((), POSITIVE)}),
    "exponential": (dist.Exponential, {"rate": ((), POSITIVE)}),
    "gamma": (dist.Gamma, {"concentration": ((), POSITIVE), "rate": ((), POSITIVE)}),
    "beta": (dist.Beta, {"concentration1": ((), POSITIVE), "concentration0": ((), POSITIVE)}),
    "geometric": (dist.Geometric, {"probs": ((), UNIT)}),
    "geometric_logits": (dist.Geometric, {"logits": ((), REAL)}),
}
COUNTS = {dist.Multinomial: 9, dist.Binomial: 9}  # total counts
# those of the arguments that have a closed form
MAXIMISERS = [(c, a) for c, (cls, args) in CASES.items() for a in args if a in family.dispatch(cls)(None).order]
PRIORS = [  # case, argument, prior and its concentrations, rates, ...
    *((case, "probs", dist.Dirichlet, [[2.0, 1.5, 1.0, 4.0]]) for case in ("categorical", "one_hot", "multinomial")),
    *((case, "probs", dist.Beta, [2.0, 3.5]) for case in ("bernoulli", "binomial", "geometric")),
    *((case, "rate", dist.Gamma, [3.0, 2.0]) for case in ("poisson", "exponential", "gamma")),
    *((case, "loc", dist.Normal, [1.0, 0.4]) for case in ("normal", "lognormal")),
]


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw_args(case, seed, batch=()):
    generator = torch.Generator().manual_seed(seed)
    args = {}
    for name, (shape, constraint) in CASES[case][1].items():
        transform = transform_to(constraint)
        args[name] = transform(torch.randn((*batch, *transform.inverse_shape(shape)), generator=generator))
    return args


def build(case, args):
    cls = CASES[case][0]
    fixed = {"total_count": COUNTS[cls]} if cls in COUNTS else {}
    return cls(**fixed, **args, validate_args=False)


def draw_values(fn, rows, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fn.sample((rows,))


def weighted_sums(case, seed=0, rows=60):
    """Values, weights, their weighted statistics, and other arguments than those they were drawn from."""
    fn = build(case, draw_args(case, seed))
    value = draw_values(fn, rows, seed)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    args = draw_args(case, seed + 100)
    kind = family(fn)
    own = {name: tensor for name, (tensor, _) in kind.read(build(case, args)).items()}
    s1 = (weights.unsqueeze(-1) * kind.statistics_last(value, own)).sum(0)
    return kind, own, value, weights, s1, weights.sum()


def link(ratio, old, constraint):
    """The value that a ratio stands for, without a floor."""
    num, den = (part.expand(old.shape).unsqueeze(0) for part in (ratio.num, ratio.den))
    return LINKS[ratio.kind](old.unsqueeze(0), num, den, torch.zeros_like(num), constraint).squeeze(0)


def numerical_maximum(case, args, name, objective):
    """L-BFGS in unconstrained space, from what `args` has."""
    transform = transform_to(CASES[case][1][name][1])
    free = transform.inv(args[name]).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -objective({**args, name: transform(free)})
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(loss)
    return transform(free).detach()


def assert_is_maximum(case, args, name, found, objective):
    """No slope is left at `found`, and an optimizer that starts elsewhere comes to the same place."""
    transform = transform_to(CASES[case][1][name][1])
    free = transform.inv(found).clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective({**args, name: transform(free)}), free)
    assert slope.abs().max() < 1e-9
    best = numerical_maximum(case, args, name, objective)
    assert objective({**args, name: found}) >= objective({**args, name: best}) - 1e-9
    if name == "logits" and CASES[case][1][name][0]:
        found, best = found.softmax(-1), best.softmax(-1)
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)


def log_likelihood(case, value, weights):
    # `total_count` is among the arguments that a family reads, and not among those that are learned
    return lambda args: (
        weights * build(case, {n: a for n, a in args.items() if n in CASES[case][1]}).log_prob(value)
    ).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_the_natural_form_is_pyros_density(case, seed):
    fn = build(case, draw_args(case, seed, (5,)))
    value = draw_values(fn, 40, seed)
    kind = family(fn)
    args = {name: tensor for name, (tensor, _) in kind.read(fn).items()}
    eta, log_normalizer = kind.natural(args)
    base = kind.base(value.movedim(-1, 0) if kind.event_dim else value, args)
    ours = (kind.statistics_last(value, args) * eta).sum(-1) - log_normalizer + base
    torch.testing.assert_close(ours, fn.log_prob(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_what_was_given_is_what_is_read(case):
    given = draw_args(case, 0, (5,))
    marked = {name: symbol(value, name) for name, value in given.items()}
    plates = build(case, marked).expand([2, 5])
    used = build(case, marked)
    for lazy in ("probs", "logits", "covariance_matrix", "precision_matrix", "mean"):
        getattr(used, lazy, None)  # computed and kept by torch when it is asked for
    for fn in (build(case, marked), plates, used):
        found = family(fn).read(fn)
        assert set(found) - {"total_count"} == set(given)
        for name, value in given.items():
            got, event_dim = found[name]
            assert event_dim == len(CASES[case][1][name][0])
            value = value - value.logsumexp(-1, keepdim=True) if name == "logits" and event_dim else value
            torch.testing.assert_close(plain(got), value.expand(got.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("case", "name"), MAXIMISERS)
def test_a_ratio_is_the_weighted_maximum_likelihood(case, name, seed):
    kind, args, value, weights, s1, s0 = weighted_sums(case, seed)
    objective = log_likelihood(case, value, weights)
    found = link(kind.ratio(name, args, s1, s0), args[name], CASES[case][1][name][1])
    assert_is_maximum(case, args, name, found, objective)


@pytest.mark.parametrize(("case", "name", "cls", "numbers"), PRIORS)
def test_a_conjugate_prior_adds_up_to_the_posterior_mode(case, name, cls, numbers):
    prior = cls(*map(torch.tensor, numbers))
    kind, args, value, weights, s1, s0 = weighted_sums(case)
    objective = log_likelihood(case, value, weights)
    ours, share = kind.ratio(name, args, s1, s0), prior_ratio(prior, args[name])
    assert share.kind == ours.kind
    pooled = ours._replace(num=ours.num + share.num, den=ours.den + share.den)
    found = link(pooled, args[name], prior.support)
    assert_is_maximum(case, args, name, found, lambda a: objective(a) + prior.log_prob(a[name]).sum())


def test_closed_forms_of_the_textbooks():
    def fitted(case, name, **others):
        kind, args, value, weights, s1, s0 = weighted_sums(case)
        args = {**args, **others}
        return link(kind.ratio(name, args, s1, s0), args[name], CASES[case][1][name][1]), value, weights / weights.sum()

    loc, x, w = fitted("normal", "loc")
    mean = (w * x).sum()
    torch.testing.assert_close(loc, mean)
    torch.testing.assert_close(fitted("normal", "scale", loc=mean)[0], (w * (x - mean) ** 2).sum().sqrt())
    loc, x, w = fitted("mvn_covariance", "loc")
    torch.testing.assert_close(loc, w @ x)
    covariance = (x - loc).mT @ ((x - loc) * w.unsqueeze(-1))
    torch.testing.assert_close(fitted("mvn_covariance", "covariance_matrix", loc=loc)[0], covariance)
    tril = fitted("mvn_tril", "scale_tril", loc=loc)[0]
    assert torch.equal(tril, tril.tril())
    probs, x, w = fitted("categorical", "probs")
    torch.testing.assert_close(probs, torch.stack([w[x == k].sum() for k in range(4)]))
    rate, x, w = fitted("poisson", "rate")
    torch.testing.assert_close(rate, (w * x).sum())
    rate, x, w = fitted("exponential", "rate")
    torch.testing.assert_close(rate, 1 / (w * x).sum())
    probs, x, w = fitted("geometric", "probs")
    torch.testing.assert_close(probs, 1 / (1 + (w * x).sum()))
    odds, x, w = fitted("bernoulli_logits", "logits")
    torch.testing.assert_close(odds.sigmoid(), (w * x).sum())
    probs, x, w = fitted("binomial", "probs")
    torch.testing.assert_close(probs, (w * x).sum() / 9)


def test_counts_on_the_edge_stay_finite_and_right():
    counts = torch.tensor([0.0, 3.0, 1.0])  # of the categories after the first, which has none
    kind = family(dist.Categorical(torch.ones(4)))
    found = link(kind.ratio("logits", {}, counts, counts.sum()), torch.zeros(4), REAL)
    torch.testing.assert_close(found.softmax(-1), torch.tensor([0.0, 0.0, 0.75, 0.25]), atol=1e-300, rtol=1e-12)
    eta, log_normalizer = kind.natural({"logits": found})
    assert torch.isfinite(eta).all()
    assert torch.isfinite(log_normalizer).all()
    rate = torch.tensor(0.0)
    eta, log_normalizer = family(dist.Poisson(1.0)).natural({"rate": rate})
    assert (0 * eta - log_normalizer).item() == 0.0
    old = torch.tensor([0.3, 0.7])
    zero = torch.zeros(2)
    for kind_name in ("mean", "rate", "proportion", "scale", "simplex"):
        assert torch.equal(LINKS[kind_name](old, zero, zero, zero, REAL), old), "a cell without weight keeps its value"


def test_a_covariance_is_held_above_its_floor_and_otherwise_left_alone():
    matrix = torch.tensor([[[4.0, 1.9], [1.9, 1.0]]])
    weight = torch.full((1, 1, 1), 10.0).expand(1, 2, 2)
    for floor, low_enough in ((1e-3, True), (0.3, False), (0.0, True)):
        low = 10.0 * floor * torch.eye(2).unsqueeze(0)
        found = LINKS["covariance_matrix"](torch.eye(2).unsqueeze(0), 10.0 * matrix, weight, low, DEFINITE)
        if low_enough:
            torch.testing.assert_close(found, matrix, rtol=1e-12, atol=1e-12)
        else:
            values, vectors = torch.linalg.eigh(matrix)
            expected = vectors @ torch.diag_embed(values.clamp_min(floor)) @ vectors.mT
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    empty = torch.zeros(1, 2, 2)
    torch.testing.assert_close(LINKS["covariance_matrix"](matrix, empty, empty, empty, DEFINITE), matrix)


def test_every_registered_family_is_tested_here():
    registered = {cls for cls in family.registry if cls is not object}
    # those completed by a hidden factor minorise their density: test_mixtures.py maximises it by other means
    # and the normal that is left of factors that are summed out in test_factors.py
    elsewhere = {dist.StudentT, dist.MultivariateStudentT, dist.MaskedMixture, ExpandedDistribution, FactorNormal}
    assert registered - elsewhere == {cls for cls, _ in CASES.values()}
    assert all(family.dispatch(cls)(None).augmented is False for cls, _ in CASES.values())
    assert family(dist.Cauchy(0.0, 1.0)) is None
    assert prior_ratio(dist.HalfCauchy(1.0), torch.tensor(1.0)) is None
    assert math.isfinite(family(dist.Normal(0.0, 1.0)).natural({"loc": torch.zeros(()), "scale": torch.ones(())})[1])
