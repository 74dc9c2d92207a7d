"""Networks as plain torch modules: what models with networks share."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.utils import lazy_property
from torch.nn import functional

from ..base.errors import ModelError, OptionError
from ..base.rng import forked
from ..trace.handlers import DIVIDER

FLOOR = 1e-4  # of scales that a network computes


class WrongOutputs(ModelError):
    """A network has outputs of another number than what is made of them needs."""


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    activation: type[nn.Module] = nn.ReLU,
    dropout: float = 0.0,
) -> nn.Module:
    """Layers of `hidden` units between `num_inputs` and `num_outputs` numbers; linear where there are none.

    `dropout` is that of what the last layer takes.
    """
    sizes = [num_inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after, dtype=torch.float32), activation()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_outputs, dtype=torch.float32))


def fresh(
    networks: Mapping[str, nn.Module], generator: torch.Generator, outputs: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights drawn anew as torch's layers draw their own, by the names that `pyro.module` gives them; the last layers
    of some networks moved, so that `outputs` start at given numbers.
    """
    out: dict[str, Tensor] = {}
    with forked():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for name, network in networks.items():
            again = copy.deepcopy(network)
            for part in again.modules():
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
            out |= {f"{name}{DIVIDER}{key}": value.detach() for key, value in again.named_parameters()}
    for name, wanted in (outputs or {}).items():
        last = [key for key in out if key.startswith(f"{name}{DIVIDER}") and key.endswith("bias")][-1]
        wanted = wanted.to(out[last])
        out[last] = wanted if wanted.dim() else torch.full_like(out[last], float(wanted))
    return out


def is_watched(network: nn.Module) -> bool:
    """Whether a hook wants to see its calls."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for part in network.modules() for name in hooks)


def positive(raw: Tensor) -> Tensor:
    """Positive numbers of a network's outputs: softplus, above a floor."""
    return functional.softplus(raw) + FLOOR


def softplus_inverse(value: Tensor) -> Tensor:
    """Numbers whose softplus is `value`."""
    return value + torch.log(-torch.expm1(-value))


def num_stats(size: int, full: bool) -> int:
    """Outputs that a network needs for `normal_of`."""
    return size + (size * (size + 1) // 2 if full else size)


def normal_of(stats: Tensor, size: int, full: bool = False) -> dist.TorchDistribution:
    """A normal distribution of vectors, from the outputs (..., `num_stats`) of a network.

    The first `size` are the mean; the rest the standard deviations, or the Cholesky factor of the covariance.

    Raises
    ------
    WrongOutputs
        There are another number of them.
    """
    if stats.shape[-1] != num_stats(size, full):
        needed = num_stats(size, full)
        raise WrongOutputs(
            f"outputs of shape {tuple(stats.shape)} for a normal distribution of {size} numbers, expected {needed} a "
            f"row: {size} for its mean and {needed - size} for its spread"
        )
    loc, rest = stats[..., :size], stats[..., size:]
    if not full:
        return LateNormal(loc, rest).to_event(1)
    return dist.MultivariateNormal(loc, scale_tril=tril_of(rest, size))


class LateNormal(dist.Normal):
    """Normal distributions whose scales, `positive` of some numbers, are computed where somebody asks for them: an
    encoder's means alone are had without.
    """

    def __init__(self, loc: Tensor, raw: Tensor) -> None:
        self.loc, self.raw = loc, raw
        super(torch.distributions.Normal, self).__init__(loc.shape)

    @lazy_property
    def scale(self) -> Tensor:
        return positive(self.raw)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        if torch.Size(batch_shape) == self.batch_shape:  # as a plate asks each time
            return self
        return dist.Normal(self.loc, self.scale).expand(batch_shape, _instance)


def tril_of(raw: Tensor, size: int) -> Tensor:
    """Cholesky factors (..., size, size) from size (size + 1) / 2 free numbers, the diagonal first."""
    rows, cols = torch.tril_indices(size, size, -1, device=raw.device)
    out = torch.diag_embed(positive(raw[..., :size]))
    out[..., rows, cols] = raw[..., size:]
    return out


def filled(x: Tensor) -> Tensor:
    """Missing cells at 0: what a network takes."""
    return x.nan_to_num(nan=0.0) if x.is_floating_point() else x


def observed(x: Tensor) -> Tensor:
    """1 for each cell that was observed, 0 for the missing ones, (N, D)."""
    return (~x.isnan()).to(x.dtype)


class Networks:
    """The networks of a model by name: built when the number of columns is known, once for each such number.

    Parameters
    ----------
    **networks : callable or Module
        ``build(D)`` gives a network for D columns. A module stands as it is, and keeps the weights that it has.
    """

    def __init__(self, **networks: Callable[[int], nn.Module] | nn.Module) -> None:
        self._networks = networks
        self._built: dict[tuple[str, int], nn.Module] = {}

    def use(self, name: str, num_columns: int) -> Any:
        """The network, its weights declared to Pyro: a line of a model or a guide."""
        return pyro.module(name, self._of(name, num_columns))

    def start(self, num_columns: int, generator: torch.Generator, **outputs: Tensor) -> dict[str, Tensor]:
        """Weights drawn anew by names; the last layers of some networks moved, so that outputs start at given numbers.

        A module that was given is left out: it starts with its own weights.
        """
        drawn = [name for name, network in self._networks.items() if not isinstance(network, nn.Module)]
        suited = {name: outputs[name] for name in drawn if name in outputs}
        return fresh({name: self._of(name, num_columns) for name in drawn}, generator, suited)

    def initialize(
        self,
        rows: Callable[[Tensor], Tensor] = lambda table: table,
        params: Callable[[Tensor], Mapping[str, Tensor]] = lambda x: {},
        **outputs: Callable[[Tensor], Tensor],
    ) -> Callable[[Tensor, torch.Generator], Mapping[str, Tensor]]:
        """An `initialize` for `Pair`: weights as `start` draws them, with outputs that suit the data.

        `rows` picks of a table the columns that the networks are built for; `params` gives starting values of params
        that are no weights.
        """

        def initialize(table: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
            x = rows(table)
            weights = self.start(x.shape[1], generator, **{name: suit(x) for name, suit in outputs.items()})
            return {**weights, **params(x)}

        return initialize

    def _of(self, name: str, num_columns: int) -> nn.Module:
        network = self._networks[name]
        if isinstance(network, nn.Module):
            return network
        if (name, num_columns) not in self._built:
            self._built[name, num_columns] = network(num_columns).float()
        return self._built[name, num_columns]


def check_sizes(**sizes: Any) -> None:
    """Hyper-parameters that are numbers of units."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"{name}: met {size!r}, expected a whole number of at least 1")


def check_option(name: str, value: str, known: Sequence[str]) -> None:
    """A hyper-parameter that is one of some words."""
    if value not in known:
        raise OptionError(f"{name}: met {value!r}, expected one of {', '.join(known)}")


class Noise(nn.Module):
    """Normal noise on what passes, while a network is being trained."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x) if self.training else x
