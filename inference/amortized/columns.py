"""Which columns of the table the observed sites of a pair with networks hold."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..data.streams import Rows
from ..data.structures import slice_rows
from ..trace.handlers import Bind, is_bookkeeping
from ..trace.provenance import known_cells, plain, symbol
from .bounds import draw
from .reader import SAMPLE, Story


def places(story: Story, values: dict[str, Tensor], data: Any) -> dict[str, Tensor] | None:
    """The columns of the table that each observed site holds, (cells,); None where one was computed."""
    if not isinstance(data, Tensor | Rows):
        return None
    few = slice_rows(data, slice(SAMPLE))
    latents = draw(story, values, few, 1, False).model
    held = {n: m["value"][: len(few)] for n, m in latents.items() if not m["is_observed"] and not is_bookkeeping(m)}
    play = Bind({**values, **(held if story.num_configurations == 1 else {})}, centred=False)
    with play:
        story.pair.model(symbol(few, "data"))
    width = few[0].numel()
    found = {}
    for name in story.observed:
        cells = known_cells(play.nodes[name]["value"])
        if cells is None:
            return None
        rows = len(few)
        found[name] = plain(cells).movedim(story.data_dim - play.nodes[name]["fn"].event_dim, 0).reshape(rows, -1)[0]
        found[name] = found[name] % width
    return found
