"""The command line: what each command prints and writes, and what it says when it cannot."""

import csv
import itertools
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from latentzoo import Pair, __version__, cards, zoo
from latentzoo import __main__ as command_line
from latentzoo.cards import kinds_of
from latentzoo.cli import arguments
from latentzoo.cli.terminal import text_table
from latentzoo.cli.typed import shown, value, values
from latentzoo.inference.base.errors import FitError, OptionError
from latentzoo.inference.io.report import latent_columns
from latentzoo.inference.posterior.anomaly import BY
from latentzoo.models import registry
from latentzoo.models.registry import register

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = (
    *("list", "show", "fit", "compare", "score", "anomaly", "latents", "impute", "reconstruct", "embeddings"),
    *("interpolate", "gaps", "plot", "generate", "summary", "demo"),
)
SURVEY = [  # answers with text and missing cells, and how many people gave them
    ("yes", "red", "high", 12),
    ("yes", "red", "low", 5),
    ("no", "blue", "low", 20),
    ("no", "green", "low", 7),
    ("no", "green", "", 4),
    ("", "red", "high", 3),
    ("yes", "green", "high", 2),
]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in an empty folder, given as one string."""
    monkeypatch.chdir(tmp_path)

    def command(line: str) -> Ran:
        code = command_line.main(shlex.split(line))
        return Ran(code, *capsys.readouterr())

    return command


def process(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, as a person runs it."""
    command = [sys.executable, "-W", "error", "-m", "latentzoo", *shlex.split(line)]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def survey(weighted: bool) -> str:
    """SURVEY as CSV: a row for each answer with its weight, or a row for each person."""
    lines = ["smokes,colour,income" + ",people" * weighted]
    for *answers, people in SURVEY:
        lines += [",".join([*answers, str(people)])] if weighted else [",".join(answers)] * people
    return "\n".join(lines) + "\n"


# --- one command at a time --------------------------------------------------------------------------------------------


def test_list_names_every_model(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:]] == zoo.list_models()
    assert zoo.card("latent_class").summary in out
    some = run("list --family mixtures --inference em").out.splitlines()[1:]
    assert [line.split()[0] for line in some] == zoo.list_models("mixtures", "em")
    assert len(some) < len(zoo.list_models())


def test_show_prints_the_card(run: Run) -> None:
    assert run("show latent_class") == (0, f"{zoo.card('latent_class')}\n", "")


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"latentzoo {__version__}\n", "")


def test_fit_takes_options_of_the_model_and_of_the_driver(run: Run) -> None:
    options = "--num-components 2 --covariance diagonal --inference em --restarts 3 --seed 4 --tol 1e-9 --max-iters 500"
    code, out, err = run(f"fit gaussian_mixture iris {options}")
    same = zoo.fit(
        zoo.create("gaussian_mixture", num_components=2, covariance="diagonal"),
        "iris",
        inference="em",
        restarts=3,
        seed=4,
        tol=1e-9,
        max_iters=500,
    )
    assert (code, err) == (0, "")
    assert out == same.summary() + "\n"
    assert same.bic == pytest.approx(857.5515, abs=6e-3)  # mclust


def test_fit_starts_from_twenty_places(run: Run) -> None:
    best = zoo.fit("gaussian_mixture", "iris", restarts=20)
    assert run("fit gaussian_mixture iris").out == best.summary() + "\n"


