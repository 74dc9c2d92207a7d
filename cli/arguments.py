"""The words of the command line: commands, their arguments, and what is wrong with them, as far as that can be said
before torch is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from latentzoo import __version__

from ..cards import INFERENCES, check_inference
from ..inference.base.errors import OptionError
from ..inference.base.run_files import require_run
from ..inference.data.paths import located
from .terminal import Parser, examples
from .typed import add_flags, flag, given, value, values

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
FITS = ("fit", "compare")
BY = ("density", "reconstruction")  # of anomalies


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command, and what it was given."""
    parser = Parser(prog="latentzoo", description="Latent variable models on Pyro: list them, fit them, use the fits.")
    parser.epilog = examples("list", "fit gaussian_mixture iris")
    parser.add_argument("--version", action="version", version=f"latentzoo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, what: str, *shown: str, home: str = "commands") -> Parser:
        epilog = examples(*(f"{name} {line}".strip() for line in shown))
        made: Parser = commands.add_parser(name, help=what, description=what, epilog=epilog)
        made.set_defaults(home=home)
        return made

    listing = command("list", "list the models", "", "--inference em", home="listing")
    listing.add_argument("--family", help="only those of a family, such as mixtures")
    listing.add_argument("--inference", help="only those that an inference fits, such as em")
    what = "show a model: story, options, references, published numbers"
    show = command("show", what, "gaussian_mixture", home="listing")

    fit = command(
        "fit",
        "fit a model to data",
        "gaussian_mixture iris --num-components 3 --out runs/iris",
        "latent_class carcinoma --num-classes 3 --drop G",
        "vae binary_digits --latent-dim 2 --epochs 5 --tol 0 --restarts 1 --out runs/vae",
    )
    compare = command(
        "compare",
        "fit a model with several options, and rank the fits",
        "gaussian_mixture iris --num-components 1:4 --covariance full,tied",
        "latent_class carcinoma --num-classes 2,3 --by aic",
    )
    score = command(
        "score",
        "log p(x) of every row, as CSV",
        "runs/iris iris",
        "runs/iris iris --out scores.csv",
    )
    anomaly = command(
        "anomaly",
        "how unusual every row is, as CSV",
        "runs/iris iris",
        "runs/iris iris --out strange.csv",
    )
    latents = command("latents", "what is known of the latents of every row, as CSV", "runs/iris iris")
    impute = command("impute", "the data with missing cells filled in, as CSV", "runs/iris iris --out whole.csv")
    reconstruct = command("reconstruct", "what is expected of every row, as CSV", "runs/iris iris --out expected.csv")
    embeddings = command("embeddings", "where an encoder puts every row, as CSV", "runs/vae binary_digits")
    interpolate = command(
        "interpolate",
        "the rows on the way from one row to another, as CSV",
        "runs/vae binary_digits --between 0 9 --num 5",
    )
    gaps = command(
        "gaps",
        "where the bound of a fit loses: by the guide's family, by its encoder",
        "runs/vae binary_digits --num-steps 50 --num 20",
    )
    plot = command(
        "plot",
        "draw a fit: the picture that suits it, or one by its kind",
        "runs/iris iris --out iris.png",
        "runs/vae binary_digits --kind samples --out samples.png",
    )
    generate = command(
        "generate",
        "draw new rows from a saved fit, as CSV",
        "runs/iris --num 5",
        "runs/iris --num 100 --seed 1 --out flowers.csv",
    )
    summary = command("summary", "what a saved fit found", "runs/iris")
    demo = command("demo", "a first fit, explained", "", "--out runs/first")

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
    fits = args.command in FITS
    if extra and not (args.unknown and fits):
        raise OptionError(f"unrecognized arguments: {' '.join(extra)} (see latentzoo {args.command} --help)")
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse names and values of a fit that no model or inference has, and files that are not there; what is in them,
    and what models make of values, is found when they are loaded.
    """
    if args.command in FITS:
        read = value if args.command == "fit" else values
        for name, text, kind in given(args):
            if kind is not None:
                read(name, text, kind)
        check_inference(args.inference, ["auto", *INFERENCES])
    if "folder" in args:
        require_run(args.folder)
    if "data" in args:
        located(args.data)


def add_fit_options(parser: Parser, form: str, heading: str, left_out: Sequence[str] = ()) -> None:
    """What `fit` and `compare` take: columns, options of the drivers, options of the models."""
    parser.add_argument("--weights", metavar="COLUMN", help="the column that holds weights of the rows")
    parser.add_argument("--drop", metavar="COLUMN", nargs="+", action="extend", default=[], help="columns to leave out")
    names = ", ".join(INFERENCES)
    parser.add_argument("--inference", default="auto", help=f"{names}, or auto, which picks (default: auto)")
    for name, what in OPTIONS.items():
        if name not in left_out:
            parser.add_argument(flag(name), **what)
    add_flags(parser.add_argument_group(heading), form)
