"""The command line, ``latentzoo`` or ``python -m latentzoo``: each command is a few calls of `zoo`."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from latentzoo import __version__, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, DataError, FitError, ModelError, OptionError, RunError
from latentzoo.inference.io.report import latent_columns, text_table, write_csv, write_report
from latentzoo.inference.io.terminal import Parser, check_folder, examples, plain_warnings, read_given, read_parts, say
from latentzoo.inference.pair import Pair
from latentzoo.inference.posterior.anomaly import BY, roc
from latentzoo.models.options import add_flags, flag, given, value, values
from latentzoo.models.registry import RegistryError

Command = Callable[[argparse.Namespace], None]

PLAIN = (DataError, ModelError, OptionError, RegistryError, RunError, FitError, OSError)
FIGURES = (None, "bound", "decomposition")  # None is the picture that suits the model
RESTARTS = 20  # mixtures have many optima, and a person at a terminal may not know: the best of 20 starts, not of 1
OPTIONS: dict[str, dict[str, Any]] = {  # of the drivers
    "restarts": {"type": int, "help": f"starts, the best of which is kept (default: {RESTARTS})"},
    "seed": {"type": int, "help": "of random numbers (default: 0)"},
    "max_iters": {"type": int, "help": "em, cavi: iterations at most"},
    "tol": {"type": float, "help": "relative tolerance of the bound"},
    "fallback": {"help": "cavi: svi fits what is not conjugate by gradient"},
    "device": {"help": "where to compute: cpu, cuda, mps"},
    "guide": {"help": "svi: family of the guide, such as mean_field or full_rank"},
    "num_steps": {"type": int, "help": "svi: steps at most"},
    "batch_size": {"type": int, "help": "rows of a step"},
    "num_particles": {"type": int, "help": "svi: draws from the guide at each step"},
    "learning_rate": {"type": float, "help": "svi: of Adam, where it starts"},
    "epochs": {"type": int, "help": "svi, networks: passes over the data at most, in place of --num-steps"},
    "objective": {"help": "svi, networks: elbo, iwae or dreg"},
    "warmup": {"type": int, "help": "svi, networks: steps over which the KL divergence comes in"},
    "free_bits": {"type": float, "help": "svi, networks: nats that each number of a latent has for nothing"},
    "validation": {"type": float, "help": "svi, networks: share of the rows held out, to keep the best weights"},
    "compile": {"action": "store_true", "default": None, "help": "svi, networks: torch.compile the steps"},
    "checkpoint": {"metavar": "DIR", "help": "svi: folder where the state is kept as it goes"},
    "resume": {"action": "store_true", "default": None, "help": "svi: go on from --checkpoint"},
}
OF_ONE_FIT = ("checkpoint", "resume")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0, or 2 after bad usage or bad input (a line on stderr says what), or 130 after Ctrl-C."""
    try:
        with plain_warnings():
            try:
                args = parsed(argv)
                args.run(args)
            finally:
                sys.stdout.flush()  # a pipe that was closed early is met here, not at the end of Python
    except SystemExit:  # --help and --version, already printed
        pass
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PLAIN as error:
        file = getattr(error, "filename", None)
        say(f"error: {file}: {error.strerror}" if file and isinstance(error, OSError) else f"error: {error}")
        return 2
    return 0


# --- the commands -----------------------------------------------------------------------------------------------------


def run_list(args: argparse.Namespace) -> None:
    cards = [zoo.card(name) for name in zoo.list_models(args.family, args.inference)]
    rows = [[card.name, card.family, ", ".join(card.inference), card.summary] for card in cards]
    print(text_table(["name", "family", "inference", "what it is"], rows))


def run_show(args: argparse.Namespace) -> None:
    print(zoo.card(args.name))


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
        card = zoo.card(args.name)
        if not card.hyperparameters:
            raise OptionError(f"{args.name} has no options, so there is nothing to compare: fit it")
        raise OptionError(f"say what to vary, such as {flag(card.size or next(iter(card.hyperparameters)))} 1:6")
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
    driver, _ = zoo.resolve(pair, args.inference)
    own = zoo.takes(driver)
    met = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}
    for name in met:
        if name not in own:
            others = [f"--inference {other}" for other in zoo.DRIVERS if name in zoo.takes(other)]
            raise OptionError(f"{flag(name)} is no option of {driver}: leave it out, or give {' or '.join(others)}")
    data, weights = read_parts(args.data, args.drop, args.weights)
    options = ({"restarts": RESTARTS} if "restarts" in own else {}) | met
    return data, options if weights is None else {**options, "weights": weights}


