"""Networks as plain torch modules: what models with networks share."""

from __future__ import annotations

import copy
import itertools
import math
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


KERNEL, STRIDE, PADDING = 3, 2, 1  # each layer halves the sides of an image, rounded up


def conv_encoder(shape: Sequence[int], num_outputs: int, channels: Sequence[int] = (32, 64)) -> nn.Module:
    """A network from the cells of an image to `num_outputs` numbers.

    Parameters
    ----------
    shape : (height, width) or (colours, height, width)
        Of an image whose cells are the columns of the data, line after line, colour after colour.
    num_outputs : int
        2 K for a model with K latent numbers and a diagonal posterior.
    channels : sequence of int
        Of the layers, each of which halves the sides.

    Returns
    -------
    Module
        (B, colours * height * width) to (B, `num_outputs`), with weights drawn from torch's own random state.

    Raises
    ------
    OptionError
        A size that is no whole number of at least 1.

    Examples
    --------
    >>> encoder, decoder = conv_encoder((8, 8), 2 * 10), conv_decoder(10, (8, 8))
    >>> fit = zoo.fit("vae", "binary_digits", latent_dim=10, encoder=encoder, decoder=decoder)
    """
    image, sides = _sides(shape, channels)
    layers: list[nn.Module] = [nn.Unflatten(1, image)]
    for before, after in itertools.pairwise([image[0], *channels]):
        layers += [nn.Conv2d(before, after, KERNEL, STRIDE, PADDING, dtype=torch.float32), nn.ReLU()]
    last = channels[-1] * math.prod(sides[-1])
    layers += [nn.Flatten(), nn.Linear(last, _whole(num_outputs=num_outputs), dtype=torch.float32)]
    return _begun(nn.Sequential(*layers))


def conv_decoder(
    num_inputs: int, shape: Sequence[int], channels: Sequence[int] = (32, 64), per_cell: int = 1
) -> nn.Module:
    """A network from `num_inputs` numbers to the cells of an image: the layers of `conv_encoder`, backwards.

    Parameters
    ----------
    num_inputs : int
        Latent numbers of the model.
    shape, channels
        As of the encoder.
    per_cell : int
        Outputs for each cell, block after block: 2 for the means and then the variances of a gaussian likelihood with
        ``covariance="diagonal"``.

    Returns
    -------
    Module
        (B, `num_inputs`) to (B, `per_cell` * colours * height * width).

    Raises
    ------
    OptionError
        As for `conv_encoder`.
    """
    image, sides = _sides(shape, channels)
    first = (channels[-1], *sides[-1])
    layers: list[nn.Module] = [
        nn.Linear(_whole(num_inputs=num_inputs), math.prod(first), dtype=torch.float32),
        nn.ReLU(),
        nn.Unflatten(1, first),
    ]
    wide = [*channels[::-1], _whole(per_cell=per_cell) * image[0]]
    for (before, after), small, large in zip(itertools.pairwise(wide), sides[:0:-1], sides[-2::-1], strict=True):
        missing = (_lacking(small[0], large[0]), _lacking(small[1], large[1]))
        layers.append(
            nn.ConvTranspose2d(before, after, KERNEL, STRIDE, PADDING, output_padding=missing, dtype=torch.float32)
        )
        layers.append(nn.ReLU())
    layers[-1] = nn.Flatten()
    return _begun(nn.Sequential(*layers))


def _begun(network: nn.Sequential) -> nn.Sequential:
    """Weights that keep the variance of what passes a layer of ReLU (He et al. 2015); no biases to begin with."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        if layer is layers[-1]:
            nn.init.xavier_normal_(layer.weight)
        elif isinstance(layer, nn.ConvTranspose2d):  # a cell of its output meets a STRIDE**2-th of the kernel
            fan = layer.in_channels * KERNEL**2 / STRIDE**2
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan))
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network


def _lacking(side: int, wanted: int) -> int:
    """Cells that a layer backwards would make too few of a side: halves are rounded up."""
    return wanted - (STRIDE * (side - 1) + KERNEL - 2 * PADDING)


def _sides(shape: Sequence[int], channels: Sequence[int]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The image as (colours, height, width), and its sides after none, one, ... of the layers."""
    if len(shape) not in (2, 3):
        raise OptionError(f"shape: met {tuple(shape)}, expected (height, width) or (colours, height, width)")
    if not channels:
        raise OptionError("channels: met none, expected the channels of at least one layer")
    image = tuple(_whole(shape=size) for size in ((1, *shape) if len(shape) == 2 else shape))
    sides = [(image[1], image[2])]
    for count in channels:
        _whole(channels=count)
        sides.append((-(-sides[-1][0] // STRIDE), -(-sides[-1][1] // STRIDE)))
    return image, sides


def _whole(**sizes: Any) -> int:
    ((name, size),) = sizes.items()
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"{name}: met {size!r}, expected whole numbers of at least 1")
    return int(size)


__all__ = ["conv_decoder", "conv_encoder"]
