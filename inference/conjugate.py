"""A mean field over a model's latents, derived from the model (Blei, Kucukelbir and McAuliffe 2017).

The enumerated latents of a row keep their exact joint posterior. Every latent that rows share gets a factor of its
prior's family. log p is linear in the statistics of each, so the optimal factor, all else held, has as its natural
parameter the gradient of E log p with respect to its mean parameters: that gradient is all the derivation there is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compiler import compile_program
from .errors import ModelError
from .estep import Expectations
from .expected import Expected, expected_family, observed_family
from .factors import FactorFamily, MultivariateNormalFactor, NormalFactor, Point, factor_family
from .family import Family
from .forms import Form, root
from .program import Program
from .sites import Argument, Layout, Params
from .sources import WAY_OUT, Families, Means, Source, distinct, expected
from .structure import Structure, base_of
from .symbols import form_of, plain, provenance


class Moment(NamedTuple):
    """One expectation that a site asks of one of its arguments."""

    site: str
    argument: str
    source: Source
    moment: str


class Prior(NamedTuple):
    """A shared latent's own density in expectation."""

    family: Expected
    args: dict[str, Argument]
    batch: torch.Size  # of the prior

    def natural(self, moments: Params) -> tuple[Tensor, Tensor]:
        """E eta (R, *batch, T) and E A (R, *batch)."""
        eta, log_normalizer = self.family.natural({name: a.of(moments) for name, a in self.args.items()})
        return eta, log_normalizer.expand(len(log_normalizer), *self.batch)


@dataclass(frozen=True)
class MeanField:
    """A model in expectation.

    Attributes
    ----------
    program : Program
        Its sites have families in expectation, whose arguments are gathered from `moments`.
    families : dict
        Latent -> family of its factor; params are `Point`.
    priors : dict
        Latent -> its own density.
    wanted : dict
        Key -> the moment that `moments` keeps under it.
    """

    program: Program
    families: dict[str, FactorFamily]
    priors: dict[str, Prior]
    wanted: dict[str, Moment]

    def moments(self, means: Means, sites: Collection[str] | None = None) -> Params:
        """Everything that arguments are gathered from, (R, cells); of some sites."""
        return {
            key: _flat(expected(one.source, one.moment, means, self.families))
            for key, one in self.wanted.items()
            if sites is None or one.site in sites
        }

    def starts(self, values: Params) -> Params:
        """Mean parameters of factors that stand at points, and params as they are."""
        return {
            name: value if isinstance(self.families[name], Point) else self.families[name].statistics(value)
            for name, value in values.items()
        }

    def means(self, state: Params) -> Params:
        """Mean parameters from natural ones."""
        return {
            name: value if isinstance(self.families[name], Point) else self.families[name].mean(value)
            for name, value in state.items()
        }

    def statistics(self, name: str, means: Means) -> Tensor:
        """E t(theta) in the statistics of the latent's prior."""
        family, mu = self.families[name], means[name]
        if isinstance(family, MultivariateNormalFactor) and self.priors[name].family.event_dim == 0:
            first, second = family.power(mu, 1.0), family.power(mu, 2.0)
            assert first is not None
            assert second is not None
            return torch.stack([first, second], -1)
        return mu

    def touching(self, name: str) -> frozenset[str]:
        """Sites whose density speaks of a latent, its own prior among them."""
        return frozenset(one.site for one in self.wanted.values() if name in one.source.names) | {name}

    def log_prob(self, means: Means, expected_stats: Expectations, sites: Collection[str]) -> Tensor:
        """E log p of some sites and priors, up to base measures, (R,). Gradients flow to `means`."""
        moments = self.moments(means, sites)
        total = torch.zeros((), dtype=torch.float64)
        for name, site in {**self.program.latents, **self.program.products}.items():
            if name in sites:
                s1, s0 = expected_stats.sums[name]
                eta, log_normalizer = site.natural(site.arguments(moments))
                total = total + _each(s1 * eta) - _each(s0 * log_normalizer)
        for name, prior in self.priors.items():
            if name in sites:
                eta, log_normalizer = prior.natural(moments)
                stats = self.statistics(name, means)
                total = total + _each(stats * eta) - _each(log_normalizer)
        return total

    def cost(self, state: Params, means: Means) -> Tensor:
        """E log q - E log p of the shared latents, (R,): what the bound pays for them."""
        moments = self.moments(means, self.priors)
        total = torch.zeros((), dtype=torch.float64)
        for name, prior in self.priors.items():
            eta, mu = state[name], means[name]
            own = _each(eta * mu) - _each(self.families[name].log_normalizer(eta))
            natural, log_normalizer = prior.natural(moments)
            stats = self.statistics(name, means)
            theirs = _each(stats * natural) - _each(log_normalizer)
            total = total + own - theirs
        return total

    def update(self, name: str, means: Means, stats: Expectations) -> Tensor:
        """The optimal natural parameter of one factor, all others held, (R, *B, T)."""
        with torch.enable_grad():
            leaf = means[name].detach().requires_grad_()
            value = self.log_prob({**means, name: leaf}, stats, self.touching(name)).sum()
            (eta,) = torch.autograd.grad(value, leaf)
        return eta


