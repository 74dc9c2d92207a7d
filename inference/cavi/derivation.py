"""Deriving a mean field from a model: which latents are factors, what sites ask of them, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.errors import ModelError, NotConjugate
from ..base.unconstrained import MATRICES, base_constraint
from ..families.base import Family
from ..families.expected import Expected, ExpectedNormal, expected_family, observed_family
from ..families.factors import BetaFactor, FactorFamily, MultivariateNormalFactor, NormalFactor, Point, factor_family
from ..program.compiler import compile_program
from ..program.program import Program
from ..program.sites import Argument, Layout, Params
from ..trace.handlers import Bind, base_of, run
from ..trace.polynomials import Form, root, unbroadcast
from ..trace.provenance import form_of, plain, provenance, symbols_of
from ..trace.structure import Structure
from .bilinear import Bilinear, bilinear_site, in_vectors, is_bilinear
from .mean_field import DrawnPrior, MeanField, Moment, Prior, flat
from .moments import WAY_OUT, Families, Source, distinct
from .monte_carlo import DrawnFactor, DrawnProgram, Draws, key_of
from .stick_breaking import LogLinear, loglinear


def mean_field(model: Any, data: Any, structure: Structure, fallback: bool = False) -> MeanField:
    """Derive the mean field of a model on its data.

    Parameters
    ----------
    fallback : bool
        Fit by gradient what is not conjugate.

    Raises
    ------
    ModelError
        A latent or a site that is not conditionally conjugate, by name, with the reason and the way out.
    """
    _check(structure)
    given = ByDraws()
    while True:
        try:
            return _derive(model, data, structure, given)
        except NotConjugate as error:
            wider = more(given, error, structure) if fallback else None
            if wider is None:
                raise
            given = wider


def _derive(model: Any, data: Any, structure: Structure, given: ByDraws) -> MeanField:
    priors_of = {name: structure.trace.nodes[name] for name in structure.continuous}
    priors_of |= {name: param.prior for name, param in structure.params.items() if param.prior is not None}
    families: dict[str, FactorFamily] = {}
    for name, node in priors_of.items():
        if name in given.latents:
            families[name] = drawn_factor(name, node, structure.params[name].value, given, len(families))
        else:
            families[name] = family_of(name, node)
    families |= {name: Point() for name, param in structure.params.items() if param.prior is None}
    start = {name: param.value for name, param in structure.params.items()}
    start |= {name: plain(priors_of[name]["value"]) for name in structure.continuous}
    bilinear: dict[str, Bilinear] = {}
    values = {name: value.unsqueeze(0) for name, value in start.items()}
    wanted: dict[str, Moment] = {}

    def ask(site: str, argument: str, given: Params) -> Tensor:
        """An argument as a run of the model has it under other values of some latents."""
        fn = base_of(run(model, data, Bind({**start, **given}), structure.nesting).nodes[site]["fn"])
        kind = observed_family(fn)
        assert kind is not None
        return unbroadcast(kind.raw(fn)[argument])

    def read(
        name: str, fn: Any, layout: Layout, keep_rows: bool
    ) -> tuple[Family | None, dict[str, Argument] | None, int]:
        inner = 0
        while hasattr(fn, "reinterpreted_batch_ndims"):
            inner += fn.reinterpreted_batch_ndims
            fn = fn.base_dist
        kind = None if name in given.sites else observed_family(fn)
        if kind is None:
            return None, None, inner
        if isinstance(kind, ExpectedNormal) and kind.location and is_bilinear(fn.loc):
            if structure.latents:
                raise NotConjugate(
                    f"cavi: site '{name}' multiplies latents in its location beside the discrete latent "
                    f"'{next(iter(structure.latents))}': no closed form is derived for both; {WAY_OUT}",
                    site=name,
                )
            loc, scale = argument_form(name, "loc", fn.loc), argument_form(name, "scale", fn.scale)
            value = structure.trace.nodes[name]["value"]
            bilinear[name] = bilinear_site(name, loc, scale, value, structure.data_dim - inner, families)
            return None, None, inner
        args: dict[str, Argument] = {}
        for key, tensor in kind.raw(fn).items():
            event_dim = kind.events.get(key, 0)
            sticks = _sticks(name, key, tensor, structure, families, partial(ask, name, key))
            if sticks is not None:
                where = f"{name}.{key}|log"
                wanted[where] = Moment(name, key, sticks, "log")
                index = torch.arange(sticks.event[0]).reshape((1,) * len(layout.latents) + (-1,))
                value = sticks.log({n: families[n].statistics(v) for n, v in values.items()}, families)[0, 0][index]
                args[f"{key}|log"] = Argument(value, 1, where, index, sticks.names)
                continue
            form = argument_form(name, key, tensor)
            moved = [layout.canonical(part, inner + event_dim, keep_rows) for part in _tensors(form)]
            if any(part is None for part in moved):
                return kind, None, inner
            add_terms(
                args, wanted, name, key, _with(form, moved), tensor.shape[tensor.dim() - event_dim :], kind, values
            )
        return kind, args, inner

    program = compile_program(model, data, structure, read=read)
    for name, reason in program.scored.items():
        if name not in bilinear and name not in given.sites:
            raise NotConjugate(f"cavi: site '{name}' has no conjugate form: {reason}; {WAY_OUT}", site=name)
    scored = {name: reason for name, reason in program.scored.items() if name in given.sites}
    program = replace(program, scored=scored, tables={})
    if scored:
        program = at_draws(program, wanted, start)
    priors = {
        name: drawn_prior(name, model, data, structure, wanted, start)
        if name in given.sites
        else prior_of(name, node, values, wanted)
        for name, node in priors_of.items()
    }
    families = _joint(families, priors, wanted)
    families, bilinear = in_vectors(families, bilinear, start)
    terms = {**program.latents, **program.products}
    field = MeanField(structure.params, terms, families, priors, wanted, bilinear, program)
    check_uses(field)
    field.moments(field.starts(values))  # each must exist
    field.products(field.starts(values))
    return field


def family_of(name: str, node: Any) -> FactorFamily:
    fn = base_of(node["fn"])
    found = factor_family(fn)
    if found is None:
        raise NotConjugate(
            f"cavi: latent '{name}' has a {type(fn).__name__} prior, which is conjugate to nothing here: use Normal, "
            f"MultivariateNormal, Gamma, InverseGamma, Beta, Dirichlet or Wishart, or {WAY_OUT}",
            site=name,
        )
    return found


def argument_form(name: str, key: str, tensor: Tensor) -> Form:
    """How an argument is made of latents."""
    known = provenance(tensor)
    if known is None:
        return Form(plain(tensor).double(), ())
    if known.normalized and known.cells is not None:  # probabilities that a distribution divided by their sum
        (latent,) = known.names
        return root(latent, known.cells)
    found = form_of(tensor)
    if found is None:
        raise NotConjugate(
            f"cavi: site '{name}' takes its {key} from {', '.join(map(repr, sorted(known.names)))} by "
            f"'{known.operation or 'a normalisation'}', and no expectation of that is known: {WAY_OUT}",
            site=name,
        )
    return found


def _sticks(
    name: str, key: str, tensor: Tensor, structure: Structure, families: Families, ask: Callable[[Params], Tensor]
) -> LogLinear | None:
    """Probabilities that are computed from Beta latents, the same for all rows, where they are log-linear."""
    known = provenance(tensor)
    if key != "probs" or known is None or known.cells is not None or form_of(tensor) is not None:
        return None
    latents = tuple(sorted(known.names))
    if not all(isinstance(families[one], BetaFactor) for one in latents):
        return None
    if unbroadcast(plain(tensor)).numel() != tensor.shape[-1]:
        return None
    values = {one: structure.params[one].value for one in latents}
    return loglinear(f"site '{name}', argument '{key}'", ask, latents, values)


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


def add_terms(
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
        value = flat(Moment(name, key, source, moment).under(values, points))[0][index]
        label = f"{name}.{key}|{moment}"
        if source.names:
            wanted[label] = Moment(name, key, source, moment)
            args[f"{key}|{moment}"] = Argument(value, len(wide), label, index, source.names)
        else:
            args[f"{key}|{moment}"] = Argument(value, len(wide))


def prior_of(name: str, node: Any, values: Params, wanted: dict[str, Moment]) -> Prior:
    fn = base_of(node["fn"])
    if node["mask"] is not None or not (isinstance(node["scale"], float) and node["scale"] == 1.0):
        raise ModelError(f"cavi: latent '{name}' is scaled or masked, and its factor has no conjugate form: {WAY_OUT}")
    cls = expected_family(fn)
    assert cls is not None
    kind = cls()
    args: dict[str, Argument] = {}
    for key, tensor in kind.raw(fn).items():
        event_dim = kind.events.get(key, 0)
        form = argument_form(name, key, tensor)
        form = _with(form, _tensors(form))
        event = tensor.shape[tensor.dim() - event_dim :]
        add_terms(args, wanted, name, key, form, event, kind, values)
    return Prior(kind, args, fn.batch_shape)


def _joint(
    families: dict[str, FactorFamily], priors: dict[str, Prior | DrawnPrior], wanted: dict[str, Moment]
) -> dict[str, FactorFamily]:
    """Vectors of normal latents that meet in one multivariate normal site get one factor over the whole vector."""
    out = dict(families)
    for one in wanted.values():
        if one.moment != "covariance" or not isinstance(one.source, Source):
            continue
        for name in one.source.names:
            prior = priors.get(name)
            vectors = isinstance(prior, Prior) and prior.batch[-1:] == one.source.event
            if isinstance(families[name], NormalFactor) and vectors:
                out[name] = MultivariateNormalFactor()
    return out


def _check(structure: Structure) -> None:
    for name in structure.outside:
        raise ModelError(f"cavi: site '{name}' is observed outside the data plate: observe it inside, or {WAY_OUT}")
    if not structure.continuous and not any(param.prior is not None for param in structure.params.values()):
        raise ModelError(
            'cavi: no latent that rows share has a prior, so there is nothing to be uncertain of: use inference="em"'
        )


def check_uses(field: MeanField) -> None:
    """In one site a latent may come in once: else its cells meet, and no factor of them alone is optimal."""
    arguments: dict[tuple[str, str], Any] = {(one.site, one.argument): one.source for one in field.wanted.values()}
    arguments = {place: source for place, source in arguments.items() if not isinstance(source, Draws)}
    arguments |= {(name, "loc"): one for name, one in field.bilinear.items()}
    met: set[tuple[str, str]] = set()
    for (site, _), source in arguments.items():
        for name in source.uses:
            if isinstance(field.families[name], Point):
                continue
            if (site, name) in met or name == site:
                raise NotConjugate(
                    f"cavi: latent '{name}' enters site '{site}' twice: its factor would not be "
                    f"optimal alone; write the model with one use of it, or {WAY_OUT}",
                    site=site,
                )
            met.add((site, name))


class ByDraws(NamedTuple):
    """What has no closed form, and is fitted by gradient over draws."""

    latents: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()  # scored at draws; a latent's own density among them


def more(given: ByDraws, error: NotConjugate, structure: Structure) -> ByDraws | None:
    """What is fitted by gradient beside what was, for a derivation to get further; None where that cannot be."""
    if error.latent is not None and error.latent not in given.latents | set(structure.continuous):
        return given._replace(latents=given.latents | {error.latent})
    if error.site is None or error.site in given.sites or error.site in structure.continuous:
        return None
    inside = inside_of(error.site, structure)
    if inside & set(structure.continuous):
        return None
    drawn = {name for name in inside if structure.params[name].prior is not None}
    return ByDraws(given.latents | drawn, given.sites | {error.site})


def inside_of(site: str, structure: Structure) -> frozenset[str]:
    """Latents and params that a site depends on; of a latent's own density the latent itself too."""
    if site in structure.params:
        prior = structure.params[site].prior
        return symbols_of(prior["fn"]) | {site}
    return symbols_of(structure.trace.nodes[site]["fn"]) - {"data"}


