"""Small convolutional networks for rows that are images: plain torch modules, to be given to a model by argument."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..base.errors import OptionError

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
