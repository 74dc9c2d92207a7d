"""The result of a fit, and its verbs: each written once, for every model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from .base.errors import DataError
from .base.options import check_counts
from .data.adapt import adapt
from .data.devices import in_double, on_cpu
from .data.schema import Dataset, Schema
from .data.sparse import densified
from .diagnose.decomposition import HalfStep, half_steps
from .diagnose.gaps import gaps
from .io import groups, saving
from .optimize.modes import ModeMap
from .pair import Pair
from .posterior import draws as of_params
from .posterior.amortized import Importance
from .posterior.anomaly import anomalies, renamed, row_names
from .posterior.base import Compiled, Posterior
from .posterior.conjugate import predictions
from .posterior.expected import filled
from .posterior.kinds import encoder_of, posterior_of, without_networks
from .posterior.summary import summary
from .program.deterministic import Moments


@dataclass(frozen=True, repr=False)
class Fit:
    """What a driver returns. Plain values; every verb takes data, or uses those it was fitted to while they are in
    memory.

    Attributes
    ----------
    params : dict of Tensor
        Learned values by name: params, and (MAP) latents that all rows share.
    history : Tensor (iterations + 1,)
        The bound at the start and after each iteration.
    converged : bool
        Whether the tolerance was met.
    log_likelihood : float
        log p(x) at `params`, weighted by row, priors left out; where the fit is `bounded`, the bound on it.
    bound_error : float
        Monte Carlo standard error of the last bound of `history`, in nats; 0 where it is exact.
    num_parameters : int
        Free dimensions of the params.
    num_rows : float
        Rows, or their total weight.
    mode_map : ModeMap
        The distinct optima of all restarts.
    reason : str
        Why this inference, in words, where it was picked automatically.
    guide : str
        The family of the guide, where latents have a distribution of their own ("mean_field", ..., or "own");
        `guide_parts` are its numbers. Then `params` holds each shared latent at the centre of its factor. Without a
        guide, `guide_parts` are of shared latents that EM summed out: roots (*shape, q) of their covariance, all
        together, or, where they are too many, standard deviations (*shape).
    at_mode : tuple of str
        Shared latents of which `params` holds the joint mode alone (MAP), without a posterior.
    unchecked : str
        Why the fit could not be held against Pyro's own account of the model; where it was, nothing.
    """

    pair: Pair
    inference: str
    params: dict[str, Tensor]
    history: Tensor
    converged: bool
    log_likelihood: float
    num_parameters: int
    num_rows: float
    entropy: float
    mode_map: ModeMap
    start: dict[str, Tensor]
    seed: int
    schema: Schema
    reason: str = ""
    guide: str = ""
    guide_parts: dict[str, Tensor] = field(default_factory=dict)
    at_mode: tuple[str, ...] = ()
    unchecked: str = ""
    bound_error: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    data: Dataset | None = field(default=None, compare=False)
    weights: Any = field(default=None, compare=False)
    compiled: Compiled = field(default_factory=Compiled, compare=False)

    @cached_property
    def kind(self) -> Posterior:
        """What the fit says of latents, whatever found it: every verb below is written over it."""
        return posterior_of(self)

    # --- how good ---------------------------------------------------------------------------------------------------

    @property
    def bounded(self) -> bool:
        """Whether `log_likelihood` (so AIC and BIC too) is no more than the evidence lower bound: rows have continuous
        latents that nobody sums out.
        """
        return self.kind.guided and math.isnan(self.entropy)

    @property
    def aic(self) -> float:
        """Akaike's criterion, smaller is better."""
        return -2 * self.log_likelihood + 2 * self.num_parameters

    @property
    def bic(self) -> float:
        """Schwarz's criterion, smaller is better."""
        return -2 * self.log_likelihood + self.num_parameters * math.log(self.num_rows)

    @property
    def icl(self) -> float:
        """Integrated completed likelihood (Biernacki et al. 2000), smaller is better: BIC + 2 entropies."""
        return self.bic + 2 * self.entropy

    @property
    def score_kind(self) -> str:
        """What `score` is: exact, an average over draws of shared latents, or an importance-weighted bound."""
        if self.unchecked and not self.kind.guided:
            return f"as the model was read, not checked against Pyro ({self.unchecked})"
        return self.kind.score_kind

    def score(self, data: Any = None) -> Tensor:
        """log p(x_n) of each row, (N,), missing cells integrated out; `score_kind` says how latents were."""
        with self._at(data) as it:
            return it.log_evidence()

    def anomaly(self, data: Any = None, by: str = "density") -> Any:
        """How unusual each row is, a Series (N,) under the names of the rows: larger is stranger.

        Parameters
        ----------
        by : {"density", "reconstruction"}
            Minus `score`: -log p(x_n), in nats; or, of a fit with networks, -E log p(x_n | latents) under the posterior
            of the row's own latents, in nats too, which asks only whether the row can be described at all.

        Nats are relative: they order the rows of one fit, and say nothing by themselves. A density of numbers changes
        with their unit (of every row by as much), those of two models of different columns cannot be compared, and a
        row with missing cells is judged by the others alone, so it mostly seems less strange. A high density is no
        proof that a row is usual: smooth and empty rows can have a higher one than any row learned from.
        """
        return anomalies(self, self.adapted(data), by, row_names(data, self))

    # --- latents ----------------------------------------------------------------------------------------------------

    def latents(self, data: Any = None) -> dict[str, Any]:
        """Posterior of each latent of a row: probabilities (N, K) by site, (N, plates, K) inside further plates; and
        `Moments`, mean and sd (N, ...), of a continuous one, and of what the model computes of them
        (`pyro.deterministic` in the data plate).
        """
        with self._at(data) as it:
            return dict(it.marginals())

    def clusters(self, data: Any = None) -> Tensor:
        """The most probable value (N,) of the model's one latent of a row."""
        found = {name: probs for name, probs in self.latents(data).items() if isinstance(probs, Tensor)}
        if len(found) != 1:
            raise DataError(
                f"clusters: the model has {len(found)} latents per row ({', '.join(found)}); use "
                f"latents(x)[site].argmax(-1)"
            )
        return next(iter(found.values())).argmax(-1)

    def posterior(self, site: str, data: Any = None) -> Any:
        """The posterior of one latent as a Pyro distribution: Categorical for a discrete one, the guide's factor for a
        continuous one, Delta for what was learned as a point."""
        if site in self.params and (not self.kind.guided or self.kind.networks):
            summed_out = not self.guide and site in self.guide_parts
            return self.kind.factor(site) if summed_out else dist.Delta(self.params[site])
        with self._at(data) as it:
            found = it.factor(site)
            if found is not None:
                return found
            if site in self.params:
                return dist.Delta(self.params[site])
            latents = it.marginals()
        if site not in latents:
            raise DataError(f"posterior: no latent named '{site}'; the model has {sorted([*latents, *self.params])}")
        probs = latents[site]
        if isinstance(probs, Moments):
            raise DataError(
                f"posterior: '{site}' is computed from latents, and its distribution has no name: use "
                f"latents(x)['{site}'] for its mean and sd, or sample_posterior for draws"
            )
        return dist.Categorical(probs)

    def sample_posterior(self, num: int = 1000, data: Any = None, seed: int = 0) -> dict[str, Tensor]:
        """Draws (num, N, ...) of every latent of a row given the data, and the params beside them."""
        check_counts(num=(num, 1))
        with self._at(data, seed) as it:
            found = it.draw(num)
        return {**found.shared, **found.rows}

    # --- new data and missing cells ---------------------------------------------------------------------------------

    def generate(self, num: int = 1, given: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
        """`num` new rows, in the form the data came in (of a graph, a new one of `num` nodes). `given` fixes latents or
        observed sites by name, and the columns that are conditions of a `conditional_vae`, with one value or one for
        each row; labels as they are: ``given={"species": "setosa"}``.
        """
        return self.kind.generate(num, dict(given or {}), seed)

    def reconstruct(self, data: Any = None) -> Any:
        """Each row's posterior predictive: its expected value (for categories the most probable), in the form it came
        in.
        """
        return renamed(filled(self.kind, self.adapted(data), everywhere=True), data, self)

    def impute(self, data: Any = None) -> Any:
        """The data with missing cells at their conditional expectation (for categories the most probable)."""
        return renamed(filled(self.kind, self.adapted(data), everywhere=False), data, self)

    def predictions(self, data: Any = None) -> Moments:
        """Posterior mean and standard deviation of the expected value of each cell, missing ones too, of a model whose
        latents multiply (`bayesian_pca`, `probabilistic_matrix_factorization`).
        """
        return predictions(self, data)

    # --- with networks ----------------------------------------------------------------------------------------------

    def importance(self, data: Any = None, num: int = 200, seed: int | None = None) -> Importance:
        """The importance-weighted bound of each row from `num` draws: ``log_prob`` (N,), its standard ``error`` (N,),
        and ``k_hat`` (N,), the tail of the weights, above 0.7 of which it cannot be relied on.
        """
        with encoder_of(self, "importance").on(self.adapted(data), seed) as it:
            return it.importance(num)

    def embeddings(self, data: Any = None) -> Any:
        """Posterior means of the continuous latents of each row, a DataFrame."""
        with encoder_of(self, "embeddings").on(self.adapted(data)) as it:
            return renamed(it.embeddings(), data, self)

    def interpolate(self, first: int, second: int, num: int = 8, data: Any = None) -> Any:
        """Expected rows along the line between the embeddings of two rows, `num` of them, ends included."""
        return encoder_of(self, "interpolate").interpolate(self.adapted(data), first, second, num)

    def gaps(self, data: Any = None, num_steps: int = 500, num: int = 1000) -> Any:
        """How far the bound lies below log p(x): for want of a better family, and for want of a better encoder
        (Cremer et al. 2018).
        """
        encoder_of(self, "gaps")
        return gaps(self, self.adapted(data), num_steps, num)

    # --- uncertainty, export, pictures ------------------------------------------------------------------------------

    def shared_draws(self, num: int = 100, seed: int = 0, data: Any = None) -> dict[str, Tensor]:
        """Draws (num, *shape) of the latents that all rows share from the guide, learned params beside them."""
        check_counts(num=(num, 1))
        with without_networks(self, "shared_draws").on(self.adapted(data), seed) as it:
            return it.shared(num)

    def param_draws(self, num: int = 100, method: str = "laplace", seed: int = 0) -> dict[str, Tensor]:
        """Draws (num, *shape) of the params: "laplace" or "bootstrap" (parametric, refitted, labels aligned)."""
        without_networks(self, "param_draws")
        return of_params.param_draws(self, num, method, seed)

    def to_arviz(self, draws: str | None = None, num_draws: int = 100, data: Any = None, seed: int = 0) -> Any:
        """InferenceData (ArviZ 0.x) or DataTree (1.x): one draw of the params, or `num_draws` by "laplace" or
        "bootstrap".
        """
        return groups.to_arviz(self, self.adapted(data), draws, num_draws, seed)

    def half_steps(self, num_iters: int = 8, data: Any = None) -> list[HalfStep]:
        """log p(x) = ELBO + KL as numbers around each E-step and M-step, from this fit's own start."""
        without_networks(self, "half_steps")
        return half_steps(self, self.adapted(data), num_iters, self.weights if data is None else None)

    def plot(self, kind: str | None = None, data: Any = None, labels: Any = None) -> Any:
        """A matplotlib Figure: the family's picture, or one of `plots.KINDS` by name. Kind "roc" wants `labels` (N,),
        which rows are known to be anomalous.
        """
        from .plots import kinds

        return kinds.plot(self, kind, data, labels)

    # --- words and disk ---------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """A page a person can read: what was fitted, how well, and what was found."""
        return summary(self)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder (safetensors and JSON, no pickle), atomically. The data are not in it."""
        return saving.save(self, folder)

    def because(self, reason: str) -> Fit:
        """The same fit, saying why its inference was picked."""
        return replace(self, reason=reason)

    def adapted(self, data: Any) -> Dataset:
        """Data as this fit's model takes them, with the columns and labels of training."""
        if data is None and self.data is None:
            raise DataError("this fit was loaded from a folder, which holds no data: pass the data")
        rows = self.kind.networks
        found = self.data if data is None else in_double(adapt(data, self.schema, self.pair.by, self.pair.graph, rows))
        assert found is not None
        if not self.kind.sparse:
            found = replace(found, values=densified(found.values))
        return on_cpu(found)

    def _at(self, data: Any, seed: int | None = None) -> AbstractContextManager[Posterior]:
        """What the fit says of latents, at work on data."""
        return self.kind.on(self.adapted(data), seed)

    def __repr__(self) -> str:
        name = self.pair.origin.name if self.pair.origin else getattr(self.pair.model, "__name__", "model")
        state = "converged" if self.converged else "not converged"
        state = f"not checked against Pyro: {self.unchecked}" if self.unchecked else state
        kind = "bound" if self.bounded else "log_likelihood"
        how = f"{self.inference}, MAP" if self.at_mode else self.inference
        error = f" ± {self.bound_error:.2g}" if self.bounded and self.bound_error else ""
        return f"Fit({name}, {how}, {kind}={self.log_likelihood:.4f}{error}, {state})"
