"""Where the continuous latents of a model come from in SVI: a derived guide, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from .data import slice_rows
from .errors import ModelError
from .free import Free, Parts, free_param, values_of
from .guides import GuideShape
from .program import Program
from .structure import DATA_PLATE, Structure, base_of, constraint_of, double, sample_sites
from .symbols import plain, symbol, symbols_of

DRAWS_OF_CENTER = 1_000  # of a factor without a mean in closed form


class Sampled(NamedTuple):
    """Draws of the continuous latents, m at a time, and the guide's log density."""

    values: Parts  # name -> (m, *shape)
    log_q: Tensor  # (m,) of the latents that all rows share
    log_q_rows: Tensor  # (m, B) of those of each row
    entropy: Tensor  # (m,), mean -log_q, exact where it can be
    entropy_rows: Tensor  # (m, B)
    exact: dict[str, tuple[Tensor, Tensor]]  # latents with exact expected log priors: mean, sd (m, *shape)


class Sampler(Protocol):
    """What an objective asks of a guide."""

    @property
    def noisy(self) -> bool:
        """Whether two draws differ."""

    @property
    def shared(self) -> bool:
        """Whether any latent is shared by all rows."""

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int) -> Sampled:
        """`num` draws, for the rows of a batch (of all, where `rows` is None)."""

    def centers(self, free: Parts, program: Program) -> Parts:
        """Each shared latent at the centre of its factor."""


class Block(NamedTuple):
    """One latent's place in the vector of unconstrained numbers (of a row, or of the model)."""

    name: str
    shape: tuple[int, ...]  # unconstrained; of a row: without the rows
    transform: Any
    event_dim: int  # of the unconstrained event
    exact: bool  # its prior is normal, so that its expectation needs no draws

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class NormalGuide:
    """A normal guide over all shared latents, and one for each row over the row's own.

    Attributes
    ----------
    shape : GuideShape
    blocks : tuple of Block
        The shared latents; parts "shared/...".
    row_blocks : tuple of Block
        Those of each row; parts "local/..." (N, ...).
    row_dim : int
        Negative batch dim of the rows.
    """

    shape: GuideShape
    blocks: tuple[Block, ...]
    row_blocks: tuple[Block, ...]
    row_dim: int

    @property
    def noisy(self) -> bool:
        return self.shape.noisy and bool(self.blocks or self.row_blocks)

    @property
    def shared(self) -> bool:
        return bool(self.blocks)

    def parts(self, free: Parts, prefix: str) -> Parts:
        """The parts of the shared guide, or of the rows' guides."""
        return {key.removeprefix(prefix): value for key, value in free.items() if key.startswith(prefix)}

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int) -> Sampled:
        num = num if self.noisy else 1
        nothing = torch.zeros(1, dtype=torch.float64)
        values: Parts = {}
        exact: dict[str, tuple[Tensor, Tensor]] = {}
        log_q = entropy = nothing
        log_q_rows = entropy_rows = nothing.unsqueeze(-1)
        if self.blocks:
            parts = self.parts(free, "shared/")
            drawn = self.shape.draw(parts, num)
            log_q, entropy = drawn.log_q, drawn.entropy.expand(num)
            for block, raw, center, scale in self._split(self.blocks, drawn.value, parts):
                value = block.transform(raw)
                jacobian = block.transform.log_abs_det_jacobian(raw, value).reshape(num, -1).sum(1)
                values[block.name] = value
                if self.shape.noisy:  # the mode of a delta guide is that of the latents' own density
                    log_q, entropy = log_q - jacobian, entropy + jacobian
                if block.exact:
                    exact[block.name] = center.unsqueeze(0), scale.unsqueeze(0)
        if self.row_blocks:
            parts = self.parts(free, "local/")
            parts = parts if rows is None else {key: value[rows] for key, value in parts.items()}
            drawn = self.shape.draw(parts, num)
            log_q_rows, entropy_rows = drawn.log_q, drawn.entropy.expand_as(drawn.log_q)
            for block, raw, center, scale in self._split(self.row_blocks, drawn.value, parts):
                value = block.transform(raw)
                jacobian = block.transform.log_abs_det_jacobian(raw, value).reshape(*raw.shape[:2], -1).sum(-1)
                values[block.name] = self._in_place(value, block)
                if self.shape.noisy:
                    log_q_rows, entropy_rows = log_q_rows - jacobian, entropy_rows + jacobian
                if block.exact:
                    exact[block.name] = (
                        self._in_place(center.unsqueeze(0), block),
                        self._in_place(scale.unsqueeze(0), block),
                    )
        return Sampled(values, log_q, log_q_rows, entropy, entropy_rows, exact)

    def centers(self, free: Parts, program: Program) -> Parts:
        parts = self.parts(free, "shared/")
        if not self.blocks:
            return {}
        return {block.name: block.transform(loc) for block, _, loc, _ in self._split(self.blocks, parts["loc"], parts)}

    def _split(self, blocks: tuple[Block, ...], value: Tensor, parts: Parts) -> Any:
        start = 0
        scale = parts["log_scale"].exp() if "log_scale" in parts else torch.zeros_like(parts["loc"])
        for block in blocks:
            place = slice(start, start + block.size)
            yield (
                block,
                *(t[..., place].reshape((*t.shape[:-1], *block.shape)) for t in (value, parts["loc"], scale)),
            )
            start += block.size

    def _in_place(self, value: Tensor, block: Block) -> Tensor:
        """(m, B, *cells, *event) with the rows where the plate wants them, (m, *batch, *event)."""
        event = value.dim() - 2 - len(block.shape) + block.event_dim  # a simplex has one number more, not one dim more
        return value.movedim(1, value.dim() - event + self.row_dim)


