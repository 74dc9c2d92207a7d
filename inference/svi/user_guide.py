"""A guide that the user wrote: read once, checked against the model, and drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from ..base.errors import ModelError
from ..base.unconstrained import Free, Parts, free_param, total, values_of
from ..data.devices import device_of
from ..data.structures import slice_rows
from ..families.base import LOG_2PI
from ..pair import Pair
from ..program.program import Program
from ..trace.handlers import DATA_PLATE, Bind, base_of, double, engine_state, in_data_plate, run, sample_sites
from ..trace.idioms import is_all, is_one
from ..trace.polynomials import unbroadcast
from ..trace.provenance import Provenance, provenance, symbols_of
from ..trace.structure import Structure, read, read_guide
from .guide import Sampled, has_normal_prior
from .normal_guides import antithetic

NOTHING = torch.zeros(1, dtype=torch.float64)  # of no latents, for one draw
DRAWS_OF_CENTER = 1_000  # of a factor without a mean in closed form


class Gathered(NamedTuple):
    """An argument whose cells are cells of one param."""

    param: str
    cells: Tensor | None  # their numbers; None where it is the whole param, reshaped
    shape: torch.Size
    rows_dim: int | None  # the dim (from the right) that runs over the rows

    def of(self, values: Parts, rows: Tensor | None) -> Tensor:
        """The argument under some values of the params, for the rows of a batch."""
        value = values[self.param]
        value = value.reshape(self.shape) if self.cells is None else value.flatten()[self.cells]
        return value if rows is None or self.rows_dim is None else value.index_select(self.rows_dim, rows)


class NormalSite(NamedTuple):
    """A site of a guide that is normal with gathered arguments: the guide need not be run to draw it."""

    loc: Gathered
    scale: Gathered
    shape: torch.Size  # of a draw, on all rows
    rows_dim: int | None

    def on(self, rows: Tensor | None) -> torch.Size:
        """The shape of a draw, for the rows of a batch."""
        if rows is None or self.rows_dim is None:
            return self.shape
        shape = list(self.shape)
        shape[self.rows_dim] = len(rows)
        return torch.Size(shape)


@dataclass(frozen=True)
class OwnGuide:
    """A guide that the user wrote.

    It is run once for every draw, unless each of its sites is normal with arguments gathered from params.

    Attributes
    ----------
    params : dict
        Its own params, parts "guide/NAME"; a name that the model declares too is the model's.
    exact : tuple of str
        Latents whose expected log prior and entropy are exact.
    normals : dict
        Name -> its place in the params, where that is true of every site; otherwise empty.
    of_rows : frozenset of str
        Sites in the data plate.
    """

    guide: Callable[[Any], Any]
    structure: Structure
    params: dict[str, Free]
    of_model: Callable[[Parts], Parts]
    exact: tuple[str, ...]
    normals: dict[str, NormalSite]
    of_rows: frozenset[str] = frozenset()
    noisy: bool = field(default=True, init=False)

    @property
    def shared(self) -> bool:
        return any(param.prior is not None for param in self.structure.params.values())

    def values(self, free: Parts) -> Parts:
        """The guide's params from their free numbers, and the model's beside them where the guide may read them."""
        own = values_of(self.params, free, "guide/")
        alone = self.normals and all({site.loc.param, site.scale.param} <= set(own) for site in self.normals.values())
        return own if alone else {**self.of_model(free), **own}

    def sites(self, free: Parts, data: Any) -> dict[str, Any]:
        """The sites of one run of the guide under these free numbers."""
        return sample_sites(run(self.guide, data, Bind(self.values(free), centred=False), 0, enumerated=False))

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int, density: bool = True) -> Sampled:
        if self.normals:
            return self._draw_normals(free, rows, num, density)
        each = [self.sites(free, program.data) for _ in range(num)]
        values = {n: torch.stack([s[n]["value"] for s in each]) for n, s in each[0].items() if not is_auxiliary(s)}
        log_qs = {name: torch.stack([s[name]["fn"].log_prob(s[name]["value"]) for s in each]) for name in each[0]}
        log_q, log_q_rows = self._summed(log_qs)
        entropy, entropy_rows = -log_q, -log_q_rows
        exact: dict[str, tuple[Tensor, Tensor]] = {}
        if self.exact:
            sure = {name: torch.stack([-sites[name]["fn"].entropy() for sites in each]) for name in self.exact}
            entropy, entropy_rows = (-total for total in self._summed({**log_qs, **sure}))
            for name in self.exact:  # the same in all draws
                base, shape = base_of(each[0][name]["fn"]), values[name].shape[1:]
                exact[name] = base.loc.expand(shape), base.scale.expand(shape)
        return Sampled(values, log_q, log_q_rows, entropy, entropy_rows, exact)

    def _draw_normals(self, free: Parts, rows: Tensor | None, num: int, density: bool) -> Sampled:
        """All draws at once, in antithetic pairs."""
        params = self.values(free)
        values: Parts = {}
        excess: Parts = {}  # of the log density over its mean
        entropies: Parts = {}
        exact: dict[str, tuple[Tensor, Tensor]] = {}
        for name, site in self.normals.items():
            loc, scale = site.loc.of(params, rows), site.scale.of(params, rows)
            shape = site.on(rows)
            if scale.shape != shape:
                scale = scale.expand(shape)
            noise = antithetic(num, loc, *shape)
            values[name] = torch.addcmul(loc, scale, noise)
            event = len(self.structure.trace.nodes[name]["fn"].event_shape)
            if density:
                excess[name] = _over_event(0.5 - 0.5 * noise**2, event)
            entropies[name] = _over_event(scale.log() + 0.5 * (1 + LOG_2PI), event).unsqueeze(0)
            if name in self.exact:
                exact[name] = loc, scale
        entropy, entropy_rows = self._summed(entropies)
        more, more_rows = self._summed(excess)
        return Sampled(values, more - entropy, more_rows - entropy_rows, entropy, entropy_rows, exact)

    def centers(self, free: Parts, program: Program) -> Parts:
        """Means of the factors where the distribution has one, otherwise of draws."""
        own = {name for name, param in self.structure.params.items() if param.prior is not None}
        sites = self.sites(free, program.data)
        if not any(isinstance(base_of(sites[name]["fn"]), dist.Delta) for name in own):
            return {name: _center(sites[name]["fn"]) for name in sites if name in own}
        each = [
            sites,
            *(self.sites(free, program.data) for _ in range(DRAWS_OF_CENTER - 1)),
        ]  # a value is what was drawn
        return {name: torch.stack([one[name]["value"] for one in each]).mean(0) for name in sites if name in own}

    def _summed(self, terms: Parts) -> tuple[Tensor, Tensor]:
        """Terms (m, *batch) of sites: those of shared latents added up, (m,), and those of each row, (m, B)."""
        shared, rows = [], []
        for name, term in terms.items():
            if name in self.of_rows:
                term = term.movedim(self.structure.data_dim, 1) if term.dim() > 2 else term
                rows.append(term.flatten(2).sum(2) if term.dim() > 2 else term)
            else:
                shared.append(term.flatten(1).sum(1) if term.dim() > 1 else term)
        return (total(shared) if shared else NOTHING), (total(rows) if rows else NOTHING.unsqueeze(-1))


def own_guide(
    guide: Callable[[Any], Any], data: Any, structure: Structure, of_model: Callable[[Parts], Parts], start: Parts
) -> tuple[OwnGuide, Parts]:
    """The user's guide read once and checked against the model; starting values of its own params.

    Raises
    ------
    ModelError
        It misses a latent of the model, adds one, samples one in another plate, or has one without reparameterized
        draws.
    """
    own = read_guide(guide, data, start)
    sites = sample_sites(own.trace)
    check_sites(sites, structure)
    free = {
        name: free_param(param.constraint, double(param.value))
        for name, param in own.params.items()
        if name not in structure.params
    }
    parts = {f"guide/{name}": torch.zeros(one.shape, dtype=torch.float64) for name, one in free.items()}
    normals = _normals(sites, structure, {name: param.value.numel() for name, param in own.params.items()})
    rows = frozenset(name for name, site in sites.items() if in_data_plate(site))
    return OwnGuide(guide, structure, free, of_model, _exact(sites, structure), normals, rows), parts


FAMILIES: dict[type[AutoGuide], str] = {
    AutoDiagonalNormal: "mean_field",
    AutoMultivariateNormal: "full_rank",
    AutoLowRankMultivariateNormal: "low_rank",
}
RUN: tuple[type[AutoGuide], ...] = (AutoNormal, AutoDelta)  # of Pyro's autoguides those that are run as they are


def family_of(guide: Any, pair: Pair, data: Any) -> str | None:
    """The derived family that an autoguide of Pyro's, the guide of `pair` in the form of its own, stands for; None of a
    guide that is run as it is.

    Those with one vector of numbers keep them as bare parameters of a module, which no handler reaches: the engine's
    own normal guides are the same families.

    Raises
    ------
    ModelError
        An autoguide of another family, or of some latents alone.
    """
    if not isinstance(guide, AutoGuide) or type(guide) in RUN:
        return None
    name = type(guide).__name__
    if isinstance(guide, AutoGuideList):
        other = [type(part).__name__ for part in guide if isinstance(part, AutoGuide) and type(part) not in RUN]
        if not other:
            return None
        name = f"{name} with {other[0]}"
    if type(guide) not in FAMILIES:
        known = ", ".join(sorted(one.__name__ for one in (*FAMILIES, *RUN)))
        raise ModelError(
            f'guide: {name} is not fitted here: use one of {known}, guide="full_rank", or a guide function of your own'
        )
    with engine_state(0, device_of(data)), poutine.block():
        structure = read(pair.model, data)
        assert pair.guide is not None
        check_sites(sample_sites(poutine.trace(pair.guide).get_trace(data)), structure)
    return FAMILIES[type(guide)]


def is_auxiliary(site: Any) -> bool:
    """Whether a site of a guide is no latent of the model, but what such latents are computed from (Pyro's autoguides
    draw unconstrained numbers, and put each latent where they fall).
    """
    return bool(site["infer"].get("is_auxiliary"))


def check_sites(sites: dict[str, Any], structure: Structure) -> None:
    """A guide samples the model's continuous latents, all of them and nothing else but what it marks as auxiliary, in
    the model's plates.
    """
    sites = {name: site for name, site in sites.items() if not is_auxiliary(site)}
    wanted = {name for name, param in structure.params.items() if param.prior is not None} | set(structure.continuous)
    for name in sorted(wanted - set(sites)):
        raise ModelError(f"guide: it does not sample '{name}', a latent of the model: add the site, or use guide=None")
    for name in sorted(set(sites) - wanted):
        why = "the engine sums it out exactly" if name in structure.latents else "the model has no such latent"
        raise ModelError(f"guide: it samples '{name}', but {why}: leave the site out")
    for name, site in sites.items():
        if not is_one(site["scale"]) or not is_all(site["mask"]):
            raise ModelError(
                f"guide: site '{name}' is scaled or masked, and a factor counts whole: leave poutine.scale and "
                f"poutine.mask out of the guide (a latent that is masked in the model adds nothing by itself)"
            )
        if in_data_plate(site) != (name in structure.continuous):
            where = "inside" if name in structure.continuous else "outside"
            raise ModelError(f"guide: site '{name}' must be {where} the plate \"{DATA_PLATE}\", as in the model")
        if not site["fn"].has_rsample:
            raise ModelError(
                f"guide: site '{name}' is a {type(base_of(site['fn'])).__name__}, whose draws carry no gradient: "
                f"use a distribution with reparameterized draws, such as Normal, LogNormal, Gamma or Beta"
            )


def check_batches(own: OwnGuide, free: Parts, data: Any, size: int) -> None:
    """A guide that must be run, and has params of every row, cannot tell which rows a batch holds."""
    if own.normals:
        return
    try:
        own.sites(free, slice_rows(data, slice(size)))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ModelError(
            f"guide: it fails on a batch of {size} rows ({str(error).splitlines()[0]}): compute what differs from row "
            f"to row from the data, or leave the guide out, or give batch_size={own.structure.num_rows}"
        ) from error


def _exact(sites: dict[str, Any], structure: Structure) -> tuple[str, ...]:
    """Latents whose expected log prior and entropy are exact: both normal, in a guide whose draws stand alone."""
    if any(symbols_of(site["fn"]) & set(sites) for site in sites.values()):
        return ()
    return tuple(
        name
        for name, site in sites.items()
        if type(base_of(site["fn"])) is dist.Normal and has_normal_prior(structure.trace.nodes[name]["fn"], structure)
    )


def _normals(sites: dict[str, Any], structure: Structure, sizes: dict[str, int]) -> dict[str, NormalSite]:
    """Where every site is normal, and its arguments are cells of params: where they come from."""
    found = {}
    for name, site in sites.items():
        base, fn = base_of(site["fn"]), site["fn"]
        shape = fn.batch_shape + fn.event_shape
        if type(base) is not dist.Normal or site["scale"] != 1.0 or site["mask"] is not None:
            return {}
        rows_dim = structure.data_dim - len(fn.event_shape) if name in structure.continuous else None
        loc, scale = (_gathered(argument, sizes, rows_dim) for argument in (base.loc, base.scale))
        if loc is None or scale is None:
            return {}
        found[name] = NormalSite(loc, scale, shape, rows_dim)
    return found


def _gathered(argument: Tensor, sizes: dict[str, int], rows_dim: int | None) -> Gathered | None:
    known: Provenance | None = provenance(argument)
    if known is None or known.cells is None or known.normalized or not known.names <= set(sizes):
        return None
    (param,) = known.names
    index = unbroadcast(known.cells)
    over_rows = rows_dim is not None and index.dim() >= -rows_dim and index.shape[rows_dim] > 1
    whole = torch.equal(index.flatten(), torch.arange(sizes[param], device=index.device))
    return Gathered(param, None if whole else index, index.shape, rows_dim if over_rows else None)


def _over_event(value: Tensor, event: int) -> Tensor:
    return value.flatten(-event).sum(-1) if event else value


def _center(fn: Any) -> Tensor:
    try:
        mean = fn.mean
        if torch.isfinite(mean).all():
            return mean.detach().clone()
    except (NotImplementedError, AttributeError):
        pass
    return fn.sample((DRAWS_OF_CENTER,)).mean(0)
