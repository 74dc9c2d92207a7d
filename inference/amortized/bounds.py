"""The bounds of a pair with networks, row by row: the ELBO, the importance-weighted bound, and the latter's doubly
reparameterized gradient.

Draws, and the values of enumerated latents, lie side by side as repeated rows: K configurations of S draws of B rows
are K S B rows to the pair, whatever its networks are made of.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ..data.streams import first_rows
from ..data.structures import is_missing, num_rows, slice_rows, tensors_of
from ..distributions.missing import Missing
from ..nn.posteriors import Flow
from ..program.against_pyro import COMPARED, Witness, gaps_of, quietly
from ..trace.handlers import Bind, base_of, is_bookkeeping
from .reader import Story, at_rest, value_of

SEEN = 64  # rows that those held against Pyro are taken from


class Terms(NamedTuple):
    """What the draws of rows are worth and cost, each (K, S, B)."""

    likelihood: Tensor  # log p(x | latents)
    prior: Tensor  # log p of the continuous latents
    log_q: Tensor  # log q of them
    kl: Tensor  # log q - log p of them, exact where it can be
    discrete: Tensor  # log p of the enumerated latents
    log_share: Tensor  # log q of those that the guide has factors of


class Drawn(NamedTuple):
    """One run of the guide, and of the model at its draws."""

    guide: dict[str, Any]
    model: dict[str, Any]
    lead: tuple[int, int, int]  # K, S, B


def draw(story: Story, values: dict[str, Tensor], rows: Any, num: int, missing: bool, hook: Any = None) -> Drawn:
    """`num` draws of the latents of some rows, under every configuration of those that are enumerated."""
    size, configs = num_rows(rows), story.num_configurations
    lead = configs if story.guided else 1  # whether the guide's draws depend on the configuration
    given = configurations(story, num * size) if configs > 1 else {}
    guide = encode(story, values, repeated(rows, lead * num), {name: given[name] for name in story.guided})
    drawn = {name: guide[name]["value"] for name in story.latents}
    if hook is not None:
        drawn = {name: hook(value) for name, value in drawn.items()}
    if configs > lead:
        at = {name: story.data_dim - guide[name]["fn"].event_dim for name in drawn}
        drawn = {name: torch.cat([value] * configs, at[name]) for name, value in drawn.items()}
    model = Bind({**values, **drawn, **given}, centred=False)
    with model, Missing(look=False) if missing else nullcontext():
        story.pair.model(repeated(rows, configs * num))
    return Drawn(guide, model.nodes, (configs, num, size))


class Centred(Bind):
    """A run at the means of what is normal, without draws."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(base_of(msg["fn"]), Normal | MultivariateNormal):
            msg["value"], msg["done"] = msg["fn"].mean, True


def encode(
    story: Story, values: dict[str, Tensor], rows: Any, given: dict[str, Tensor], kind: type[Bind] = Bind
) -> dict[str, Any]:
    """One run of the guide alone, with some latents given."""
    if story.pair.guide is None:
        return {}
    play = kind({**values, **given}, centred=False)
    with play:
        story.pair.guide(rows)
    return {name: msg for name, msg in play.nodes.items() if not is_bookkeeping(msg)}


def repeated(rows: Any, times: int) -> Any:
    """The rows, so many times over."""
    return rows if times == 1 else slice_rows(rows, torch.arange(num_rows(rows)).repeat(times))


def configurations(story: Story, size: int) -> dict[str, Tensor]:
    """Every configuration of the enumerated latents, each held by `size` rows; shaped for the plate of the rows."""
    table = list(itertools.product(*(range(count) for count in story.discrete.values())))
    columns = torch.tensor(table).repeat_interleave(size, 0).unbind(1)
    inner = -story.data_dim - 1
    return {n: c.reshape(-1, *(1,) * inner) for n, c in zip(story.discrete, columns, strict=True)}