def _each(terms: Tensor) -> Tensor:
    """Summed over all but the restarts, (R,)."""
    return _flat(terms).sum(1)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def mean_field(model: Any, data: Any, structure: Structure) -> MeanField:
    """Derive the mean field of a model on its data.

    Raises
    ------
    ModelError
        A latent or a site that is not conditionally conjugate, by name, with the reason and the way out.
    """
    _check(structure)
    families = {name: _family_of(name, param) for name, param in structure.params.items()}
    values = {name: param.value.unsqueeze(0) for name, param in structure.params.items()}
    wanted: dict[str, Moment] = {}

    def read(
        name: str, fn: Any, layout: Layout, keep_rows: bool
    ) -> tuple[Family | None, dict[str, Argument] | None, int]:
        inner = 0
        while hasattr(fn, "reinterpreted_batch_ndims"):
            inner += fn.reinterpreted_batch_ndims
            fn = fn.base_dist
        kind = observed_family(fn)
        if kind is None:
            return None, None, inner
        args: dict[str, Argument] = {}
        for key, tensor in kind.raw(fn).items():
            event_dim = kind.events.get(key, 0)
            form = _form(name, key, tensor, event_dim, structure, families)
            moved = [layout.canonical(part, inner + event_dim, keep_rows) for part in _tensors(form)]
            if any(part is None for part in moved):
                return kind, None, inner
            _add(args, wanted, name, key, _with(form, moved), tensor.shape[tensor.dim() - event_dim :], kind, values)
        return kind, args, inner

    program = compile_program(model, data, structure, read=read)
    for name, reason in program.scored.items():
        raise ModelError(f"cavi: site '{name}' has no conjugate form: {reason}; {WAY_OUT}")
    if program.patterns:
        name = next(iter(program.patterns))
        raise ModelError(
            f"cavi: site '{name}' has vectors with some cells missing, which couples them to the others: use a "
            f"diagonal covariance, or {WAY_OUT}"
        )
    priors = {
        name: _prior(name, structure, families, values, wanted)
        for name, param in structure.params.items()
        if param.prior is not None
    }
    families = _joint(families, priors, wanted)
    field = MeanField(program, families, priors, wanted)
    _check_uses(field)
    field.moments(field.starts(values))  # each must exist
    return field


def _family_of(name: str, param: Any) -> FactorFamily:
    if param.prior is None:
        return Point()
    found = factor_family(base_of(param.prior["fn"]))
    if found is None:
        raise ModelError(
            f"cavi: latent '{name}' has a {type(base_of(param.prior['fn'])).__name__} prior, which is conjugate to "
            f"nothing here: use Normal, MultivariateNormal, Gamma, InverseGamma, Beta, Dirichlet or Wishart, or "
            f"{WAY_OUT}"
        )
    return found


def _form(name: str, key: str, tensor: Tensor, event_dim: int, structure: Structure, families: Families) -> Form:
    """How an argument is made of latents."""
    known = provenance(tensor)
    if known is None:
        return Form(plain(tensor).double(), ())
    if known.normalized and known.cells is not None:  # probabilities that a distribution divided by their sum
        (latent,) = known.names
        return root(latent, known.cells)
    found = form_of(tensor)
    if found is None:
        raise ModelError(
            f"cavi: site '{name}' takes its {key} from {', '.join(map(repr, sorted(known.names)))} by "
            f"'{known.operation or 'a normalisation'}', and no expectation of that is known: {WAY_OUT}"
        )
    return found


def _tensors(form: Form) -> list[Tensor]:
    return [form.offset, *(part for t in form.terms for part in (t.coef, *(leaf.cells for leaf in t.leaves)))]