def derive(structure: Structure, shape: GuideShape, starts: Parts) -> tuple[NormalGuide, Parts, Parts]:
    """The guide that a model needs; the centre of its shared part (d,) and of each row's (N, d_row), unconstrained."""
    blocks, centers = [], []
    for name, param in structure.params.items():
        if param.prior is not None:
            transform = biject_to(param.constraint)
            raw = transform.inv(starts[name])
            normal = shape.name == "mean_field" and _has_normal_prior(param.prior["fn"], structure)
            event = len(param.prior["fn"].event_shape)
            blocks.append(Block(name, tuple(raw.shape), transform, event, normal))
            centers.append(raw.flatten())
    row_blocks, row_sizes = [], 0
    for name in structure.continuous:
        site = structure.trace.nodes[name]
        block = _row_block(name, site, structure, shape)
        row_blocks.append(block)
        row_sizes += block.size
    center = {"shared/": torch.cat(centers)} if centers else {}
    local = {"local/": torch.zeros(structure.num_rows, row_sizes, dtype=torch.float64)} if row_blocks else {}
    return NormalGuide(shape, tuple(blocks), tuple(row_blocks), structure.data_dim), center, local


def exact_of_rows(structure: Structure, shape: GuideShape | None, guide: Any, data: Any) -> set[str]:
    """Latents of a row whose expected log prior is exact under the guide: they need not be scored at draws."""
    if shape is None:
        learned = {n: double(param.value) for n, param in structure.params.items() if param.prior is None}
        own, _ = own_guide(guide, data, structure, lambda free: learned, learned)
        return set(own.exact) & set(structure.continuous)
    if shape.name != "mean_field":
        return set()
    return {n for n in structure.continuous if _has_normal_prior(structure.trace.nodes[n]["fn"], structure)}