def terms(
    story: Story, drawn: Drawn, free_nats: float = 0.0, exact: bool = True, scaled: bool = True, frozen: bool = False
) -> Terms:
    """Log densities of every draw.

    Parameters
    ----------
    free_nats : float
        That each number of a latent may carry at no cost, on average over the rows.
    exact : bool
        Whether closed forms stand in place of draws; then `prior` and `log_q` are not filled.
    scaled : bool
        Whether what the pair scales by hand (`poutine.scale`, as in the beta-VAE) counts so.
    frozen : bool
        Whether log q is to pass gradients to the draws alone.
    """
    configs, num, size = drawn.lead
    early = bool(story.guided) or configs == 1

    def lay(term: Tensor, msg: Any, of_guide: bool = False) -> Tensor:
        if scaled and not (msg["mask"] is None and msg["scale"] == 1):
            term = scale_and_mask(term, msg["scale"], msg["mask"])
        if term.dim() > 1:
            term = term.movedim(story.data_dim, -1).flatten(0, -2).sum(0)
        shape = (configs if early or not of_guide else 1, num, size)
        return (term if term.numel() == math.prod(shape) else term.expand(math.prod(shape))).reshape(shape)

    found: dict[str, Tensor] = {}

    def add(field: str, term: Tensor) -> None:
        found[field] = found[field] + term if field in found else term

    for name in story.observed:
        msg = drawn.model[name]
        add("likelihood", lay(msg["fn"].log_prob(msg["value"]), msg))
    for name in story.discrete:
        msg = drawn.model[name]
        add("discrete", lay(msg["fn"].log_prob(msg["value"]), msg))
    for name in story.guided:
        msg = drawn.guide[name]
        add("log_share", lay(msg["fn"].log_prob(msg["value"]), msg, True))
    closed = exact and early and (story.ordered or len(story.latents) == 1)
    for name in story.latents:
        p, q = drawn.model[name], drawn.guide[name]
        known = kl_of(q["fn"], p["fn"], free_nats) if closed else None
        if known is None:
            value = p["value"]  # where the model met it: a hook may stand between
            prior = lay(p["fn"].log_prob(value), p)
            fn = detached(q["fn"]) if frozen else q["fn"]
            first = (
                value
                if early
                else value.unflatten(story.data_dim - fn.event_dim, (configs, -1)).select(
                    story.data_dim - fn.event_dim - 1, 0
                )
            )
            log_q = lay(fn.log_prob(first), q, True)
            add("prior", prior)
            add("log_q", log_q)
            add("kl", log_q - prior)
        else:
            add("kl", lay(known, p))
    shape = (configs, num, size)
    nothing = torch.zeros((), dtype=story.dtype).expand(shape)
    each = (found.get(field, nothing) for field in Terms._fields)
    return Terms(*(term if term.shape == shape else term.expand(shape) for term in each))


def log_weights(found: Terms) -> Tensor:
    """log p(x, latents) - log q(latents), enumerated latents summed out, (S, B)."""
    return (found.likelihood + found.prior + found.discrete - found.log_q).logsumexp(0)


def elbo(found: Terms, guided: bool, kl_weight: float | Tensor = 1.0) -> Tensor:
    """The evidence lower bound of each row, (B,), a mean over the draws."""
    each = elbos(found, guided, kl_weight)
    return each.squeeze(0) if len(each) == 1 else each.mean(0)


def elbos(found: Terms, guided: bool, kl_weight: float | Tensor = 1.0) -> Tensor:
    """What each draw of each row says of it, (S, B)."""
    if len(found.likelihood) == 1:
        kl = found.kl if isinstance(kl_weight, float) and kl_weight == 1 else kl_weight * found.kl
        return (found.likelihood - kl).squeeze(0)
    if guided:
        share = found.log_share.exp()
        joint = found.likelihood + kl_weight * (found.discrete - found.log_share - found.kl)
        return (share * joint).sum(0)
    prior = found.discrete + kl_weight * found.prior
    return (found.likelihood + prior - kl_weight * found.log_q).logsumexp(0)


def importance_bound(weights: Tensor) -> Tensor:
    """log of the mean weight (Burda et al. 2016), (B,)."""
    return weights.logsumexp(0) - math.log(len(weights))


class Reweighted:
    """The doubly reparameterized gradient (Tucker et al. 2019): through a draw it is weighted once more.

    The draws' share of the weights, (S, B), is known only when they have been scored, and wanted when gradients flow
    back.
    """

    def __init__(self) -> None:
        self.share: Tensor = torch.ones(())

    def hook(self, value: Tensor) -> Tensor:
        """A draw whose gradient will be weighted."""
        if not value.requires_grad:
            return value
        held = value * 1.0
        held.register_hook(lambda gradient: gradient * self._beside(gradient))
        return held

    def _beside(self, gradient: Tensor) -> Tensor:
        """The shares in the shape of a draw: rows stand at the plate of the data."""
        return self.share.reshape(-1, *(1,) * (gradient.dim() - 1))