def _with(form: Form, tensors: list[Any]) -> Form:
    """The form with other tensors in its places, all of one shape."""
    rest = iter(torch.broadcast_tensors(*tensors))
    offset = next(rest)
    terms = []
    for term in form.terms:
        coef = next(rest)
        terms.append(term._replace(coef=coef, leaves=tuple(leaf._replace(cells=next(rest)) for leaf in term.leaves)))
    return Form(offset, tuple(terms))


def _add(
    args: dict[str, Argument],
    wanted: dict[str, Moment],
    name: str,
    key: str,
    form: Form,
    event: torch.Size,
    kind: Expected,
    values: Params,
) -> None:
    """Enter the moments of one argument."""
    shape = torch.broadcast_shapes(form.offset.shape, event)
    form = form.map(lambda tensor: tensor.expand(shape))
    source, inverse = distinct(f"site '{name}', argument '{key}'", form, event)
    inverse = inverse.reshape(shape[: len(shape) - len(event)])
    points: dict[str, FactorFamily] = {n: Point() for n in values}
    for moment in kind.wants[key]:
        wide = {"covariance": (*event, *event), "log_det": ()}.get(moment, tuple(event))
        size = torch.Size(wide).numel()
        index = inverse.unsqueeze(-1) * size + torch.arange(size, device=inverse.device)
        index = index.reshape((*inverse.shape, *wide))
        value = _flat(expected(source, moment, values, points))[0][index]
        label = f"{name}.{key}|{moment}"
        if source.names:
            wanted[label] = Moment(name, key, source, moment)
            args[f"{key}|{moment}"] = Argument(value, len(wide), label, index, source.names)
        else:
            args[f"{key}|{moment}"] = Argument(value, len(wide))


def _prior(name: str, structure: Structure, families: Families, values: Params, wanted: dict[str, Moment]) -> Prior:
    node = structure.params[name].prior
    fn = base_of(node["fn"])
    if node["mask"] is not None or not (isinstance(node["scale"], float) and node["scale"] == 1.0):
        raise ModelError(f"cavi: latent '{name}' is scaled or masked, and its factor has no conjugate form: {WAY_OUT}")
    cls = expected_family(fn)
    assert cls is not None
    kind = cls()
    args: dict[str, Argument] = {}
    for key, tensor in kind.raw(fn).items():
        event_dim = kind.events.get(key, 0)
        form = _form(name, key, tensor, event_dim, structure, families)
        form = _with(form, _tensors(form))
        event = tensor.shape[tensor.dim() - event_dim :]
        _add(args, wanted, name, key, form, event, kind, values)
    return Prior(kind, args, fn.batch_shape)


def _joint(
    families: dict[str, FactorFamily], priors: dict[str, Prior], wanted: dict[str, Moment]
) -> dict[str, FactorFamily]:
    """Vectors of normal latents that meet in one multivariate normal site get one factor over the whole vector."""
    out = dict(families)
    for one in wanted.values():
        for name in one.source.names if one.moment == "covariance" else ():
            if isinstance(families[name], NormalFactor) and priors[name].batch[-1:] == one.source.event:
                out[name] = MultivariateNormalFactor()
    return out


def _check(structure: Structure) -> None:
    for name in structure.continuous:
        raise ModelError(
            f"cavi: latent '{name}' of each row is continuous, and no closed form is derived for it yet: {WAY_OUT}"
        )
    for name in structure.outside:
        raise ModelError(f"cavi: site '{name}' is observed outside the data plate: observe it inside, or {WAY_OUT}")
    if not any(param.prior is not None for param in structure.params.values()):
        raise ModelError(
            'cavi: no latent that rows share has a prior, so there is nothing to be uncertain of: use inference="em"'
        )


def _check_uses(field: MeanField) -> None:
    """In one site a latent may come in once: else its cells meet, and no factor of them alone is optimal."""
    arguments = {(one.site, one.argument): one.source for one in field.wanted.values()}
    met: set[tuple[str, str]] = set()
    for (site, _), source in arguments.items():
        leaves = [leaf.name for term in source.form.terms for leaf in term.leaves]
        for name in leaves:
            if isinstance(field.families[name], Point):
                continue
            if (site, name) in met or name == site:
                raise ModelError(
                    f"cavi: latent '{name}' enters site '{site}' twice ({source.where}): its factor would not be "
                    f"optimal alone; write the model with one use of it, or {WAY_OUT}"
                )
            met.add((site, name))


__all__ = ["MeanField", "Prior", "mean_field"]