def test_what_networks_can_do_is_done_by_commands_too(run: Run, tmp_path: Path) -> None:
    options = "--hidden 8 --num-steps 60 --tol 0 --restarts 1 --validation 0.1 --seed 3"
    assert run(f"fit vae binary_digits {options} --out run")[0] == 0
    fit = zoo.load(tmp_path / "run")
    images = zoo.fit("vae", "binary_digits", num_steps=0, tol=0).data
    np.save(tmp_path / "few.npy", images.values[:20].numpy())
    few = images.values[:20]
    found = read_csv(run("embeddings run few.npy").out)
    places = np.array([[float(row[name]) for name in row if name != "row"] for row in found])
    np.testing.assert_allclose(places, fit.embeddings(few).to_numpy(), rtol=1e-6)
    assert len(read_csv(run("interpolate run few.npy --between 0 9 --num 5").out)) == 5
    code, out, err = run("gaps run few.npy --num 200 --out gaps.csv")
    rows = read_csv((tmp_path / "gaps.csv").read_text())
    assert (code, err, len(rows), list(rows[0])) == (0, "", 20, ["row", "bound", "best", "log_prob"])
    assert all(float(row["bound"]) <= float(row["best"]) for row in rows)
    assert "amortization" in out
    assert run("plot run few.npy --kind samples --out made.png") == (0, "written to made.png\n", "")
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("plot run few.npy --kind pie --out pie.png")
    assert (code, err[:47]) == (2, "latentzoo: error: kind: met 'pie', expected one")


def test_fit_that_did_not_converge_says_so_in_a_line(run: Run) -> None:
    code, out, err = run("fit gaussian_mixture iris --max-iters 2")
    assert code == 0
    assert "did NOT meet its tolerance" in out
    assert re.fullmatch(r"latentzoo: warning: em: stopped after 2 iterations [^\n]*\n", err)


def test_fit_writes_the_run_its_figures_and_latents(run: Run, tmp_path: Path) -> None:
    code, out, err = run("fit poisson_mixture hasselblad_deaths --out a/b")
    assert (code, err) == (0, "")
    folder = tmp_path / "a" / "b"
    beside = {file.name for file in folder.iterdir() if not file.name.startswith("run.")}
    assert beside == {"picture.png", "bound.png", "decomposition.png", "latents.csv"}
    where, _, files = out.splitlines()[-1].partition(": ")
    assert (where, set(files.split(", "))) == ("written to a/b", beside)
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in folder.glob("*.png"))
    fit = zoo.load(folder)
    rows = read_csv((folder / "latents.csv").read_text())
    expected = fit.latents("hasselblad_deaths")["z"]
    written = np.array([[float(row["z=0"]), float(row["z=1"])] for row in rows])
    np.testing.assert_allclose(written, expected.numpy(), rtol=1e-9)
    assert [int(row["z"]) for row in rows] == written.argmax(1).tolist()
    assert [int(row["row"]) for row in rows] == list(range(1096))


def test_weights_column_counts_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "weighted.csv").write_text(survey(weighted=True))
    (tmp_path / "people.csv").write_text(survey(weighted=False))
    once = run("fit latent_class weighted.csv --weights people --out weighted")
    assert (once.code, once.err) == (0, "")
    assert "on 53 rows" in once.out
    assert run("fit latent_class people.csv --out people").code == 0
    weighted, people = zoo.load(tmp_path / "weighted"), zoo.load(tmp_path / "people")
    assert weighted.schema.columns == ("smokes", "colour", "income")
    assert weighted.log_likelihood == pytest.approx(people.log_likelihood, rel=1e-8)
    assert weighted.bic == pytest.approx(people.bic, rel=1e-8)


def test_drop_leaves_columns_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "survey.csv").write_text(survey(weighted=True))
    assert run("fit latent_class survey.csv --weights people --drop colour income --out run").code == 0
    assert zoo.load(tmp_path / "run").schema.columns == ("smokes",)


def test_compare_ranks_the_fits(run: Run) -> None:
    code, out, err = run("compare gaussian_mixture iris --num-components 1:3 --covariance full,tied")
    assert (code, err) == (0, "")
    title, empty, header, *lines = out.splitlines()
    assert (title, empty) == ("gaussian_mixture on iris, 6 fits, the best by bic first", "")
    column = header.split().index("bic") + 1  # the options are two words
    ranked = {tuple(re.findall(r"=(\w+)", line)): float(line.split()[column]) for line in lines}
    assert len(ranked) == 6
    assert list(ranked.values()) == sorted(ranked.values())
    published = {("2", "full"): 574.0178, ("3", "full"): 580.839, ("2", "tied"): 688.0972}  # mclust
    for options, bic in published.items():
        assert ranked[options] == pytest.approx(bic, abs=6e-3)


