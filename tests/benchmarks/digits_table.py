"""Digits: what networks reach on rows held out, over five seeds, beside a loop by hand and beside simpler methods.

The 1797 digits of scikit-learn, 8 x 8 pixels with ink or without; every fifth one is held out. Means over the seeds,
standard deviations in brackets; nats of a digit. ELBO and the importance-weighted bound come from the same 500 draws.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentzoo import zoo
from latentzoo.inference.data.batches import Batches
from latentzoo.inference.data.bundled.tables import load_bundled
from latentzoo.inference.nn.networks import fresh, mlp
from latentzoo.inference.posterior.kinds import encoder_of

SEEDS = range(5)
HIDDEN, BATCH, RATE, EPOCHS, DRAWS = 128, 128, 1e-3, 300, 500
FLOOR = 1e-4  # of standard deviations, as the library has it
LABELS = 100
SEMI = CLUSTERS = {"epochs": 60, "tol": 0, "learning_rate": 5e-3}


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 64) of 0 and 1, which digit each is, and whether it is held out."""
    table = load_bundled("labelled_digits").to_numpy().astype(np.float32)
    return table[:, 1:], table[:, 0], np.arange(len(table)) % 5 == 0


# --- the bound, beside a loop by hand ---------------------------------------------------------------------------------


class Reached(NamedTuple):
    """What a training has reached on rows held out, nats of a row."""

    elbo: float
    error: float  # of the ELBO, from its draws
    iwae: float
    seconds: float  # of the training, by the clock on the wall
    work: float  # of the processor

    @property
    def gap(self) -> float:
        return self.iwae - self.elbo