def at_draws(program: Program, wanted: dict[str, Moment], start: Params) -> DrawnProgram:
    """The program with its scored sites scored at draws of what they depend on."""
    structure = program.structure
    needs = {}
    for site in program.scored:
        inside = sorted(inside_of(site, structure))
        needs[site] = {name: structure.params[name].value.shape for name in inside}
        for name in inside:
            wanted[key_of(site, name)] = Moment(site, f"draws of {name}", Draws(name), "draws")
    as_it_is = {f.name: getattr(program, f.name) for f in fields(Program)}
    return DrawnProgram(**as_it_is, needs=needs, fixed=start)


def drawn_prior(
    name: str, model: Any, data: Any, structure: Structure, wanted: dict[str, Moment], start: Params
) -> DrawnPrior:
    names = inside_of(name, structure)
    for one in names:
        wanted[key_of(name, one)] = Moment(name, f"draws of {one}", Draws(one), "draws")
    prior = structure.params[name].prior

    def density(values: Params) -> Tensor:
        fn = prior["fn"]
        if len(names) > 1:
            fn = run(model, data, Bind({**start, **values}), structure.nesting).nodes[name]["fn"]
        found: Tensor = fn.log_prob(values[name]).sum()
        return found

    return DrawnPrior(name, names, density)


def drawn_factor(name: str, node: Any, value: Tensor, given: ByDraws, seed: int) -> DrawnFactor:
    """The factor of a latent that is fitted by gradient."""
    fn = base_of(node["fn"])
    if base_constraint(fn.support) in MATRICES:
        raise ModelError(
            f"cavi: latent '{name}' is a matrix, and fallback=\"svi\" fits numbers and vectors by gradient: "
            f'use inference="svi"'
        )
    known = None if name in given.sites else factor_family(fn)
    return DrawnFactor(node["fn"], value, known, seed)
