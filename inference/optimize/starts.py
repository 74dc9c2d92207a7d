"""Where a fit starts: seeds for centres, and starting values of params for each restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..base.errors import DataError, ModelError
from ..data.seeding import TooFewRows
from ..pair import Initialize, Pair, Start
from ..program.posteriors import expected_counts
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import double
from ..trace.structure import Structure

FAR = 30.0  # a boundary, such as a probability of 0, in unconstrained space


def starting_values(
    pair: Pair,
    data: Any,
    structure: Structure,
    restarts: int,
    generator: torch.Generator,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Starting values of every param, (R, *shape) each.

    With ``pair.initialize`` each restart draws its own, or takes the next that it yields; otherwise the first start is
    what the model declares, and the others are jittered around it. `start` overrules the first.
    """
    declared = {name: double(param.value) for name, param in structure.params.items()}
    told = start is not None and restarts == 1 and start.keys() >= declared.keys()
    sizes = {name: latent.cardinality for name, latent in structure.latents.items()}
    drawn = each_start(None if told else pair.initialize, data, generator, sizes)
    starts: list[dict[str, Tensor]] = []
    last = declared  # that was not jittered
    for number in range(restarts):
        found = next(drawn, None)
        if found is not None:
            last = {**declared, **_checked(found, declared)}
        starts.append(jitter(last, structure, generator) if found is None and number else last)
    starts[0] = {**starts[0], **_checked(start or {}, declared, "start")}
    return {name: torch.stack([one[name] for one in starts]) for name in declared}


def jitter(values: Mapping[str, Tensor], structure: Structure, generator: torch.Generator) -> dict[str, Tensor]:
    """Values moved by a standard normal draw in unconstrained space (in units of the param's own spread, where it is
    free).
    """
    out = {}
    for name, value in values.items():
        transform = transform_to(structure.params[name].constraint)
        free = transform.inv(value).nan_to_num(posinf=FAR, neginf=-FAR)
        unit = free.std().item() if free.numel() > 1 else 1.0
        noise = torch.randn(free.shape, generator=generator, dtype=free.dtype).to(free.device)
        out[name] = transform(free + noise * (unit if unit > 1 else 1.0))
    return out


def each_start(
    initialize: Initialize | None, data: Any, generator: torch.Generator, sizes: Mapping[str, int] | None = None
) -> Iterator[Start]:
    """What `initialize` gives for each restart in turn; nothing where there is none. `sizes` of the latents are for
    messages.
    """
    while initialize is not None:
        found = _drawn(initialize, data, generator, sizes or {})
        if isinstance(found, Iterator):
            yield from found
            return
        yield found


def _drawn(
    initialize: Initialize, data: Any, generator: torch.Generator, sizes: Mapping[str, int]
) -> Start | Iterator[Start]:
    """Starting values drawn by the model's own `initialize`, which knows no names of latents."""
    try:
        return initialize(data, generator)
    except TooFewRows as error:
        owner = next((name for name, size in sizes.items() if size == error.num_centers), None)
        if owner is None:
            raise
        raise DataError(
            f"latent '{owner}' has {error.num_centers} values, the data only {error.num_rows} distinct rows: "
            f"ask for fewer values"
        ) from None


def _checked(given: Mapping[str, Any], declared: dict[str, Tensor], source: str = "initialize") -> dict[str, Tensor]:
    out = {}
    for name, value in given.items():
        if name not in declared:
            raise ModelError(
                f"{source}: a value for '{name}', which the model does not declare: it has {sorted(declared)}"
            )
        value = torch.as_tensor(value).to(declared[name])
        if value.shape != declared[name].shape:
            raise ModelError(
                f"{source}: '{name}' has shape {tuple(value.shape)}; the model declares {tuple(declared[name].shape)}"
            )
        out[name] = value
    return out


def first_starts(
    pair: Pair, data: Any, program: Program, restarts: int, generator: torch.Generator, start: Params | None
) -> Params:
    """Starting values (R, *shape); a start at which no latent's values could ever be told apart is jittered."""
    structure = program.structure
    starts = starting_values(pair, data, structure, restarts, generator, start)
    if pair.initialize is None and start is None and _is_symmetric(program, starts):
        first = {name: value[0] for name, value in starts.items()}
        moved = jitter(first, structure, generator)
        starts = {name: torch.cat([moved[name].unsqueeze(0), value[1:]]) for name, value in starts.items()}
    return starts


def _is_symmetric(program: Program, starts: Params) -> bool:
    """Whether the first start gives every row the same posterior: EM could never tell its labels apart."""
    if not program.structure.latents or program.num_rows < 2:
        return False
    first = {name: value[:1] for name, value in starts.items()}
    for _, posteriors in expected_counts(program, first):
        for table in posteriors.values():
            if len(table) > 1 and bool(((table - table[:1]).abs() > 1e-9).any()):
                return False
    return True