def test_compare_ranks_by_what_is_asked(run: Run) -> None:
    orders = {}
    for by in ("aic", "bic"):
        lines = run(f"compare gaussian_mixture iris --num-components 1:3 --by {by}").out.splitlines()[3:]
        orders[by] = [re.findall(r"num_components=(\d)", line) for line in lines]
    assert orders == {"aic": [["3"], ["2"], ["1"]], "bic": [["2"], ["3"], ["1"]]}


def test_compare_says_which_did_not_converge(run: Run) -> None:
    code, out, err = run("compare gaussian_mixture iris --num-components 1,3 --max-iters 3")
    assert code == 0
    assert [line.split()[-2] for line in out.splitlines()[3:]] == ["no", "yes"]
    assert re.fullmatch(r"latentzoo: warning: gaussian_mixture\(num_components=3, [^\n]* did not converge[^\n]*\n", err)


def test_demo_tells_what_it_found(run: Run, tmp_path: Path) -> None:
    from sklearn.datasets import load_iris

    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert re.findall(r"^group \d +(\d+)", out, re.MULTILINE) == ["50", "45", "55"]
    assert re.search(r"^ +2 .* 574\.02  <- smallest$", out, re.MULTILINE)  # mclust
    assert "groups, for two" in out
    group = np.array([int(row["z"]) for row in read_csv((tmp_path / "runs/demo/latents.csv").read_text())])
    species = load_iris().target
    right = sum(np.bincount(species[group == number]).max() for number in range(3))
    assert f"{right} of 150 flowers are in the group" in out
    assert run("summary runs/demo").out.startswith("gaussian_mixture(num_components=3, covariance=full) on 150 rows")
    assert (tmp_path / "runs/demo/picture.png").is_file()


# --- from a table with text and gaps to new rows ----------------------------------------------------------------------


def test_round_trip(run: Run, tmp_path: Path) -> None:
    (tmp_path / "survey.csv").write_text(survey(weighted=True))
    fitted = run("fit latent_class survey.csv --num-classes 2 --weights people --out run")
    assert fitted.code == 0

    summary = run("summary run")
    assert (summary.code, summary.err) == (0, "")
    assert fitted.out.startswith(summary.out.rstrip("\n"))

    scored = run("score run survey.csv")
    assert (scored.code, scored.err) == (0, "")
    scores = [float(row["log_prob"]) for row in read_csv(scored.out)]
    fit = zoo.load(tmp_path / "run")
    labels = fit.schema.labels
    shares = fit.params["weights"].tolist()
    for (*answers, _), score in zip(SURVEY, scores, strict=True):
        total = 0.0
        for k in range(2):
            seen = [(j, answer) for j, answer in enumerate(answers) if answer]
            codes = [(j, labels[("smokes", "colour", "income")[j]].index(answer)) for j, answer in seen]
            total += shares[k] * math.prod(fit.params[f"probs_{j}"][k, code].item() for j, code in codes)
        assert score == pytest.approx(math.log(total), rel=1e-9)
    weighted = sum(people * score for (*_, people), score in zip(SURVEY, scores, strict=True))
    assert f"log-likelihood {weighted:.4f}" in fitted.out

    drawn = run("generate run --num 40 --seed 3")
    assert (drawn.code, drawn.err) == (0, "")
    rows = read_csv(drawn.out)
    assert len(rows) == 40
    for j, column in enumerate(("smokes", "colour", "income")):
        assert set(labels[column]) >= {row[column] for row in rows}
        assert set(labels[column]) == {answers[j] for answers in SURVEY} - {""}
    assert run("generate run --num 40 --seed 3").out == drawn.out
    assert run("generate run --num 40 --seed 4").out != drawn.out

    filed = run("generate run --num 40 --seed 3 --out new.csv")
    assert filed.out == "40 rows written to new.csv\n"
    assert (tmp_path / "new.csv").read_text() == drawn.out
    again = run("score run new.csv --out scores.csv")
    assert again.out.startswith("40 rows, log p(x) ")
    assert len(read_csv((tmp_path / "scores.csv").read_text())) == 40


