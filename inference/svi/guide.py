"""Where the continuous latents of a model come from in SVI: a derived guide, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.unconstrained import Parts, bijection
from ..program.program import Program
from ..trace.handlers import base_of
from ..trace.structure import Structure
from .normal_guides import GuideShape

DRAWS_OF_CENTER = 1_000  # of a factor without a mean in closed form


class Sampled(NamedTuple):
    """Draws of the continuous latents, m at a time, and the guide's log density."""

    values: Parts  # name -> (m, *shape)
    log_q: Tensor  # (m,) of the latents that all rows share
    log_q_rows: Tensor  # (m, B) of those of each row
    entropy: Tensor  # (m,), mean -log_q, exact where it can be
    entropy_rows: Tensor  # (m, B)
    exact: dict[str, tuple[Tensor, Tensor]]  # latents with exact expected log priors: mean, sd (*shape)


class Sampler(Protocol):
    """What an objective asks of a guide."""

    @property
    def noisy(self) -> bool:
        """Whether two draws differ."""

    @property
    def shared(self) -> bool:
        """Whether any latent is shared by all rows."""

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int, density: bool = True) -> Sampled:
        """`num` draws, for the rows of a batch (of all, where `rows` is None); `log_q` may be left at 0 without
        `density`.
        """

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
    even : bool
        Whether draws are spread evenly.
    """

    shape: GuideShape
    blocks: tuple[Block, ...]
    row_blocks: tuple[Block, ...]
    row_dim: int
    even: bool = False

    @property
    def noisy(self) -> bool:
        return self.shape.noisy and bool(self.blocks or self.row_blocks)

    @property
    def shared(self) -> bool:
        return bool(self.blocks)

    def parts(self, free: Parts, prefix: str) -> Parts:
        """The parts of the shared guide, or of the rows' guides."""
        return {key.removeprefix(prefix): value for key, value in free.items() if key.startswith(prefix)}

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int, density: bool = True) -> Sampled:
        num = num if self.noisy else 1
        nothing = torch.zeros(1, dtype=torch.float64)
        values: Parts = {}
        exact: dict[str, tuple[Tensor, Tensor]] = {}
        log_q = entropy = nothing
        log_q_rows = entropy_rows = nothing.unsqueeze(-1)
        if self.blocks:
            parts = self.parts(free, "shared/")
            drawn = self.shape.draw(parts, num, self.even)
            log_q, entropy = drawn.log_q, drawn.entropy.expand(num)
            for block, raw, center, scale in self._split(self.blocks, drawn.value, parts):
                value = block.transform(raw)
                jacobian = block.transform.log_abs_det_jacobian(raw, value).reshape(num, -1).sum(1)
                values[block.name] = value
                if self.shape.noisy:  # the mode of a delta guide is that of the latents' own density
                    log_q, entropy = log_q - jacobian, entropy + jacobian
                if block.exact:
                    exact[block.name] = center, scale
        if self.row_blocks:
            parts = self.parts(free, "local/")
            parts = parts if rows is None else {key: value[rows] for key, value in parts.items()}
            drawn = self.shape.draw(parts, num, self.even)
            log_q_rows, entropy_rows = drawn.log_q, drawn.entropy.expand_as(drawn.log_q)
            for block, raw, center, scale in self._split(self.row_blocks, drawn.value, parts):
                value = block.transform(raw)
                jacobian = block.transform.log_abs_det_jacobian(raw, value).reshape(*raw.shape[:2], -1).sum(-1)
                values[block.name] = self._in_place(value, block, 1)
                if self.shape.noisy:
                    log_q_rows, entropy_rows = log_q_rows - jacobian, entropy_rows + jacobian
                if block.exact:
                    exact[block.name] = self._in_place(center, block, 0), self._in_place(scale, block, 0)
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

    def _in_place(self, value: Tensor, block: Block, rows: int) -> Tensor:
        """(m, B, *cells, *event), the rows at dim `rows`, with the rows where the plate wants them."""
        # a simplex has one number more, not one dim more; a Cholesky factor has one dim more
        event = value.dim() - rows - 1 - len(block.shape) + block.event_dim
        return value.movedim(rows, value.dim() - event + self.row_dim)


def derive(structure: Structure, shape: GuideShape, starts: Parts) -> tuple[NormalGuide, Parts, Parts]:
    """The guide that a model needs; the centre of its shared part (d,) and of each row's (N, d_row), unconstrained."""
    blocks, centers = [], []
    for name, param in structure.params.items():
        if param.prior is not None:
            transform = bijection(param.constraint)
            raw = transform.inv(starts[name])
            normal = shape.name == "mean_field" and has_normal_prior(param.prior["fn"], structure)
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


def _row_block(name: str, site: Any, structure: Structure, shape: GuideShape) -> Block:
    batch = [1] * structure.nesting
    for frame in site["cond_indep_stack"]:
        batch[frame.dim] = frame.size
    del batch[structure.nesting + structure.data_dim]
    fn = site["fn"]
    transform = bijection(fn.support)
    event = tuple(transform.inverse_shape(torch.Size(fn.event_shape)))
    normal = shape.name == "mean_field" and has_normal_prior(fn, structure)
    return Block(name, (*batch, *event), transform, len(event), normal)


def has_normal_prior(fn: Any, structure: Structure) -> bool:
    """Normal, and the same whatever the discrete latents: its expected log density has a closed form, given those
    latents that its own arguments hang on.
    """
    event, fn = len(fn.event_shape), base_of(fn)
    batch = fn.batch_shape[: max(0, len(fn.batch_shape) - structure.nesting - event)]
    return isinstance(fn, dist.Normal) and not isinstance(fn, dist.LogNormal) and all(size == 1 for size in batch)