def _row_block(name: str, site: Any, structure: Structure, shape: GuideShape) -> Block:
    batch = [1] * structure.nesting
    for frame in site["cond_indep_stack"]:
        batch[frame.dim] = frame.size
    del batch[structure.nesting + structure.data_dim]
    fn = site["fn"]
    transform = biject_to(fn.support)
    event = tuple(transform.inverse_shape(torch.Size(fn.event_shape)))
    normal = shape.name == "mean_field" and _has_normal_prior(fn, structure)
    return Block(name, (*batch, *event), transform, len(event), normal)


def _has_normal_prior(fn: Any, structure: Structure) -> bool:
    """Normal, and the same whatever the discrete latents: its expected log density has a closed form."""
    event, fn = len(fn.event_shape), base_of(fn)
    batch = fn.batch_shape[: max(0, len(fn.batch_shape) - structure.nesting - event)]
    return isinstance(fn, dist.Normal) and not isinstance(fn, dist.LogNormal) and all(size == 1 for size in batch)


# --- the user's own guide ---------------------------------------------------------------------------------------------


class BindParams(Messenger):
    """Give a guide's params values, and note what it declares."""

    def __init__(self, values: Parts) -> None:
        super().__init__()
        self.values = values
        self.declared: dict[str, tuple[Tensor, Any]] = {}

    def _pyro_param(self, msg: dict) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_param(self, msg: dict) -> None:
        self.declared[msg["name"]] = plain(msg["value"].detach()), constraint_of(msg)


@dataclass(frozen=True)
class OwnGuide:
    """A guide that the user wrote: run once for every draw.

    Attributes
    ----------
    params : dict
        Its own params, parts "guide/NAME"; a name that the model declares too is the model's.
    """

    guide: Callable[[Any], Any]
    structure: Structure
    params: dict[str, Free]
    of_model: Callable[[Parts], Parts]
    exact: tuple[str, ...]
    noisy: bool = field(default=True, init=False)

    @property
    def shared(self) -> bool:
        return any(param.prior is not None for param in self.structure.params.values())

    def values(self, free: Parts) -> Parts:
        """The guide's params from their free numbers, and the model's beside them."""
        return {**self.of_model(free), **values_of(self.params, free, "guide/")}

    def bound(self, free: Parts) -> BindParams:
        """A handler under which the guide has the params of these free numbers."""
        return BindParams(self.values(free))

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int) -> Sampled:
        bound = self.bound(free)
        each = []
        for _ in range(num):
            with bound:
                each.append(sample_sites(poutine.trace(self.guide).get_trace(program.data)))
        names = each[0]
        values = {name: torch.stack([sites[name]["value"] for sites in each]) for name in names}
        log_qs = [{name: site["fn"].log_prob(site["value"]) for name, site in sites.items()} for sites in each]
        log_q, log_q_rows = self._summed(log_qs, program.num_rows)
        entropy, entropy_rows = -log_q, -log_q_rows
        exact: dict[str, tuple[Tensor, Tensor]] = {}
        if self.exact:
            sure = [{name: -sites[name]["fn"].entropy() for name in self.exact} for sites in each]
            known = [{**drawn, **own} for drawn, own in zip(log_qs, sure, strict=True)]
            entropy, entropy_rows = (-total for total in self._summed(known, program.num_rows))
            for name in self.exact:
                bases = [base_of(sites[name]["fn"]) for sites in each]
                shape = values[name].shape[1:]
                exact[name] = (
                    torch.stack([base.loc.expand(shape) for base in bases]),
                    torch.stack([base.scale.expand(shape) for base in bases]),
                )
        return Sampled(values, log_q, log_q_rows, entropy, entropy_rows, exact)

    def centers(self, free: Parts, program: Program) -> Parts:
        """Means of the factors where the distribution has one, otherwise of draws."""
        with BindParams(self.values(free)):
            sites = sample_sites(poutine.trace(self.guide).get_trace(program.data))
        shared = {name: site for name, site in sites.items() if name not in self.structure.continuous}
        return {name: _center(site["fn"]) for name, site in shared.items()}

    def _summed(self, terms: list[Parts], num_rows: int) -> tuple[Tensor, Tensor]:
        """Terms of sites, draw by draw: those of shared latents added up, (m,), and those of each row, (m, B)."""
        shared = [torch.zeros((), dtype=torch.float64) for _ in terms]
        rows = [torch.zeros(num_rows, dtype=torch.float64) for _ in terms]
        for number, one in enumerate(terms):
            for name, term in one.items():
                if name in self.structure.continuous:
                    term = term.movedim(self.structure.data_dim, 0)
                    rows[number] = rows[number] + term.reshape(len(term), -1).sum(1)
                else:
                    shared[number] = shared[number] + term.sum()
        return torch.stack(shared), torch.stack(rows)