def test_array_without_names(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.array([[0, 1], [9, 8], [1, 0], [7, 9], [8, 8], [0, 0]]))
    assert run("fit poisson_mixture counts.npy --out run").code == 0
    rows = read_csv(run("generate run --num 3").out)
    assert [list(row) for row in rows] == [["x0", "x1"]] * 3
    assert all(re.fullmatch(r"\d+(\.0)?", cell) for row in rows for cell in row.values())


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("a,b\n1,x\n2,y\n3,x\n4,x\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "negative.csv").write_text("a,w\n1,1\n2,-1\n3,1\n")
    (tmp_path / "gap.csv").write_text("a,w\n1,\n2,1\n3,1\n")
    np.save(tmp_path / "array.npy", np.arange(6.0))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.safetensors").write_text("{}")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "COMMAND (see latentzoo --help)"),
        ("fti gaussian_mixture iris", "invalid choice: 'fti'"),
        ("list --models", "unrecognized arguments: --models"),
        ("list --family trees", "family: met 'trees', expected one of comparisons, "),
        ("list --inference auto", "inference: met 'auto', expected one of em, cavi, svi"),
        ("list --inference magic", "inference: met 'magic'"),
        ("show gaussian", "did you mean 'gaussian_mixture'"),
        ("fit gaussian_mixture", "DATA (see latentzoo fit --help)"),
        ("fit gausian_mixture iris", "did you mean 'gaussian_mixture'"),
        ("fit gaussian_mixture iris extra", "unrecognized arguments: extra"),
        ("fit gaussian_mixture iris --num-classes 3", "no option --num-classes: its own are --num-components, --cov"),
        ("fit gaussian_mixture iris --num-topics=3", "no option --num-topics: its own are --num-components, --cov"),
        ("fit gaussian_mixture iris --num-comp 3", "no option --num-comp:"),
        ("fit gaussian_mixture iris --num-components three", "--num-components: met 'three', expected a whole number"),
        ("fit gaussian_mixture iris --num-components 0", "num_components: met 0"),
        ("fit gaussian_mixture iris --num-components 1:3", "--num-components: met '1:3'"),
        ("fit gaussian_mixture iris --covariance round", "covariance: met 'round', expected one of full, tied"),
        ("fit gaussian_mixture iris --inference magic", "inference: met 'magic'"),
        ("fit gaussian_mixture iris --restarts 0", "restarts: met 0"),
        ("fit gaussian_mixture iris --restarts many", "invalid int value: 'many'"),
        ("fit gaussian_mixture iris --tol -1", "tol: met -1"),
        ("fit gaussian_mixture iris --seed -1", "seed: met -1"),
        (f"fit gaussian_mixture iris --seed {2**64}", f"seed: met {2**64}, expected a whole number from 0"),
        ("fit gaussian_mixture iris --seed 1.5", "invalid int value: '1.5'"),
        ("fit gaussian_mixture iris --num-steps 5", "--num-steps is no option of em: leave it out, or give --inf"),
        (
            "fit gaussian_mixture iris --fallback svi",
            "--fallback is no option of em: leave it out, or give --inference ca",
        ),
        ("fit bayesian_gaussian_mixture iris --fallback em", "fallback: met 'em', expected"),
        ("fit gaussian_mixture iris --resume", "--resume is no option of em"),
        ("fit gaussian_mixture iris --inference svi --max-iters 5", "--max-iters is no option of svi"),
        ("fit gaussian_mixture iris --inference svi --resume", "resume: met True without a folder"),
        ("compare gaussian_mixture iris --num-components 2 --checkpoint a", "no option --checkpoint"),
        ("compare gaussian_mixture iris --num-components 1:100000", "stands for more than 1000 numbers"),
        ("fit latent_class carcinoma --covariates H", "'H'"),
        ("fit mixture_of_regressions iris --response sepal", "'sepal'"),
        ("fit student_t_mixture iris --df many", "--df: met 'many', expected a number or none"),
        ("fit gaussian_mixture iris --covariance ''", "--covariance: met '', expected text"),
        ("fit gaussian_mixture text.csv --drop a b", "text.csv has no columns left"),
        ("fit gaussian_mixture iris --device gpu", "device: met 'gpu'"),
        ("fit gaussian_mixture iris --num-components 200", "150 rows: ask for fewer"),
        ("fit gaussian_mixture irises", "no file 'irises', nor a bundled data set of that name; there are iris"),
        ("fit gaussian_mixture empty.csv", "cannot read 'empty.csv'"),
        ("fit gaussian_mixture text.csv", "column 'b' holds text"),
        ("fit poisson_mixture iris", "row 0 holds"),
        ("fit gaussian_mixture text.csv --drop c", "text.csv has no column 'c': it has a, b"),
        ("fit gaussian_mixture text.csv --weights c", "text.csv has no column 'c': it has a, b"),
        ("fit gaussian_mixture text.csv --weights b", "--weights: column 'b' holds text"),
        ("fit gaussian_mixture negative.csv --weights w", "weights: expected finite numbers, none negative"),
        ("fit gaussian_mixture array.npy --drop a", "array.npy is an array, without names"),
        ("fit gaussian_mixture iris --out text.csv", "--out: cannot write to"),
        ("fit gaussian_mixture iris --out text.csv/run", "--out: cannot write to"),
        ("compare gaussian_mixture iris", "say what to vary, such as --num-components 1:6"),
        ("compare gaussian_mixture iris --num-components 6:1", "--num-components: met '6:1'"),
        ("compare gaussian_mixture iris --num-components 1:", "--num-components: met ''"),
        ("compare gaussian_mixture iris --num-classes 2,3", "no option --num-classes"),
        ("compare gaussian_mixture iris --num-components 1:2 --by luck", "invalid choice: 'luck'"),
        ("score nowhere iris", "nowhere: does not exist"),
        ("score broken iris", "broken"),
        ("summary nowhere", "nowhere: does not exist"),
        ("generate nowhere", "nowhere: does not exist"),
        ("demo --out text.csv", "--out: cannot write to"),
        ("demo --out ''", "--out: met '', expected the name of a folder"),
        ("fit gaussian_mixture iris --device meta", "device: met 'meta', which torch cannot use here"),
        ("fit gaussian_mixture iris --num-components 99999999999999999999", "expected a number below 1000000"),
        ("fit gaussian_mixture gap.csv --weights w", "weights: expected finite numbers, none negative"),
        ("fit zero_inflated_poisson iris", "cannot take: expected counts: whole numbers"),
        ("compare zero_inflated_poisson fetal_lamb", "zero_inflated_poisson has no options"),
    ],
)
def test_error_is_one_plain_line(run: Run, line: str, words: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"latentzoo: error: [^\n]+\n", err)
    assert words in err


