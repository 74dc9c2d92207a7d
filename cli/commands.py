"""The commands that load, fit and use models: each is a few calls of `zoo`."""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import zoo
from ..cards import card
from ..inference.base.errors import ConvergenceWarning, DataError, OptionError
from ..inference.data.idx import is_idx
from ..inference.data.tables import read
from ..inference.io.report import latent_columns, write_csv, write_report
from ..inference.pair import Pair
from ..inference.posterior.anomaly import roc
from .arguments import OPTIONS, RESTARTS
from .terminal import check_folder, read_given, say, text_table
from .typed import flag, given, value, values

FIGURES = (None, "bound", "decomposition")  # None is the picture that suits the model


def run_fit(args: argparse.Namespace) -> None:
    pair = zoo.create(args.name, **{name: value(name, text, kind) for name, text, kind in given(args)})
    check_folder(args.out)
    data, options = read_data(args, pair)
    fit = zoo.fit(pair, data, args.inference, **options)
    print(fit.summary())
    if args.out:
        files = write_report(fit, args.out, FIGURES)
        print(f"\nwritten to {args.out}: {', '.join(files)}")


def run_compare(args: argparse.Namespace) -> None:
    grid = {name: values(name, text, kind) for name, text, kind in given(args)}
    if not grid:
        found = card(args.name)
        if not found.hyperparameters:
            raise OptionError(f"{args.name} has no options, so there is nothing to compare: fit it")
        raise OptionError(f"say what to vary, such as {flag(found.size or next(iter(found.hyperparameters)))} 1:6")
    choices = [dict(zip(grid, choice, strict=True)) for choice in itertools.product(*grid.values())]
    pairs = [zoo.create(args.name, **choice) for choice in choices]
    data, options = read_data(args, pairs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, with the model's name
        fits = [zoo.fit(pair, data, args.inference, **options) for pair in pairs]
    ranked = zoo.compare(fits, args.by)
    rows = [[row[0].removeprefix(f"{args.name}(").removesuffix(")"), *row[1:]] for row in ranked.values.tolist()]
    print(f"{args.name} on {args.data}, {len(fits)} fits, the best by {args.by} first\n")
    print(text_table(["options", *ranked.columns[1:]], rows))
    for row in ranked.itertuples():
        if not row.converged:
            say(f"warning: {row.model} did not converge: raise --max-iters or --tol")
        if row.degenerate:
            say(f"warning: {row.model} collapsed onto its variance floor, so its likelihood has no meaning")


def run_score(args: argparse.Namespace) -> None:
    scores = zoo.load(args.folder).score(args.data)
    write_csv({"row": range(len(scores)), "log_prob": scores.tolist()}, args.out)
    if args.out:
        total, mean = scores.sum().item(), scores.mean().item()
        print(f"{len(scores)} rows, log p(x) {total:.4f} in all, {mean:.4f} a row; written to {args.out}")


def run_anomaly(args: argparse.Namespace) -> None:
    fit = zoo.load(args.folder)
    if args.roc and not args.labels:
        raise OptionError("--roc: a curve needs --labels, the column that says which rows are anomalous")
    data, labels = read_parts(args.data, [], args.labels) if args.labels else (args.data, None)
    found = fit.anomaly(data, by=args.by)
    write_csv({"row": found.index, "anomaly": found.to_numpy()}, args.out)
    if labels is not None:
        say(f"AUC {roc(found, labels).auc:.4f}: the chance that a row of --labels 1 scores above one of 0")
    if args.roc:
        fit.plot("roc", data, labels).savefig(args.roc, dpi=150)


def run_latents(args: argparse.Namespace) -> None:
    columns = latent_columns(zoo.load(args.folder).latents(args.data))
    write_csv({"row": range(len(next(iter(columns.values()), []))), **columns}, args.out)


def run_impute(args: argparse.Namespace) -> None:
    write_csv(zoo.load(args.folder).impute(args.data), args.out)


def run_reconstruct(args: argparse.Namespace) -> None:
    write_csv(zoo.load(args.folder).reconstruct(args.data), args.out)


def run_embeddings(args: argparse.Namespace) -> None:
    write_csv(zoo.load(args.folder).embeddings(args.data), args.out)


def run_interpolate(args: argparse.Namespace) -> None:
    first, second = args.between
    write_csv(zoo.load(args.folder).interpolate(first, second, args.num, args.data), args.out)


def run_gaps(args: argparse.Namespace) -> None:
    found = zoo.load(args.folder).gaps(args.data, args.num_steps, args.num)
    if args.out:
        rows = {"bound": found.encoder, "best": found.best, "log_prob": found.log_prob}
        write_csv({"row": range(len(found.best)), **{name: value.tolist() for name, value in rows.items()}}, args.out)
    print(found)


def run_plot(args: argparse.Namespace) -> None:
    zoo.load(args.folder).plot(args.kind, args.data).savefig(args.out, dpi=150, bbox_inches="tight")
    print(f"written to {args.out}")


def run_generate(args: argparse.Namespace) -> None:
    write_csv(zoo.load(args.folder).generate(args.num, given=read_given(args.given), seed=args.seed), args.out)
    if args.out:
        print(f"{args.num} rows written to {args.out}")


def run_summary(args: argparse.Namespace) -> None:
    print(zoo.load(args.folder).summary())


def run_demo(args: argparse.Namespace) -> None:
    check_folder(args.out)
    fits = {k: zoo.fit("gaussian_mixture", "iris", num_components=k, restarts=RESTARTS) for k in range(1, 6)}
    fit, best = fits[3], min(fits, key=lambda k: fits[k].bic)
    order = fit.params["loc"][:, 2].argsort()  # smallest petals first
    sure, group = fit.latents()["z"][:, order].max(-1)  # (150,) each
    typical = zip(group.bincount(minlength=3).tolist(), fit.params["loc"][order].tolist(), strict=True)
    rows = [[f"group {number}", count, *loc] for number, (count, loc) in enumerate(typical, 1)]
    lengths = [name.removesuffix(" (cm)") for name in fit.schema.columns or ()]
    species = torch.arange(150) // 50  # the table lists 50 flowers of each
    agree = sum(int(species[group == number].bincount().max()) for number in range(3))
    scores = [[k, f.log_likelihood, f.bic, "<- smallest" if k == best else ""] for k, f in fits.items()]
    print(f"""\
Iris: four lengths, in centimetres, of each of 150 flowers. Their species was kept hidden. Do the lengths alone show
groups? A Gaussian mixture looks for groups of flowers that scatter around a typical one.

Asked for 3 groups, it searched from {RESTARTS} starting points. {fit.mode_map[0].count} of them led to the best answer.
Flowers in each group, and the lengths of a typical one:

{text_table(["", "flowers", *lengths], rows, decimals=1)}

How sure is it? {int((sure > 0.95).sum())} of 150 flowers belong to their group with a probability above 95 %.
The hardest to place is flower {int(sure.argmin()) + 1}: {100 * sure.min():.0f} %.
Is it right? It never saw the species, yet {agree} of 150 flowers are in the group that stands for theirs.

How many groups are there? The log-likelihood says how well the groups describe the flowers: higher is better. More
groups always describe them better, so BIC charges for every number learned: smaller is better.

{text_table(["groups", "log-likelihood", "BIC", ""], scores, decimals=2)}

By BIC the lengths alone speak for {best} groups, for two of the three species look much alike.
""")
    files = write_report(fit, args.out, FIGURES)
    print(f"Written to {args.out}: {', '.join(files)}")
    print(f"latents.csv holds the group of every flower. To see the fit again: latentzoo summary {args.out}")


def read_data(args: argparse.Namespace, pair: Pair) -> tuple[Any, dict[str, Any]]:
    """The data, and the options given of the driver that will fit the pair; those of other drivers are errors."""
    driver, _, _ = zoo.resolve(pair, args.inference)
    own = zoo.takes(driver)
    met = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    for name in met:
        if name not in own:
            others = [f"--inference {other}" for other in zoo.DRIVERS if name in zoo.takes(other)]
            raise OptionError(f"{flag(name)} is no option of {driver}: leave it out, or give {' or '.join(others)}")
    data, weights = read_parts(args.data, args.drop, args.weights)
    options = ({"restarts": RESTARTS} if "restarts" in own else {}) | met
    return data, options if weights is None else {**options, "weights": weights}


def read_parts(source: str, drop: Sequence[str], weights: str | None) -> tuple[Any, np.ndarray | None]:
    """The data of a file without the columns `drop` and `weights`; and the latter, (N,)."""
    data, left_out = read(source), [*drop, *([weights] if weights else [])]
    if not left_out:
        return source if is_idx(source) else data, None  # its rows are then read as they are needed
    if not hasattr(data, "columns"):
        raise DataError(f"--drop and --weights name columns of a table; {source} is an array, without names")
    data = data.rename(columns=str)
    for name in left_out:
        if name not in data.columns:
            raise DataError(f"{source} has no column {name!r}: it has {', '.join(data.columns)}")
    rest = data.drop(columns=left_out)
    if not len(rest.columns):
        raise DataError(f"{source} has no columns left: --drop and --weights take all that it has")
    if not weights:
        return rest, None
    try:
        return rest, data[weights].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"--weights: column {weights!r} holds text, expected numbers") from error
