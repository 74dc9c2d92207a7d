"""The one interface of what is known of latents, whatever found it, and what it asks of the fit it is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ..base.options import check_seed
from ..data.schema import Dataset, Schema
from ..optimize.modes import Cells as LabelCells
from ..optimize.modes import ModeMap
from ..pair import Pair
from ..program.deterministic import Moments
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import engine_state

Latents = dict[str, Tensor | Moments]  # probabilities (N, K) or (N, plates, K); moments of what is continuous


class Draws(NamedTuple):
    """Joint draws from a posterior."""

    shared: Params  # (num, *shape): what all rows share, learned params as they are
    rows: Params  # (num, N, ...): latents of each row, and what is computed of them
    log_prob: Tensor | None  # (num, N) log p(x_n | shared), latents of the row summed out, where asked for


class Replicates(NamedTuple):
    """Observed values and new ones by name: of the table, "x", or of each site where these are computed of the data."""

    observed: dict[str, Tensor]  # (N, ...)
    predicted: dict[str, Tensor]  # (num, N, ...)


class Cells(NamedTuple):
    """What is expected of some cells of a table."""

    place: Tensor  # (n,) in the flattened table
    mean: Tensor  # (n,)
    sd: Tensor | None = None  # (n,)


class Posterior(ABC):
    """What a fit says of latents. One is made of a fit (`kinds.posterior_of`), and put to work on data by ``on``.

    Attributes
    ----------
    fit : Fitted
    dataset : Dataset or None
        The data it is at work on.
    """

    guided: ClassVar[bool] = True  # whether latents have a guide; otherwise theirs is exact, under params as points
    networks: ClassVar[bool] = False  # whether an encoder computes it
    sparse: ClassVar[bool] = False  # whether it takes sparse data as they are; others look at every cell
    noun: ClassVar[str] = "rows"

    fit: Fitted
    dataset: Dataset | None

    @contextmanager
    def on(self, dataset: Dataset, seed: int | None = None) -> Iterator[Self]:
        """At work on data, its random draws by `seed` (otherwise that of the fit)."""
        with engine_state(self.fit.seed if seed is None else check_seed(seed)), torch.no_grad():
            yield replace(self, dataset=dataset)  # type: ignore[type-var]

    @property
    def data(self) -> Dataset:
        assert self.dataset is not None, "inside `with posterior.on(dataset)`"
        return self.dataset

    @property
    def score_kind(self) -> str:
        """What `log_evidence` is, in words."""
        return "importance-weighted bound" if self.fit.bounded else "average over draws from the guide"

    @abstractmethod
    def log_evidence(self) -> Tensor:
        """log p(x_n) of each row, or what stands for it, (N,)."""

    @abstractmethod
    def marginals(self) -> Latents:
        """The posterior of each latent of a row, and of what the model computes of them."""

    @abstractmethod
    def factor(self, site: str) -> Any:
        """The distribution of one latent; None of a site that has no more than `marginals` or a point say."""

    @abstractmethod
    def draw(self, num: int, scored: bool = False) -> Draws:
        """Joint draws; with `scored`, log p(x_n) under each."""

    @abstractmethod
    def expected(self, everywhere: bool) -> Iterator[Cells]:
        """Expected cells of the data given their rows: `everywhere`, or where it matters only that the missing ones
        are told.
        """

    @abstractmethod
    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        """`num` new rows in the form the data came in, on no data but its own."""

    @abstractmethod
    def shared(self, num: int) -> Params:
        """Draws (num, *shape) of what all rows share, learned params as they are."""

    @abstractmethod
    def replicate(self, draws: Draws) -> Replicates | None:
        """New rows beside those of the data, a set under each draw."""

    # --- where a kind has more to say ---------------------------------------------------------------------------------

    def exported(self, shared: Params | None, num: int) -> Draws:
        """The draws that ArviZ is given; `shared` are draws (num, *shape) of params that are a point here."""
        return self.draw(num, scored=True)

    def label_cells(self) -> LabelCells:
        """Which cells of the params belong to which label of a discrete latent."""
        return {}

    def axes(self, draws: Draws) -> dict[str, list[str]]:
        """Names for axes of latents, of rows or shared, where they have better ones than their numbers."""
        return {}

    def notes(self) -> list[str]:
        """Lines of the summary, below the bound."""
        return []


@dataclass
class Compiled:
    """The programs of a fit, by whether runs are given draws of the continuous latents of rows, or these are summed
    out. A fit from disk has none before its first verb.

    Attributes
    ----------
    programs : dict
        At the fit's params, on some rows.
    own : dict
        The same on the fit's own data.
    centers : dict
        Where their columns are measured from, by site: the means of the data that were learned from. Saved with the
        fit, so that a loaded one gives the same numbers to the bit.
    factors :
        Of a mean field: its factors there (`conjugate.FactorGuide`).
    """

    programs: dict[bool, Program] = field(default_factory=dict)
    own: dict[bool, Program] = field(default_factory=dict)
    centers: dict[str, Tensor] = field(default_factory=dict)
    factors: Any = None


class Fitted(Protocol):
    """What posteriors, diagnosis, export and pictures ask of a fit: `fit.Fit`, which stands above them."""

    @property
    def pair(self) -> Pair: ...
    @property
    def inference(self) -> str: ...
    @property
    def params(self) -> dict[str, Tensor]: ...
    @property
    def history(self) -> Tensor: ...
    @property
    def converged(self) -> bool: ...
    @property
    def log_likelihood(self) -> float: ...
    @property
    def bound_error(self) -> float: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def num_rows(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def mode_map(self) -> ModeMap: ...
    @property
    def start(self) -> dict[str, Tensor]: ...
    @property
    def seed(self) -> int: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def reason(self) -> str: ...
    @property
    def guide(self) -> str: ...
    @property
    def guide_parts(self) -> dict[str, Tensor]: ...
    @property
    def at_mode(self) -> tuple[str, ...]: ...
    @property
    def unchecked(self) -> str: ...
    @property
    def versions(self) -> dict[str, str]: ...
    @property
    def data(self) -> Dataset | None: ...
    @property
    def weights(self) -> Any: ...
    @property
    def compiled(self) -> Compiled: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def aic(self) -> float: ...
    @property
    def bic(self) -> float: ...
    @property
    def icl(self) -> float: ...
    @property
    def kind(self) -> Posterior: ...
    def adapted(self, data: Any) -> Dataset: ...
    def score(self, data: Any = None) -> Tensor: ...
    def anomaly(self, data: Any = None, by: str = "density") -> Any: ...
    def latents(self, data: Any = None) -> dict[str, Any]: ...
    def reconstruct(self, data: Any = None) -> Any: ...
    def impute(self, data: Any = None) -> Any: ...
    def shared_draws(self, num: int = 100, seed: int = 0, data: Any = None) -> Params: ...
    def param_draws(self, num: int = 100, method: str = "laplace", seed: int = 0) -> Params: ...
    def half_steps(self, num_iters: int = 8, data: Any = None) -> Any: ...
    def plot(self, kind: str | None = None, data: Any = None, labels: Any = None) -> Any: ...
    def save(self, folder: str | Path) -> Path: ...