def test_errors_of_a_saved_run(run: Run, tmp_path: Path) -> None:
    assert run("fit gaussian_mixture iris --num-components 1 --restarts 1 --out run").code == 0
    (tmp_path / "short.csv").write_text("sepal length (cm)\n5\n")
    for line, words in {
        "score run short.csv": "no column 'sepal width (cm)'",
        "score run missing.csv": "no file 'missing.csv'",
        "score run iris --out no/where.csv": "non-existent directory: 'no'",
        "generate run --num 0": "num: met 0",
        f"generate run --seed {2**64}": f"seed: met {2**64}",
        "generate run --num 2 --out .": "Is a directory",
    }.items():
        code, out, err = run(line)
        assert (code, out) == (2, ""), line
        assert re.fullmatch(r"latentzoo: error: [^\n]+\n", err), line
        assert words in err, line


def test_fit_that_fails_and_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise FitError("em: log p(x) became NaN", {})

    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "fit", fails)
    assert run("fit gaussian_mixture iris") == (2, "", "latentzoo: error: em: log p(x) became NaN\n")
    monkeypatch.setattr(zoo, "fit", stopped)
    assert run("fit gaussian_mixture iris") == (130, "", "latentzoo: interrupted\n")


def test_bugs_are_not_dressed_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object, **options: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(zoo, "fit", breaks)
    with pytest.raises(ValueError, match="a bug"):
        run("fit gaussian_mixture iris")


