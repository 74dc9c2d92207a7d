"""Shapes that do not fit, in a pair with networks: which layer or site, what it met, what it expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..base.errors import DataError, ModelError, OptionError
from ..nn.networks import WrongOutputs
from ..trace.handlers import Bind, is_bookkeeping


@contextmanager
def deep_errors(bind: Bind, where: str) -> Iterator[None]:
    """Turn what torch says of shapes into plain words; look at the shapes of observed sites when all has run."""
    called: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any) -> None:
        if not list(module.children()) and args and isinstance(args[0], Tensor):
            called[:] = [(module, args[0])]

    hook = register_module_forward_pre_hook(note)
    try:
        yield
    except WrongOutputs as error:
        raise _plain(error, called, bind, where) from None
    except (DataError, ModelError, OptionError) as error:
        raise (error.__cause__ or error) from None
    except RuntimeError as error:
        raise _plain(error, called, bind, where) from error
    finally:
        hook.remove()
    for name, msg in bind.nodes.items():
        if msg["is_observed"] and not is_bookkeeping(msg):
            _check_site(name, msg, called, bind)


def _plain(error: Exception, called: list[tuple[nn.Module, Tensor]], bind: Bind, where: str) -> Exception:
    first = str(error).splitlines()[0]
    if not called:
        return ModelError(f"svi: the {where} failed: {first}")
    module, met = called[0]
    layer = name_of(module, bind)
    if isinstance(error, WrongOutputs):
        return ModelError(f"svi: {layer}, the last that ran, gives {first}")
    wanted = _wanted(module, met)
    if wanted is None:
        return ModelError(
            f"svi: the {where} failed in {layer}, which met an input of shape {tuple(met.shape)}: {first}"
        )
    return ModelError(
        f"svi: {layer} met an input of shape {tuple(met.shape)}, expected {wanted}: give a network whose layers fit "
        f"the data and the latents"
    )


def _wanted(module: nn.Module, met: Tensor) -> str | None:
    """What a layer takes, where that is not what it met."""
    if isinstance(module, nn.Linear):
        return None if met.shape[-1] == module.in_features else f"{module.in_features} numbers a row"
    if isinstance(module, nn.Unflatten):
        size = math.prod(module.unflattened_size)
        return None if met.shape[-1] == size else f"{size} numbers a row"
    channels = getattr(module, "in_channels", None) or getattr(module, "num_features", None)
    if channels is None:
        return None
    sides: list[str] = ["height", "width"] if "2d" in type(module).__name__ else ["length"]
    if "BatchNorm1d" in type(module).__name__:  # also of rows of single numbers
        sides = []
    if met.dim() == 2 + len(sides) and met.shape[1] == channels:
        return None
    return f"({', '.join(['rows', str(channels), *sides])})"


def name_of(module: nn.Module, bind: Bind) -> str:
    """A layer by its network and place."""
    for network, found in (bind.networks or {}).items():
        for place, layer in found.named_modules():
            if layer is module:
                return f"layer '{place}' of network '{network}' ({module})"
    return f"layer {module}"


def _check_site(name: str, msg: Any, called: list[tuple[nn.Module, Tensor]], bind: Bind) -> None:
    fn, value = msg["fn"], msg["value"]
    event = tuple(fn.event_shape)
    met = tuple(value.shape[value.dim() - len(event) :])
    if event != met:
        last = f" (the last layer run was {name_of(called[0][0], bind)})" if called else ""
        raise ModelError(
            f"svi: site '{name}' has events of shape {event}, the data's are {met}: the network that computes it has "
            f"outputs of another number than the data have columns{last}"
        )
