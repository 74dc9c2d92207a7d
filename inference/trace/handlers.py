"""Running a model once under Pyro: params and latents bound, discrete latents enumerated, the engine's own state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ..base.errors import DataError, HasNetworks, ModelError, OptionError
from ..base.rng import forked
from .provenance import drawn, plain, symbol

DATA_PLATE = "data"
ROOM_FOR_PLATES = 8  # dims kept free for plates while their number is not yet known


class Param(NamedTuple):
    """Something learned as a point: a `pyro.param`, or (MAP) a continuous latent that all rows share."""

    value: Tensor
    constraint: Any
    prior: Any  # the latent's site in the trace, None for a pyro.param


class Run(NamedTuple):
    """What one run of a model did at its statements; lighter than Pyro's own trace, which every SVI step would pay."""

    nodes: dict[str, Any]


class Bind(Messenger):
    """Give params and continuous latents the values of `values`; note what the model declares, and what it does.

    With ``symbols=True`` every bound value is a `Symbol`, so the arguments of each site tell where they come from.
    """

    def __init__(self, values: Mapping[str, Tensor], symbols: bool = False) -> None:
        super().__init__()
        self.values, self.symbols = values, symbols
        self.declared: dict[str, Param] = {}
        self.nodes: dict[str, Any] | None = None  # a dict while `run` asks for them

    def _pyro_param(self, msg: dict) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif DIVIDER in msg["name"]:
            raise HasNetworks(msg["name"].partition(DIVIDER)[0])

    def _pyro_post_param(self, msg: dict) -> None:
        if self.nodes is not None:
            self.nodes[msg["name"]] = msg.copy()
        self._declare(msg, constraint_of(msg), None)

    def _pyro_sample(self, msg: dict) -> None:
        value = self.values.get(msg["name"])
        if not is_shared_latent(msg):
            if value is not None and not msg["is_observed"]:  # a continuous latent of each row, held at a draw
                msg["value"], msg["is_observed"], msg["done"] = value, True, True
            return
        msg["value"] = prior_center(msg["fn"]) if value is None else value
        msg["done"] = True

    def _pyro_post_sample(self, msg: dict) -> None:
        if self.nodes is not None:
            if msg["name"] in self.nodes:
                raise ModelError(f"two statements of the model are named '{msg['name']}': give each a name of its own")
            self.nodes[msg["name"]] = msg.copy()
        if is_shared_latent(msg):
            self._declare(msg, msg["fn"].support, msg)
        elif self.symbols and not msg["is_observed"] and not is_bookkeeping(msg) and not msg["fn"].support.is_discrete:
            msg["value"] = drawn(msg["value"], msg["name"])

    def _declare(self, msg: dict, constraint: Any, prior: Any) -> None:
        value = msg["value"]
        self.declared[msg["name"]] = Param(plain(value), constraint, prior)
        if self.symbols:
            msg["value"] = symbol(value, msg["name"])


class Enumerate(EnumMessenger):
    """`poutine.enum`, which looks only at the latents of rows: it may then run under `torch.vmap`."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_shared_latent(msg):
            super()._pyro_post_sample(msg)


class OneRow(Messenger):
    """Give the data plate a single row: distributions are not expanded over the rows, so their gradients cost nothing
    by the row.
    """

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and poutine.util.site_is_subsample(msg):
            msg["value"], msg["done"] = torch.zeros(1, dtype=torch.long), True


def constraint_of(msg: dict) -> Any:
    """The constraint that a `pyro.param` statement declares.

    One that names no value refers to what was declared before, by the model or by a module of Pyro's (`PyroParam`).
    """
    if len(msg["args"]) < 2:
        # `get_state()` has them too, but it copies the store, and strips its tensors of `unconstrained`
        return pyro.get_param_store()._constraints.get(msg["name"], constraints.real)
    return msg["kwargs"].get("constraint", msg["args"][2] if len(msg["args"]) > 2 else constraints.real)


def base_of(fn: Any) -> Any:
    """A distribution without the dims that it was declared independent over."""
    while hasattr(fn, "reinterpreted_batch_ndims"):
        fn = fn.base_dist
    return fn


def is_shared_latent(msg: dict) -> bool:
    """A continuous latent outside the data plate: unknown once, not per row."""
    return (
        not msg["is_observed"]
        and isinstance(msg["fn"], TorchDistributionMixin)
        and not msg["fn"].support.is_discrete
        and not any(frame.name == DATA_PLATE for frame in msg["cond_indep_stack"])
        and not is_bookkeeping(msg)
    )


def is_bookkeeping(msg: Any) -> bool:
    """A sample site in name only: a plate's own, or what `pyro.deterministic` keeps."""
    return poutine.util.site_is_subsample(msg) or bool((msg["infer"] or {}).get("_deterministic"))


def prior_center(fn: Any) -> Tensor:
    """The prior's mean where it has one inside its support, otherwise a draw."""
    try:
        mean = fn.mean
        if torch.isfinite(mean).all() and fn.support.check(mean).all():
            return mean.clone()
    except (NotImplementedError, AttributeError):
        pass
    return fn.sample()


@contextmanager
def engine_state(seed: int | None = None, device: Any = "cpu", dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Run a model in `dtype` on `device`, its own param store and random state; the caller's are left untouched."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with (
            pyro.validation_enabled(False),
            forked(seed is not None),
            pyro.get_param_store().scope(),
            # on the CPU the default device is left alone: setting it slows every torch call
            nullcontext() if torch.device(device).type == "cpu" else torch.device(device),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


def run(model: Any, data: Any, bind: Bind, nesting: int, enumerated: bool = True) -> Run:
    """One run of the model with every discrete latent enumerated to the left of `nesting` plate dims."""
    nodes: dict[str, Any] = {}
    bind.nodes = nodes
    try:
        with bind, Enumerate(first_available_dim=-1 - nesting) if enumerated else nullcontext():
            model(data)
        return Run(nodes)
    except (DataError, ModelError, OptionError) as error:
        raise (error.__cause__ or error) from None  # in its own words, without the shapes that Pyro adds
    finally:
        bind.nodes = None


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace by name, bookkeeping left out."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_bookkeeping(site)}


def double(value: Tensor) -> Tensor:
    """Floating values as float64, others as they are."""
    value = plain(value.detach())
    return value.double() if value.is_floating_point() else value


DIVIDER = "$$$"  # `pyro.module` names the weights of a network "network$$$layer.weight"