# --- processes --------------------------------------------------------------------------------------------------------


def test_process_fits_and_draws(tmp_path: Path) -> None:
    fitted = process("fit gaussian_mixture iris --num-components 2 --out run", tmp_path)
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert "log-likelihood -214.3547 " in fitted.stdout
    wrong = process("fit gaussian_mixture iris --num-classes 2", tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("latentzoo: error: ")

    command = [sys.executable, "-m", "latentzoo", "generate", "run", "--num", "50000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as drawing:
        assert drawing.stdout is not None
        assert drawing.stderr is not None
        assert drawing.stdout.readline().startswith("sepal length (cm),")
        drawing.stdout.close()  # as `| head -1` does
        assert drawing.stderr.read() == ""
        assert drawing.wait() == 0


HEAVY = ("torch", "pyro", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "arviz")


def imported(program: str, folder: Path) -> set[str]:
    """The heavy packages that a program of its own has imported when it ends."""
    tail = f"\nimport sys\nprint('IMPORTED', *(set({HEAVY!r}) & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", program + tail], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("fit --help", 0),
        ("list", 0),
        ("show vae", 0),
        ("", 2),
        ("fti gaussian_mixture iris", 2),
        ("show gausian_mixture", 2),
        ("list --family trees", 2),
        ("fit gausian_mixture iris", 2),
        ("fit gaussian_mixture iris --num-classes 3", 2),
        ("fit gaussian_mixture iris --num-components three", 2),
        ("fit gaussian_mixture iris --inference magic", 2),
        ("fit gaussian_mixture iris --restarts many", 2),
        ("compare gaussian_mixture iris --num-components 6:1", 2),
        ("fit gaussian_mixture irises", 2),
        ("score nowhere iris", 2),
        ("generate .", 2),
    ],
)
def test_what_needs_no_model_is_answered_before_torch_is_imported(line: str, code: int, tmp_path: Path) -> None:
    program = f"from latentzoo.__main__ import main\nassert main({shlex.split(line)!r}) == {code}"
    assert imported(program, tmp_path) == set()


def test_a_fit_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """What seeds, draws and exports takes seconds to import, and comes only where something is drawn or exported."""
    program = "from latentzoo.__main__ import main\nassert main(['fit', 'gaussian_mixture', 'iris']) == 0"
    assert not {"sklearn", "matplotlib", "arviz"} & imported(program, tmp_path)
    assert "pandas" not in imported("from latentzoo import zoo", tmp_path)


def test_cards_are_the_same_before_and_after_the_models_are_loaded(tmp_path: Path) -> None:
    program = """
from latentzoo.cards import cards, kinds_of
read, kinds = cards(), {name: kinds_of(name) for name in cards()}
from latentzoo import zoo
assert read == cards()
for name in zoo.list_models():
    for option, kind in kinds_of(name).items():
        assert kinds[name][option] in (kind, None), (name, option)
"""
    assert "torch" in imported(program, tmp_path)


# --- words ------------------------------------------------------------------------------------------------------------


def test_help_examples_run(run: Run) -> None:
    """Every command's help ends in examples, and they run, in the order in which the help lists the commands."""
    for name in ("", *COMMANDS):
        code, out, err = run(f"{name} --help")
        assert (code, err) == (0, "")
        lines = out.partition("\nexamples:\n")[2].splitlines()
        assert len(lines) >= 1
        for line in lines:
            program, *command = shlex.split(line)
            assert program == "latentzoo"
            assert command[0] == name or not name
            ran = run(shlex.join(command))
            assert (ran.code, ran.err) == (0, ""), line
    assert set(re.findall(r"^    (\w+)\b", run("--help").out, re.MULTILINE)) == set(COMMANDS)