def _center(fn: Any) -> Tensor:
    try:
        mean = fn.mean
        if torch.isfinite(mean).all():
            return mean.detach().clone()
    except (NotImplementedError, AttributeError):
        pass
    return fn.sample((DRAWS_OF_CENTER,)).mean(0)


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
    bind = BindParams(start)
    with bind:
        sites = sample_sites(poutine.trace(guide).get_trace(data))
    wanted = {name for name, param in structure.params.items() if param.prior is not None} | set(structure.continuous)
    for name in sorted(wanted - set(sites)):
        raise ModelError(f"guide: it does not sample '{name}', a latent of the model: add the site, or use guide=None")
    for name in sorted(set(sites) - wanted):
        why = "the engine sums it out exactly" if name in structure.latents else "the model has no such latent"
        raise ModelError(f"guide: it samples '{name}', but {why}: leave the site out")
    for name, site in sites.items():
        in_rows = any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])
        if in_rows != (name in structure.continuous):
            where = "inside" if name in structure.continuous else "outside"
            raise ModelError(f"guide: site '{name}' must be {where} the plate \"{DATA_PLATE}\", as in the model")
        if not site["fn"].has_rsample:
            raise ModelError(
                f"guide: site '{name}' is a {type(base_of(site['fn'])).__name__}, whose draws carry no gradient: "
                f"use a distribution with reparameterized draws, such as Normal, LogNormal, Gamma or Beta"
            )
    known = set(structure.params)
    free = {
        name: free_param(constraint, double(value))
        for name, (value, constraint) in bind.declared.items()
        if name not in known
    }
    exact = _exact_sites(guide, data, sites, structure, start)
    parts = {f"guide/{name}": torch.zeros(one.shape, dtype=torch.float64) for name, one in free.items()}
    return OwnGuide(guide, structure, free, of_model, exact), parts


def check_batches(own: OwnGuide, free: Parts, data: Any, size: int) -> None:
    """A guide with params of every row cannot tell which rows a batch holds."""
    try:
        with own.bound(free):
            poutine.trace(own.guide).get_trace(slice_rows(data, slice(size)))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ModelError(
            f"guide: it fails on a batch of {size} rows ({str(error).splitlines()[0]}): compute what differs from row "
            f"to row from the data, or leave the guide out, or give batch_size={own.structure.num_rows}"
        ) from error


def _exact_sites(guide: Any, data: Any, sites: Any, structure: Structure, start: Parts) -> tuple[str, ...]:
    """Latents whose expected log prior and entropy are exact: both normal, in a guide whose draws stand alone."""

    class Watch(Messenger):
        def _pyro_post_sample(self, msg: dict) -> None:
            if msg["name"] in sites:
                msg["value"] = symbol(msg["value"], msg["name"])

    with BindParams(start), Watch():
        watched = sample_sites(poutine.trace(guide).get_trace(data))
    if any(symbols_of(site["fn"]) & set(sites) for site in watched.values()):
        return ()
    found = []
    for name, site in sites.items():
        prior = structure.trace.nodes[name]["fn"]
        if type(base_of(site["fn"])) is dist.Normal and _has_normal_prior(prior, structure):
            found.append(name)
    return tuple(found)