def kl_of(q: Any, p: Any, free_nats: float = 0.0) -> Tensor | None:
    """KL(q || p) in closed form, (batch); None where there is none.

    With `free_nats` each number of the event costs at least that, on average over the batch.
    """
    inner = 0
    while isinstance(q, Independent) and isinstance(p, Independent):
        if q.reinterpreted_batch_ndims != p.reinterpreted_batch_ndims:
            return None
        inner += q.reinterpreted_batch_ndims
        q, p = q.base_dist, p.base_dist
    if isinstance(q, Normal) and isinstance(p, Normal):
        ratio = q.scale / p.scale
        each = 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - ratio.log()
        if free_nats and inner:
            each = each.mean(0, keepdim=True).clamp_min(free_nats).expand_as(each)
        return each.flatten(-inner).sum(-1) if inner else each
    if isinstance(q, MultivariateNormal) and isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        if p.reinterpreted_batch_ndims != 1 or inner:
            return None
        loc, scale = p.base_dist.loc, p.base_dist.scale
        scaled = q.scale_tril / scale.unsqueeze(-1)
        log_det = scaled.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = scaled.square().sum((-2, -1)) + ((q.loc - loc) / scale).square().sum(-1)
        return 0.5 * (square - q.loc.shape[-1]) - log_det
    try:
        each = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return each.flatten(-inner).sum(-1) if inner else each


def detached(fn: Any) -> Any:
    """A distribution whose arguments pass no gradients."""
    if isinstance(fn, Flow):
        return fn.frozen()
    out = copy.copy(fn)
    for name, value in vars(fn).items():
        if isinstance(value, Tensor):
            out.__dict__[name] = value.detach()
        elif isinstance(value, torch.distributions.Distribution):
            out.__dict__[name] = detached(value)
    return out


def values_from(story: Story, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Params from what is learned."""
    return {name: value_of(story.leaves[name], leaf) for name, leaf in leaves.items()}


# --- held against Pyro ------------------------------------------------------------------------------------------------


def hold(when: str, story: Story, leaves: Mapping[str, Tensor], data: Any) -> str:
    """log p(x, latents) of a few rows at draws of the guide, and log q of these, against plain runs of the pair; why
    that could not be, or nothing.
    """
    few = first_rows(data, SEEN)
    home = next(iter(tensors_of(few).values())).device
    if home.type == "meta":
        return "its numbers are on no device"
    gaps = gaps_of(few).to(home)
    if int((~gaps).sum()) >= 2:  # rows without gaps, where there are any: of others only some families know the margin
        few = slice_rows(few, (~gaps).nonzero().flatten()[:COMPARED])
    else:
        few = slice_rows(few, torch.arange(min(COMPARED, num_rows(few)), device=gaps.device))
    values = values_from(story, leaves)
    with at_rest(story), quietly():
        drawn = draw(story, values, few, 1, is_missing(few))
        found = terms(story, drawn, exact=False)
        configs, _, size = drawn.lead

        def block(nodes: dict[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
            """The values of the last configuration."""
            out = {}
            for name in names:
                value = nodes[name]["value"]
                dim = value.dim() + story.data_dim - nodes[name]["fn"].event_dim
                out[name] = value.narrow(dim, value.shape[dim] - size, size)
            return out

        of_model = block(drawn.model, (*story.latents, *(story.discrete if configs > 1 else ())))
        log_p = float((found.likelihood + found.prior + found.discrete)[-1].sum())
        log_q = float((found.log_q + found.log_share)[-1].sum())
        plate = story.model.data_plate
        model = Witness("svi", story.pair.model, few, lambda *_: log_p, size, plate=plate, whole=True)
        why = model.compare(when, {**values, **of_model})
        if story.pair.guide is None or why:
            return why
        of_guide = block(drawn.guide, (*story.latents, *story.guided))
        guide = Witness("svi", story.pair.guide, few, lambda *_: log_q, size, plate=plate, whole=True)
        return guide.compare(when, {**values, **of_guide})