# --- the words of the command line -----------------------------------------------------------------------------------


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command, and what it was given."""
    parser = Parser(prog="latentzoo", description="Latent variable models on Pyro: list them, fit them, use the fits.")
    parser.epilog = examples("list", "fit gaussian_mixture iris")
    parser.add_argument("--version", action="version", version=f"latentzoo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(run: Command, what: str, *shown: str) -> Parser:
        name = run.__name__.removeprefix("run_")
        epilog = examples(*(f"{name} {line}".strip() for line in shown))
        made: Parser = commands.add_parser(name, help=what, description=what, epilog=epilog)
        made.set_defaults(run=run)
        return made

    listing = command(run_list, "list the models", "", "--inference em")
    listing.add_argument("--family", help="only those of a family, such as mixtures")
    listing.add_argument("--inference", help="only those that an inference fits, such as em")
    show = command(run_show, "show a model: story, options, references, published numbers", "gaussian_mixture")

    fit = command(
        run_fit,
        "fit a model to data",
        "gaussian_mixture iris --num-components 3 --out runs/iris",
        "latent_class carcinoma --num-classes 3 --drop G",
        "vae binary_digits --latent-dim 2 --epochs 5 --tol 0 --restarts 1 --out runs/vae",
    )
    compare = command(
        run_compare,
        "fit a model with several options, and rank the fits",
        "gaussian_mixture iris --num-components 1:4 --covariance full,tied",
        "latent_class carcinoma --num-classes 2,3 --by aic",
    )
    score = command(
        run_score,
        "log p(x) of every row, as CSV",
        "runs/iris iris",
        "runs/iris iris --out scores.csv",
    )
    anomaly = command(
        run_anomaly,
        "how unusual every row is, as CSV",
        "runs/iris iris",
        "runs/iris iris --out strange.csv",
    )
    latents = command(run_latents, "what is known of the latents of every row, as CSV", "runs/iris iris")
    impute = command(run_impute, "the data with missing cells filled in, as CSV", "runs/iris iris --out whole.csv")
    reconstruct = command(run_reconstruct, "what is expected of every row, as CSV", "runs/iris iris --out expected.csv")
    embeddings = command(run_embeddings, "where an encoder puts every row, as CSV", "runs/vae binary_digits")
    interpolate = command(
        run_interpolate,
        "the rows on the way from one row to another, as CSV",
        "runs/vae binary_digits --between 0 9 --num 5",
    )
    gaps = command(
        run_gaps,
        "where the bound of a fit loses: by the guide's family, by its encoder",
        "runs/vae binary_digits --num-steps 50 --num 20",
    )
    plot = command(
        run_plot,
        "draw a fit: the picture that suits it, or one by its kind",
        "runs/iris iris --out iris.png",
        "runs/vae binary_digits --kind samples --out samples.png",
    )
    generate = command(
        run_generate,
        "draw new rows from a saved fit, as CSV",
        "runs/iris --num 5",
        "runs/iris --num 100 --seed 1 --out flowers.csv",
    )
    summary = command(run_summary, "what a saved fit found", "runs/iris")
    demo = command(run_demo, "a first fit, explained", "", "--out runs/first")

    for sub in (show, fit, compare):
        sub.add_argument("name", metavar="NAME", help="a model; latentzoo list names them")
    on_data = (score, anomaly, latents, impute, reconstruct, embeddings, interpolate, gaps)
    for sub in (*on_data, plot, generate, summary):
        sub.add_argument("folder", metavar="RUN", help="the folder that latentzoo fit --out wrote")
    for sub in (fit, compare, *on_data, plot):
        sub.add_argument(
            "data", metavar="DATA", help="a CSV, Parquet, NPY, NPZ or IDX file, or bundled data, such as iris"
        )
    generate.add_argument("--seed", default=0, **OPTIONS["seed"])
    for sub in (*on_data, generate):
        where = "write the bounds of every row here" if sub is gaps else "write here instead of to the terminal"
        sub.add_argument("--out", metavar="FILE.csv", help=where)
    anomaly.add_argument(
        "--by", default="density", choices=BY, help="minus log p(x), or of networks what z leaves open"
    )
    anomaly.add_argument(
        "--labels", metavar="COLUMN", help="the column that says 1 of rows known to be anomalous, or 0"
    )
    anomaly.add_argument("--roc", metavar="FILE.png", help="with --labels: draw the ROC curve here")
    what = "values of columns that are conditions, or of latents, such as species=setosa"
    generate.add_argument("--given", metavar="NAME=VALUE", nargs="+", action="extend", default=[], help=what)
    interpolate.add_argument(
        "--between", metavar=("FROM", "TO"), type=int, nargs=2, required=True, help="rows, the first being 0"
    )
    interpolate.add_argument("--num", type=int, default=8, help="how many rows, ends included (default: 8)")
    plot.add_argument("--kind", help="such as bound, samples, reconstruction (default: what suits the model)")
    plot.add_argument("--out", metavar="FILE.png", required=True, help="or .pdf, .svg")
    gaps.add_argument("--num-steps", type=int, default=500, help="of each row's own factors (default: 500)")
    gaps.add_argument("--num", type=int, default=1000, help="draws that a bound is a mean of (default: 1000)")
    generate.add_argument("--num", type=int, default=1, help="how many rows (default: 1)")
    compare.add_argument("--by", default="bic", choices=("aic", "bic", "icl"), help="rank by it (default: bic)")
    fit.add_argument("--out", metavar="DIR", help="folder for the fit, its figures and the latents of every row")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="folder for the fit (default: runs/demo)")
    add_fit_options(fit, "VALUE", "options of the models, with their defaults")
    title = "options of the models; VALUES are one, a list 2,3,5, or a range 1:6 (lists of columns: 'a,b;a,b,c')"
    add_fit_options(compare, "VALUES", title, OF_ONE_FIT)

    args, extra = parser.parse_known_args(argv)
    args.unknown = [text.partition("=")[0] for text in extra if text.startswith("--")]
    if extra and not (args.unknown and args.run in (run_fit, run_compare)):
        raise OptionError(f"unrecognized arguments: {' '.join(extra)} (see latentzoo {args.command} --help)")
    return args


def add_fit_options(parser: Parser, form: str, heading: str, left_out: Sequence[str] = ()) -> None:
    """What `fit` and `compare` take: columns, options of the drivers, options of the models."""
    parser.add_argument("--weights", metavar="COLUMN", help="the column that holds weights of the rows")
    parser.add_argument("--drop", metavar="COLUMN", nargs="+", action="extend", default=[], help="columns to leave out")
    names = ", ".join(zoo.DRIVERS)
    parser.add_argument("--inference", default="auto", help=f"{names}, or auto, which picks (default: auto)")
    for name, what in OPTIONS.items():
        if name not in left_out:
            parser.add_argument(flag(name), **what)
    add_flags(parser.add_argument_group(heading), form)


if __name__ == "__main__":
    sys.exit(main())
