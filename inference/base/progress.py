"""A bar of progress, shown where a person looks on."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A tqdm bar with the bound, shown where a person looks on: on a terminal, or when asked for."""

    def __init__(self, total: int, label: str, show: bool | None) -> None:
        self.bar: Any = None
        if show or (show is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, leave=False)

    def update(self, bound: float, steps: int = 1, **shown: float) -> None:
        """Some iterations done; tqdm shows their rate."""
        if self.bar is not None:
            self.bar.update(steps)
            self.bar.set_postfix(bound=f"{bound:.6g}", **{k: f"{v:.2g}" for k, v in shown.items()}, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