def test_help_names_every_option_of_the_models(run: Run) -> None:
    for command in ("fit", "compare"):
        words = " ".join(run(f"{command} --help").out.split())
        for name in zoo.list_models():
            for option, default in zoo.card(name).hyperparameters.items():
                flag = option.replace("_", "-")
                assert re.search(rf"--{flag} VALUES? (?:[^-]|-\d)*{name} \({re.escape(shown(default))}\)", words)


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("1:4", int, [1, 2, 3, 4]),
        ("2,3,5", int, [2, 3, 5]),
        ("1:3,2,7", int, [1, 2, 3, 7]),
        ("full,tied", str, ["full", "tied"]),
        ("a:b", str, ["a:b"]),
        ("0.5,2", float, [0.5, 2.0]),
        ("true,False", bool, [True, False]),
        ("3", Any, [3]),
        ("'x'", Any, ["x"]),
        ("none,4", float | None, [None, 4.0]),
        ("-1,age", str | int, [-1, "age"]),
        ("full,tied", Literal["full", "tied"], ["full", "tied"]),
        ("age, sex", Sequence[str], [("age", "sex")]),
        ("age", tuple[str, ...], [("age",)]),
        ("0,age;none;2", Sequence[str | int], [(0, "age"), (), (2,)]),
        ("none;1,2", tuple[int, ...] | None, [None, (1, 2)]),
        ("a,1,0.5", tuple, [("a", 1, 0.5)]),
    ],
)
def test_values(text: str, kind: Any, found: list[object]) -> None:
    met = values("some_option", text, kind)
    assert met == found
    assert [repr(one) for one in met] == [repr(one) for one in found]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1.5", int, "a whole number"),
        ("yes", bool, "true or false"),
        ("one", float, "a number"),
        ("x y", Any, "a Python literal"),
        ("many", float | None, "a number or none"),
        ("1,b", tuple[int, ...], "a list, parted by commas, each a whole number"),
        ("round", Literal["full", "tied"], "one of full, tied"),
        ("age,,sex", Sequence[str], "a list, parted by commas, each text"),
    ],
)
def test_value_of_another_kind(text: str, kind: Any, expected: str) -> None:
    with pytest.raises(OptionError, match=f"--some-option: met '{text}', expected {expected}"):
        value("some_option", text, kind)


def test_every_default_can_be_typed() -> None:
    for name in zoo.list_models():
        kinds = kinds_of(name)
        for option, default in zoo.card(name).hyperparameters.items():
            assert value(option, shown(default), kinds[option]) == default


def test_hyperparameters_without_annotations_are_read_as_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ENTRIES", {})

    @register(family="mixtures", summary="", data="")
    def plain(size=2, share=0.5, names=("a",), flag=False, other=None):  # type: ignore[no-untyped-def]
        return zoo.create("poisson_mixture")

    assert kinds_of("plain") == {"size": int, "share": float, "names": tuple, "flag": bool, "other": Any}


def test_columns_are_named_on_the_command_line(run: Run, tmp_path: Path) -> None:
    assert run("fit latent_class carcinoma --covariates A,B --restarts 2 --out run").code == 0
    assert list(zoo.load(tmp_path / "run").pair.origin.hyperparameters["covariates"]) == ["A", "B"]
    compared = run("compare latent_class carcinoma --covariates 'none;A' --restarts 2")
    assert (compared.code, compared.err) == (0, "")
    assert compared.out.startswith("latent_class on carcinoma, 2 fits")
    regression = run("fit mixture_of_regressions iris --response 0 --restarts 2")
    named = run("fit mixture_of_regressions iris --response 'sepal length (cm)' --restarts 2")
    assert regression.out.splitlines()[1:] == named.out.splitlines()[1:]


def test_options_of_svi(run: Run, tmp_path: Path) -> None:
    options = "--inference svi --num-components 2 --restarts 2 --seed 3 --num-steps 300 --batch-size 50 --tol 0"
    first = run(f"fit gaussian_mixture iris {options} --learning-rate 0.02 --num-particles 1 --checkpoint kept")
    assert (first.code, first.err) == (0, "")
    same = zoo.fit(
        "gaussian_mixture",
        "iris",
        "svi",
        num_components=2,
        restarts=2,
        seed=3,
        num_steps=300,
        batch_size=50,
        tol=0,
        learning_rate=0.02,
        num_particles=1,
    )
    assert first.out == same.summary() + "\n"
    kept = {file.name for file in (tmp_path / "kept").iterdir()}
    assert kept
    options += " --learning-rate 0.02 --num-particles 1"
    assert run(f"fit gaussian_mixture iris {options} --checkpoint kept --resume") == first