def networks(latents: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder with starting weights that follow from the seed."""
    parts = {"encoder": mlp(64, (HIDDEN,), 2 * latents), "decoder": mlp(latents, (HIDDEN,), 64)}
    start = fresh(parts, torch.Generator().manual_seed(seed))
    for name, part in parts.items():
        part.load_state_dict({key: start[f"{name}$$${key}"] for key in part.state_dict()})
    return parts["encoder"], parts["decoder"]


def measured(weights: Tensor, seconds: float, work: float) -> Reached:
    """From log p(x, z) - log q(z) of draws, (S, N)."""
    draws, rows = weights.shape
    elbo = weights.mean(0)
    iwae = weights.logsumexp(0) - math.log(draws)
    error = (weights.var(0) / draws).sum().sqrt() / rows
    return Reached(float(elbo.mean()), float(error), float(iwae.mean()), seconds, work)


def by_latentzoo(x: Tensor, held: Tensor, latents: int, seed: int, epochs: int) -> Reached:
    encoder, decoder = networks(latents, seed)
    pair = zoo.create("vae", latent_dim=latents, encoder=encoder, decoder=decoder)
    options = {"batch_size": BATCH, "learning_rate": RATE, "tol": 0, "clip": 0, "progress": False}
    began, working = time.perf_counter(), time.process_time()
    fit = zoo.fit(pair, x, epochs=epochs, seed=seed, **options)
    seconds, work = time.perf_counter() - began, time.process_time() - working
    with encoder_of(fit, "log_weights").on(fit.adapted(held), seed) as it:
        return measured(it.log_weights(DRAWS), seconds, work)


def by_hand(x: Tensor, held: Tensor, latents: int, seed: int, epochs: int) -> Reached:
    """What a person would write, with the same start, batches and optimizer, and the draws of the same seed."""
    encoder, decoder = networks(latents, seed)

    def encoded(rows: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = encoder(rows).chunk(2, -1)
        return loc, functional.softplus(raw) + FLOOR

    began, working = time.perf_counter(), time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE, fused=True)
        batches = Batches(len(x), BATCH, seed + 1)
        for _ in range(epochs * (len(x) // BATCH)):
            rows = x[batches.next()]
            loc, scale = encoded(rows)
            out = decoder(loc + scale * torch.randn_like(loc))
            kl = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum()
            loss = (functional.binary_cross_entropy_with_logits(out, rows, reduction="sum") + kl) / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds, work = time.perf_counter() - began, time.process_time() - working
        torch.manual_seed(seed + 1000)  # other draws than those of the other side
        with torch.no_grad():
            loc, scale = encoded(held)
            z = loc + scale * torch.randn(DRAWS, *loc.shape)
            log_ratio = (0.5 * ((z - loc) / scale) ** 2 - 0.5 * z**2 + scale.log()).sum(-1)
            out = decoder(z)
            cost = functional.binary_cross_entropy_with_logits(out, held.expand_as(out), reduction="none").sum(-1)
    return measured((log_ratio - cost).double(), seconds, work)


def side_by_side(latents: int, seeds: range = SEEDS, epochs: int = EPOCHS) -> list[tuple[Reached, Reached]]:
    """Both trainings of each seed, in turn."""
    images, _, held = digits()
    x, out = torch.from_numpy(images[~held]), torch.from_numpy(images[held])
    sides: tuple[Callable[..., Reached], ...] = (by_latentzoo, by_hand)
    return [tuple(side(x, out, latents, seed, epochs) for side in sides) for seed in seeds]  # type: ignore[misc]


# --- a few labels -----------------------------------------------------------------------------------------------------


def few_labels(seed: int, hidden: int = HIDDEN, **options: object) -> dict[str, float]:
    """Shares of held-out digits that are told right: classifiers of 100 labelled rows, and the VAE of all rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    images, label, held = digits()
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(~held)
    known = np.concatenate([random.choice(rows[label[rows] == k], LABELS // 10, replace=False) for k in range(10)])
    classifiers = {
        "logistic regression": LogisticRegression(max_iter=2000),
        "MLP, of the size of q(y)": MLPClassifier((hidden,), max_iter=2000, random_state=seed),
    }
    right = {
        name: float(one.fit(images[known], label[known]).score(images[held], label[held]))
        for name, one in classifiers.items()
    }
    told = np.full(len(label), np.nan, dtype=np.float32)
    told[known] = label[known]
    table = np.column_stack([told, images])
    fit = zoo.fit(
        "semi_supervised_vae", table[~held], hidden=(hidden,), seed=seed, progress=False, **{**SEMI, **options}
    )
    guess = fit.latents(table[held])["y"].argmax(1).numpy()
    return {**right, "semi_supervised_vae": float((guess == label[held]).mean())}


# --- no labels --------------------------------------------------------------------------------------------------------


def clusters(seed: int, **options: object) -> dict[str, float]:
    """Adjusted Rand indices of ten clusters of all digits against what they are."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    images, label, _ = digits()
    given = {**CLUSTERS, **options, "seed": seed, "progress": False}

    means = KMeans(10, n_init=10, random_state=seed)
    vae = zoo.fit("vae", images, latent_dim=10, **given)
    codes = vae.latents()["z"]
    own = torch.from_numpy(means.fit_predict(codes.mean.numpy()))
    among = torch.nn.functional.one_hot(own.long(), 10).double()
    share = among.mean(0)
    loc = among.mT @ codes.mean / among.sum(0).unsqueeze(1)
    variance = among.mT @ (codes.sd**2 + (codes.mean - loc[own]) ** 2) / among.sum(0).unsqueeze(1)
    # as in the paper: from the autoencoder, and from clusters of its codes
    start = {**vae.params, **{name.removeprefix("value/"): value for name, value in vae.guide_parts.items()}}
    start |= {"weights": share, "loc": loc, "spread": torch.expm1(variance.sqrt()).log()}
    pair = zoo.create("gaussian_mixture_vae", num_components=10, latent_dim=10)
    found = {
        "k-means of the pixels": KMeans(10, n_init=10, random_state=seed).fit_predict(images),
        "k-means of the embeddings of vae": own.numpy(),
        "gaussian_mixture_vae": zoo.fit(pair, images, **given).clusters().numpy(),
        "gaussian_mixture_vae, from vae and k-means": zoo.fit(pair, images, start=start, **given).clusters().numpy(),
    }
    return {name: float(adjusted_rand_score(label, one)) for name, one in found.items()}


# --- the table --------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.{digits}f} ({np.std(values, ddof=1):.{digits}f})"


def print_bounds() -> None:
    how = f"networks 64-{HIDDEN}-K and back, Adam {RATE:g}, batch {BATCH}, {EPOCHS} epochs"
    print(f"{len(SEEDS)} seeds, mean (sd); {how}\n")
    print("| digits held out, nats of a digit | K | latentzoo | PyTorch by hand |\n|---|---|---|---|")
    for latents in (2, 10):
        pairs = side_by_side(latents)
        for name, of, decimals in (
            ("ELBO", lambda r: r.elbo, 3),
            (f"importance-weighted bound, {DRAWS} draws", lambda r: r.iwae, 3),
            ("gap between them", lambda r: r.gap, 3),
            ("seconds of training, wall", lambda r: r.seconds, 2),
            ("seconds of training, processor", lambda r: r.work, 2),
        ):
            ours, theirs = ([of(pair[side]) for pair in pairs] for side in (0, 1))
            print(f"| {name} | {latents} | {spread(ours, decimals)} | {spread(theirs, decimals)} |", flush=True)
        apart = [abs(a.elbo - b.elbo) for a, b in pairs]
        error = [math.hypot(a.error, b.error) for a, b in pairs]
        text = ", ".join(f"{d:.4f}" for d in apart)
        print(f"| ELBOs apart, seed by seed; Monte Carlo error {max(error):.4f} | {latents} | {text} | |", flush=True)


def print_scores(title: str, one: Callable[[int], dict[str, float]]) -> None:
    runs = [one(seed) for seed in SEEDS]
    print(f"\n| {title} | mean (sd) of {len(SEEDS)} seeds |\n|---|---|")
    for name in runs[0]:
        print(f"| {name} | {spread([run[name] for run in runs], 3)} |", flush=True)


def print_digits() -> None:
    """The whole table, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trainings of a given length have not come to rest
        print_bounds()
        print_scores(f"share of held-out digits told right, {LABELS} labels", few_labels)
        print_scores("adjusted Rand index of ten clusters of digits", clusters)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    print_digits()
