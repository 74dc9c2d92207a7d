"""New graphs from a fitted model, and what it expects between the blocks: all by runs of the model on new nodes."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch
from scipy.sparse import coo_array
from torch import Tensor

from ..base.errors import DataError, OptionError
from ..base.options import check_seed
from ..cavi.graphs.model import HERE, INTO, OUT, Probe, probe_of
from ..data.graph import every_pair
from ..data.sparse import DENSE_BYTES, bags_of_sparse
from ..families.factors import factor_family
from ..program.sites import Params
from ..trace.handlers import base_of, engine_state

CHUNK = 1 << 22  # pairs simulated together


def generate(fit: Any, num: Any, given: dict[str, Any], seed: int) -> Any:
    """A new graph of `num` nodes under one draw of what nodes share. Degrees that a model takes as given are those of
    the nodes of training, in their order and begun again from the first.
    """
    if isinstance(num, bool) or not isinstance(num, Integral) or num < 2:
        raise OptionError(f"num: met {num!r}, expected how many nodes the new graph has, at least 2")
    with engine_state(check_seed(seed)), torch.no_grad():
        latent = next(n for n in fit.guide_parts if n not in (OUT, INTO, *fit.params))
        fixed = {name: torch.as_tensor(value) for name, value in given.items()}
        unknown = sorted(set(fixed) - {latent, *fit.params})
        if unknown:
            has = sorted((latent, *fit.params))
            raise DataError(f"generate: given names {unknown}, which are no latents of the model: it has {has}")
        values = {name: _one_draw(fit, name) for name in fit.params}
        values.update({name: value for name, value in fixed.items() if name != latent})
        return fit.schema.decode(simulate(fit, values, int(num), fixed.get(latent)))


def _one_draw(fit: Any, name: str) -> Tensor:
    if name not in fit.guide_parts:
        value: Tensor = fit.params[name]
        return value
    site = _site(fit, name)
    family = factor_family(base_of(site["fn"]))
    assert family is not None
    drawn = family.distribution(fit.guide_parts[name].unsqueeze(0)).sample()
    return family.placed(drawn)[0].reshape(fit.params[name].shape)


def _site(fit: Any, name: str) -> Any:
    trace, _ = _probe(fit, len(fit.guide_parts[OUT])).run(*HERE, {})
    return trace.nodes[name]


def _probe(fit: Any, num: int) -> Probe:
    """A fit's model on `num` nodes."""
    place = torch.arange(num) % len(fit.guide_parts[OUT])
    degrees = fit.guide_parts[OUT][place], fit.guide_parts[INTO][place]
    return probe_of(fit.pair.model, fit.pair.graph == "directed", *degrees, fit.params)


def simulate(fit: Any, values: Params, num: int, labels: Tensor | None = None) -> Any:
    """An adjacency matrix of `num` nodes drawn under shared values: a table, or bags where it would be large."""
    probe = _probe(fit, num)
    if labels is None:
        trace, _ = probe.run(*HERE, values)
        labels = trace.nodes[probe.latent]["fn"].sample()
    if labels.shape != (num,):
        raise DataError(f"generate: '{probe.latent}' has shape {tuple(labels.shape)}, expected ({num},)")
    parts = []
    for first, second in _chunks(num, fit.pair.graph):
        drawn = probe.of_pairs(first, second, {**values, probe.latent: labels}).sample().expand(len(first))
        kept = drawn != 0
        parts.append((first[kept], second[kept], drawn[kept].double()))
    first, second, value = (torch.cat(one) for one in zip(*parts, strict=True))
    if not probe.directed:
        first, second, value = torch.cat([first, second]), torch.cat([second, first]), torch.cat([value, value])
    if num * num * 8 > DENSE_BYTES:
        return bags_of_sparse(coo_array((value.numpy(), (first.numpy(), second.numpy())), shape=(num, num)))
    out = torch.zeros(num, num, dtype=torch.float64)
    out[first, second] = value
    return out


def _chunks(num: int, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs, not too many at once."""
    if num * num <= CHUNK:
        yield every_pair(num, kind)
        return
    step = max(1, CHUNK // num)
    nodes = torch.arange(num)
    for begin in range(0, num, step):
        rows = nodes[begin : begin + step]
        first, second = rows.repeat_interleave(num), nodes.repeat(len(rows))
        keep = first < second if kind == "undirected" else first != second
        yield first[keep], second[keep]


def block_table(fit: Any) -> tuple[Tensor, str]:
    """What a pair is expected to have by the labels of its nodes, (K, K); and what that is, in words."""
    with engine_state(fit.seed), torch.no_grad():
        probe = _probe(fit, len(fit.guide_parts[OUT]))
        table, exposed = probe.expected(fit.params)
    return table, "edges over what is expected by chance" if exposed else "expected edges of a pair"
