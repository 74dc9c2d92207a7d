"""SVI where things go wrong: bad options, numbers that run off, Ctrl-C, and processes killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, FitError, ModelError, OptionError, RunError
from latentzoo.inference.base.run_folder import read_run
from latentzoo.inference.svi.checkpoints import Checkpoints

X = torch.cat([torch.linspace(-3, -1, 40), torch.linspace(1, 2, 40)]).double()
FEW = {"num_steps": 400, "tol": 0}


def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def refuses(error, *words, pair=None, data=X, **options):
    with pytest.raises(error) as caught:
        zoo.fit(pair or Pair(mixture), data, inference="svi", **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return caught.value


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 81, 2.5, True])
def test_a_batch_is_between_one_row_and_all(size):
    refuses(OptionError, "batch_size", repr(size), "1 to 80", batch_size=size)


def test_options_that_make_no_sense():
    refuses(OptionError, "guide", "'flow'", "mean_field", "full_rank", guide="flow")
    refuses(OptionError, "num_particles", "0", num_particles=0)
    refuses(OptionError, "alpha", "num_particles=1", alpha=0.0, num_particles=1)
    refuses(OptionError, "learning_rate", "-1", learning_rate=-1)
    refuses(OptionError, "resume", "checkpoint", resume=True)
    refuses(OptionError, "num_steps", num_steps=-1)


def test_a_guide_that_misses_a_latent_or_adds_one():
    def empty(x):
        pass

    def more(x):
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    def summed(x):
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(2)))

    def discrete(x):
        pyro.sample("loc", dist.Poisson(torch.ones(2)).to_event(1))

    def in_rows(x):
        with pyro.plate("data", len(x)):
            pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    refuses(ModelError, "does not sample 'loc'", guide=empty)
    refuses(ModelError, "'extra'", "no such latent", guide=more)
    refuses(ModelError, "'z'", "sums it out exactly", guide=summed)
    refuses(ModelError, "'loc'", "Poisson", "no gradient", guide=discrete)
    refuses(ModelError, "'loc'", "outside the plate", guide=in_rows)


def test_a_guide_with_params_of_every_row_takes_no_batches():
    def rows(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(x):
        center = pyro.param("center", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(center, 0.7))

    refuses(ModelError, "batch of 20 rows", "batch_size=80", pair=Pair(rows, guide), batch_size=20)
    fit = zoo.fit(Pair(rows, guide), X, inference="svi")
    assert (fit.latents()["u"].mean - X / 2).abs().mean() < 0.15  # the posterior is N(x / 2, 1 / 2)


def test_an_invalid_value_is_caught_by_validation_before_the_first_step():
    def broken(x):
        scale = pyro.param("scale", torch.tensor(-1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    refuses(ModelError, "scale", pair=Pair(broken))


def steep(x):
    power = pyro.param("power", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x, torch.exp(power.exp())), obs=x + 1e3)


def test_a_learning_rate_that_explodes_stops_with_advice_and_the_last_good_state(tmp_path):
    error = refuses(FitError, "learning_rate", "1e+06", "error.fit", pair=Pair(steep), learning_rate=1e6)
    assert "'power'" in str(error) or "'x'" in str(error)
    assert error.fit is not None
    assert torch.isfinite(error.fit.params["power"])
    assert not error.fit.converged
    error.fit.save(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run", pair=Pair(steep)).params["power"], error.fit.params["power"])


def sinks(x):
    """Its level falls below 0, where the matrix has no Cholesky factor."""
    level = pyro.param("level", torch.tensor(1.0))
    root = torch.linalg.cholesky(level * torch.eye(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(level + 0.0 * root.sum(), 1.0), obs=x)


def test_a_model_that_can_no_longer_be_computed_stops_with_the_last_good_state(tmp_path):
    error = refuses(FitError, "the model cannot be computed", "cholesky", "error.fit", pair=Pair(sinks), data=X - 9)
    assert 0 < error.fit.params["level"] < 1
    assert torch.isfinite(error.fit.score(X)).all()
    error.fit.save(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run", pair=Pair(sinks)).params["level"], error.fit.params["level"])


def test_a_site_without_a_gradient_is_named():
    def root(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((a - 1.0).abs().sqrt() * x, 1.0), obs=x)

    refuses(FitError, "'x'", "'a'", "gradient", pair=Pair(root))


def test_num_steps_that_come_first_are_a_warning():
    with pytest.warns(ConvergenceWarning, match=r"not come to rest after 20 steps: raise num_steps"):
        fit = zoo.fit(Pair(mixture), X, inference="svi", num_steps=20)
    assert not fit.converged


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_returns_what_was_reached(tmp_path):
    calls = 0

    def interrupted(x):
        nonlocal calls
        calls += 1
        if calls == 300:
            raise KeyboardInterrupt
        steep_free = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(3.0, steep_free, 1.0), obs=x)

    with pytest.warns(ConvergenceWarning, match="interrupted after"):
        fit = zoo.fit(Pair(interrupted), X + 5, inference="svi", **FEW)
    assert 0 < len(fit.history) < 400
    assert not fit.converged
    assert fit.params["loc"] > 0.1
    fit.save(tmp_path / "run")
    assert zoo.load(tmp_path / "run", pair=Pair(interrupted)).history.equal(fit.history)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def same(one, two):
    assert torch.equal(one.history, two.history)
    assert one.params.keys() == two.params.keys()
    assert all(torch.equal(one.params[name], two.params[name]) for name in one.params)
    assert all(torch.equal(one.guide_parts[name], two.guide_parts[name]) for name in one.guide_parts)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 30, "num_particles": 3}, {"restarts": 3, "guide": "full_rank"}],
    ids=["all rows", "batches", "race"],
)
@pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")
def test_a_fit_that_is_resumed_ends_where_one_that_never_stopped_does(options, tmp_path, monkeypatch):
    options |= {"num_steps": 1_500, "tol": 1e-4, "seed": 5, "inference": "svi"}
    whole = zoo.fit(Pair(mixture), X, **options)
    part = {"checkpoint": tmp_path / "run", "checkpoint_steps": 130, **options}
    calls, maybe = 0, Checkpoints.maybe

    def cut_short(self, step, state):
        nonlocal calls
        calls += 1
        maybe(self, step, state)
        if calls == 500:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "maybe", cut_short)
    zoo.fit(Pair(mixture), X, **part)
    monkeypatch.undo()
    assert 0 < read_run(tmp_path / "run")[1]["step"] < 1_500
    same(whole, zoo.fit(Pair(mixture), X, resume=True, **part))


def test_a_finished_checkpoint_is_not_begun_again(tmp_path):
    options = {"checkpoint": tmp_path / "run", "resume": True, "num_steps": 300, "tol": 0}
    one = zoo.fit(Pair(mixture), X, inference="svi", **options)
    same(one, zoo.fit(Pair(mixture), X, inference="svi", **options))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    part = {"checkpoint": tmp_path / "run", "num_steps": 50, "tol": 0}
    zoo.fit(Pair(mixture), X, inference="svi", **part)

    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    part["resume"] = True
    refuses(OptionError, "another fit", "its data is", data=X + 1, **part)
    refuses(OptionError, "another fit", "its model is", pair=Pair(other), **part)
    refuses(OptionError, "its batch_size is", batch_size=7, **part)
    refuses(OptionError, "its seed is 0, here 3", seed=3, **part)
    with pytest.raises(RunError, match="checkpoint of an unfinished fit"):
        zoo.load(tmp_path / "run")
    zoo.fit(Pair(mixture), X, inference="svi", **FEW).save(tmp_path / "fit")
    refuses(RunError, "finished fit", checkpoint=tmp_path / "fit", resume=True)
    (tmp_path / "run" / "run.safetensors").write_text("{")
    refuses(RunError, "run", **part)


KILLED = """
import sys, torch
sys.path[:0] = [sys.argv[2], sys.argv[2] + '/..']
torch.set_num_threads(1)
import test_svi_robust as t
from latentzoo import Pair, zoo
print("ready", flush=True)
zoo.fit(Pair(t.mixture), t.X, inference="svi", num_steps=100_000, tol=0, batch_size=20, checkpoint=sys.argv[1],
        checkpoint_steps=7, resume=True, progress=False)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process")
def test_a_process_killed_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path):
    moments, steps = random.Random(0), []
    here = os.path.dirname(__file__)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "run"), here], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        before = steps[-1] if steps else -1
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(moments.uniform(0.1, 0.5))
            if (tmp_path / "run" / "run.safetensors").exists() and read_run(tmp_path / "run")[1]["step"] > before + 20:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        arrays, record = read_run(tmp_path / "run")
        assert len(arrays["state/ascent/state/bounds"]) == record["step"]
        steps.append(record["step"])
    assert steps == sorted(set(steps))  # each went on from where the one before was killed
    assert np.isfinite(arrays["state/ascent/state/bounds"].numpy()).all()


def test_a_bar_is_quiet_unless_asked_for(capsys):
    zoo.fit(Pair(mixture), X, inference="svi", **FEW)
    assert capsys.readouterr() == ("", "")
    zoo.fit(Pair(mixture), X, inference="svi", progress=True, **FEW)
    shown = capsys.readouterr().err
    assert "svi" in shown
    assert "bound" in shown
    assert "rate" in shown
