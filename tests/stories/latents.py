"""How latents hang together: several, in chains, in plates inside the rows, with gathers over items and raters."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from .base import CODES, COLUMN, CUBE, SIGNS, TABLE, K, definite, label, positive, real, simplex, story, unit


@story(COLUMN)
def two_latents(x):
    first, second, loc, scale = simplex("first", 3), simplex("second", 2), real("loc", 3, 2), positive("scale")
    with pyro.plate("data", len(x)):
        a, b = label("a", dist.Categorical(first)), label("b", dist.Categorical(second))
        pyro.sample("x", dist.Normal(loc[a, b], scale), obs=x)


@story(TABLE)
def chain(x):
    start, moves, loc, scale = simplex("start", 3), simplex("moves", 3, 2), real("loc", 2), positive("scale", 3)
    with pyro.plate("data", len(x)):
        a = label("a", dist.Categorical(start))
        b = label("b", dist.Categorical(moves[a]))
        pyro.sample("x", dist.Normal(loc[b], 1.0), obs=x[:, 0])
        pyro.sample("y", dist.Normal(0.0, scale[a]), obs=x[:, 1])


@story(TABLE)
def markov(x):
    start, moves, loc, covariance = simplex("start", 2), simplex("moves", 2, 2), real("loc", 2, 1), definite("s", 2, 1)
    with pyro.plate("data", len(x)):
        z = label("z_0", dist.Categorical(start))
        for t in range(3):
            z = label(f"z_{t}", dist.Categorical(moves[z])) if t else z
            pyro.sample(f"x_{t}", dist.MultivariateNormal(loc[z], covariance[z]), obs=x[:, t : t + 1])


@story(TABLE)
def switch(x):
    chance, loc = unit("chance"), real("loc", 2)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Bernoulli(chance))
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x[:, 0])


@story(COLUMN)
def named_values(x):
    weights, loc = simplex("weights", 2), real("loc", 2)
    pyro.deterministic("gap", loc[1] - loc[0])
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", loc[label("z", dist.Categorical(weights))], event_dim=0)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@story(TABLE)
def plain_normal(x):
    loc, covariance = real("loc", 3), definite("covariance", 3)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(loc, covariance), obs=x)


@story(TABLE)
def inner_plate(x):
    outer, inner, loc, scale = simplex("outer", 2), simplex("inner", 2, 3), real("loc", 3), positive("scale")
    with pyro.plate("data", len(x), dim=-2):
        a = label("a", dist.Categorical(outer))
        with pyro.plate("items", 3, dim=-1):
            b = label("b", dist.Categorical(inner[a]))
            pyro.sample("x", dist.Normal(loc[b], scale), obs=x)


@story(TABLE)
def inner_plate_on_the_left(x):
    outer, inner, loc, scale = simplex("outer", 2), simplex("inner", 2, 3), real("loc", 3), positive("scale")
    with pyro.plate("data", len(x), dim=-1):
        a = label("a", dist.Categorical(outer))
        with pyro.plate("items", 3, dim=-2):
            b = label("b", dist.Categorical(inner[a]))
            pyro.sample("x", dist.Normal(loc[b], scale), obs=x.mT)


@story(CUBE)
def nested_plates(x):
    top, middle, bottom = simplex("top", 2), simplex("middle", 2, 2), simplex("bottom", 2, 2, 2)
    loc = real("loc", 2, 2)
    with pyro.plate("data", len(x), dim=-3):
        a = label("a", dist.Categorical(top))
        with pyro.plate("middles", 2, dim=-2):
            b = label("b", dist.Categorical(middle[a]))
            with pyro.plate("bottoms", 2, dim=-1):
                c = label("c", dist.Categorical(bottom[a, b]))
                pyro.sample("x", dist.Normal(loc[b, c], 1.0), obs=x)


@story(TABLE)
def sibling_plates(x):
    top, left, right = simplex("top", 2), simplex("left", 2, 2), simplex("right", 2, 2)
    loc, other = real("loc", 2), real("other", 2)
    with pyro.plate("data", len(x), dim=-2):
        a = label("a", dist.Categorical(top))
        with pyro.plate("lefts", 3, dim=-1):
            b = label("b", dist.Categorical(left[a]))
            pyro.sample("x", dist.Normal(loc[b], 1.0), obs=x)
        with pyro.plate("rights", 2, dim=-1):  # another plate at the same dim
            c = label("c", dist.Categorical(right[a]))
            pyro.sample("y", dist.Normal(other[c], 1.0), obs=x[:, 1:])


@story(SIGNS)
def items(x):
    weights, probs = simplex("weights", K), unit("probs", K, 3)
    with pyro.plate("data", len(x), dim=-2):
        z = label("z", dist.Categorical(weights))
        with pyro.plate("items", 3, dim=-1) as item:
            pyro.sample("x", dist.Bernoulli(probs[z, item]), obs=x)


@story(torch.where(torch.arange(72).reshape(24, 3) % 7 == 0, torch.nan, CODES.double()))
def raters(x):
    """Dawid and Skene: each column a rater with a confusion matrix of her own; NaN where she gave no label."""
    classes, confusion = simplex("classes", 3), simplex("confusion", 3, 3, 3)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(classes))
        pyro.sample("x", dist.Categorical(confusion[torch.arange(3), z.unsqueeze(-1)]).to_event(1), obs=x)