def test_every_option_is_one_of_a_driver() -> None:
    known = {name for driver in zoo.DRIVERS for name in zoo.takes(driver)}
    assert arguments.OPTIONS.keys() <= known
    assert tuple(zoo.DRIVERS) == cards.INFERENCES
    assert arguments.BY == BY
    assert zoo.takes("em")[:3] == ["max_iters", "tol", "restarts"]


def test_text_table() -> None:
    rows = [["a", 1, 2.0, True], ["long", 22, 0.25, False]]
    assert (
        text_table(["w", "n", "x", "yes?"], rows, decimals=1)
        == "w      n    x  yes?\na      1  2.0  yes\nlong  22  0.2  no"
    )
    assert text_table(["w", "n"], []) == "w  n"


def test_latent_columns_of_latents_in_plates() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.7, 0.3]]], dtype=torch.float64)
    found = latent_columns({"z": probs})
    assert found == {
        "z[0]": [0, 1],
        "z[0]=0": [0.9, 0.4],
        "z[0]=1": [0.1, 0.6],
        "z[1]": [1, 0],
        "z[1]=0": [0.2, 0.7],
        "z[1]=1": [0.8, 0.3],
    }


# --- the README -------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_readme_lists_the_models() -> None:
    section = README.partition("\n## Models\n")[2].partition("\n## ")[0]
    header, _, *lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    names = [re.findall(r"`(\w+)`", line[0]) for line in lines]
    assert sorted(itertools.chain(*names)) == zoo.list_models()
    assert len(header) == 2 + len(zoo.DRIVERS)
    for column, title in enumerate(header[1:-1], 1):
        fitted = [own for own, line in zip(names, lines, strict=True) if line[column].strip() == "yes"]
        assert sorted(itertools.chain(*fitted)) == zoo.list_models(inference=title.strip().lower())


def test_readme_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, by_svi, deep, mixed, own, bayesian, named = blocks("python")
    exec(first, {})
    out = capsys.readouterr().out
    assert "\n-180.18547" in out
    assert out.endswith("tensor(-180.1855, dtype=torch.float64)\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: dict[str, Any] = {}
        exec(own, found)
        np.testing.assert_allclose(found["fit"].params["rate"].sort().values, [0.2, 5.0], rtol=0.25)
        exec(bayesian, found)
    np.testing.assert_allclose(found["fit"].posterior("rate").mean.sort().values, [0.2, 5.0], rtol=0.25)
    exec(named, found)
    np.testing.assert_allclose(found["fit"].params["slope"].sort().values, [-2.0, 2.0], atol=0.1)

    def model(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    data = torch.randn(600, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    precision = 600 + 1 / 100
    exec(by_svi, names := {"zoo": zoo, "pair": Pair(model), "data": data})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = names["fit"].posterior("loc").sample((4000,))
    assert drawn.std().item() == pytest.approx(precision**-0.5, rel=0.15)
    assert drawn.mean().item() == pytest.approx(data.sum().item() / precision, abs=0.5 * precision**-0.5)
    assert any((tmp_path / "runs" / "long").iterdir())
    exec(deep, names := {"zoo": zoo})
    assert names["fit"].history[-1] > names["fit"].history[0]
    assert names["encoded"].history[-1] > names["encoded"].history[0]
    exec(mixed, names := {"zoo": zoo})
    assert set(names["maker"].generate(4, given={"cylinders": "8"}, seed=0)["cylinders"]) == {"8"}
    assert names["fit"].impute(names["gaps"])["cylinders"].isin(names["cars"]["cylinders"]).all()


def test_readme_commands_run(run: Run) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("latentzoo ")]
    assert len(lines) == 7
    for line in lines:
        ran = run(line.removeprefix("latentzoo "))
        assert (ran.code, ran.err) == (0, ""), line


def test_readme_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\((.*?)\)", README) if not link.startswith("http")]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).is_file()] == []
