"""Pictures hold what they claim: artists are compared with the params and with sums done by hand."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from pyro.distributions import constraints

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.bundled.tables import load_bundled
from latentzoo.inference.optimize.modes import Mode, ModeMap
from latentzoo.inference.plots import clusters as plots_clusters
from latentzoo.inference.plots import reading as plots_read
from latentzoo.inference.plots.bound import iterations
from latentzoo.inference.plots.clusters import apart, telling_pair
from latentzoo.inference.plots.drawing import PALETTE, percent
from latentzoo.inference.plots.kinds import KINDS, OF_ROWS, plot
from latentzoo.inference.plots.reading import read_columns
from latentzoo.models.registry import ENTRIES
from latentzoo.models.registry import entry as registered

CASES = [(name, example) for name, entry in ENTRIES.items() for example in entry.examples]


def texts(figure: Figure) -> str:
    """Every word of a figure."""
    found = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts)]
        found += [label.get_text() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
    for legend in figure.legends:
        found += [legend.get_title().get_text(), *(t.get_text() for t in legend.get_texts())]
    return "\n".join(found)


def ellipses(figure: Figure) -> list[Ellipse]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Ellipse)]


def rows_drawn(figure: Figure) -> dict[str, np.ndarray]:
    """Points by "rows k" and "imputed k"."""
    return {str(c.get_gid()): np.asarray(c.get_offsets()) for c in figure.axes[0].collections if c.get_gid()}


def own(generator: torch.Generator, *means: float, sd: float = 1.0, each: int = 60) -> torch.Tensor:
    return torch.cat([m + sd * torch.randn(each, generator=generator) for m in means]).double()


@functools.cache
def iris_fit(covariance: str = "full") -> Any:
    """One fit for several tests: fits are frozen."""
    return zoo.fit("gaussian_mixture", "iris", num_components=3, covariance=covariance)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- every registered model -------------------------------------------------------------------------------------------


PICTURES = {
    "bradley_terry": ["params"],
    "gaussian_mixture": ["clusters"],
    "item_response": ["curves", "information", "profiles"],
    "latent_class": ["profiles"],
    "poisson_mixture": ["rates"],
}


@pytest.mark.parametrize(("name", "example"), CASES, ids=[f"{n}-{e}" for n, e in CASES])
def test_every_model_has_its_picture_and_the_general_ones(name: str, example: dict[str, Any]) -> None:
    short = {"num_steps": 20, "tol": 0} if zoo.card(name).inference == ("svi",) else {}
    fit = zoo.fit(zoo.create(name, **example), zoo.card(name).example, **short)
    fitting = []
    for kind in KINDS:
        try:
            figure = fit.plot(kind)
        except OptionError:
            continue
        fitting.append(kind)
        figure.draw_without_rendering()
        assert name in figure.get_suptitle()
        assert f"{abs(fit.log_likelihood):.2f}" in figure.get_suptitle()
    assert set(fitting) >= ({"bound"} if fit.guide else {"bound", "decomposition"})
    own = [kind for kind in fitting if kind not in ("bound", "decomposition", *OF_ROWS)]
    assert name not in PICTURES or own == PICTURES[name]
    assert texts(plot(fit)) == texts(fit.plot(own[0] if own else "bound"))


def test_rows_beside_what_is_expected_of_them() -> None:
    cars = load_bundled("cars")
    fit = zoo.fit("vae", cars, likelihood="mixed", hidden=(16,), num_steps=300, tol=0)
    figure = fit.plot("reconstruction")
    back = fit.reconstruct(cars)
    left = ((cars.mpg - back.mpg) ** 2).mean() / cars.mpg.var(ddof=0)
    by_name = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_name)[:9] == list(cars)
    assert by_name["mpg"].get_xlabel() == f"in the data ({percent(1 - left)} explained)"
    right = float((cars.engine == back.engine).mean())
    assert by_name["engine"].get_xlabel() == f"in the data ({percent(right)} told right)"
    shown = np.asarray(by_name["engine"].get_images()[0].get_array())
    np.testing.assert_allclose(shown.sum(0), 1.0)  # of each label, where the fit puts it
    np.testing.assert_allclose(by_name["mpg"].get_lines()[0].get_xdata(), cars.mpg)


def test_rows_made_up_beside_those_of_the_data() -> None:
    fit = iris_fit()
    figure = fit.plot("samples")
    made = np.asarray(fit.generate(1000))
    (outline,) = (one for one in figure.axes[0].patches if not hasattr(one, "get_height"))
    bottom, top = made[:, 0].min(), made[:, 0].max()
    ends = outline.get_path().vertices[:, 0]
    assert bottom <= ends.min() < ends.max() <= top
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the data", "made up"]


def test_images_are_drawn_as_images() -> None:
    fit = zoo.fit("vae", "binary_digits", latent_dim=3, hidden=(16,), num_steps=100, tol=0)
    gaps = fit.data.values.double().clone()
    gaps[:, :20] = float("nan")
    assert [axes.get_title(loc="left") for axes in fit.plot("reconstruction", gaps).axes] == [
        "the data (coloured: missing)",
        "expected",
        "filled in",
    ]
    two = fit.plot("reconstruction").axes
    assert len(two) == 2
    seen = two[0].get_images()[0].get_array()[1:9, 1:9]  # the first digit, inside its frame
    np.testing.assert_array_equal(seen, fit.data.values[0].reshape(8, 8).numpy())
    strip = fit.plot("interpolation").axes[0].get_images()[0].get_array()
    assert strip.shape == (5 * 10, 9 * 10)
    first = np.asarray(fit.reconstruct(fit.data.values[:1])).reshape(8, 8)
    assert np.corrcoef(strip[1:9, 1:9].ravel(), first.ravel())[0, 1] > 0.9
    assert fit.plot("samples").axes[1].get_images()[0].get_array().shape == (4 * 10, 12 * 10)


@pytest.mark.parametrize("kind", ["reconstruction", "samples", "interpolation"])
def test_pictures_of_rows_want_a_table(kind: str) -> None:
    fit = zoo.fit("stochastic_block_model", "karate_club", restarts=1)
    with pytest.raises(OptionError, match=f"kind: met '{kind}', but"):
        fit.plot(kind)


def test_a_kind_that_does_not_fit_names_what_was_met_and_those_that_do() -> None:
    fit = zoo.fit("latent_class", "carcinoma")
    words = (
        r"kind: met 'rates', but this model observes categories \(site 'x_0' and 6 more\), and it draws counts: try "
    )
    with pytest.raises(OptionError, match=words + "profiles, bound, decomposition"):
        fit.plot("rates")


def test_an_unknown_kind_names_the_choices(generator) -> None:
    fit = zoo.fit("gaussian_mixture", own(generator, 0, 9), num_components=2)
    with pytest.raises(OptionError, match="kind: met 'pie', expected one of bound, biplot, loadings, scree, clusters,"):
        fit.plot("pie")


def test_nothing_global_is_touched() -> None:
    program = (
        "import sys, torch, matplotlib\n"
        "from latentzoo import zoo\n"
        "before = dict(matplotlib.rcParams)\n"
        "state = torch.random.get_rng_state()\n"
        "fit = zoo.fit('poisson_mixture', 'hasselblad_deaths')\n"
        "assert 'latentzoo.inference.plots.kinds' not in sys.modules\n"
        "[fit.plot(kind) for kind in (None, 'bound', 'decomposition')]\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert torch.equal(state, torch.random.get_rng_state())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_notebook_shows_a_figure_by_itself(generator) -> None:
    figure = zoo.fit("gaussian_mixture", own(generator, 0, 9), num_components=2).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")


# --- clusters ---------------------------------------------------------------------------------------------------------

COVARIANCES = {
    "full": lambda p, k: p["covariance"][k],
    "tied": lambda p, k: p["covariance"],
    "diagonal": lambda p, k: p["scale"][k].square().diag(),
    "spherical": lambda p, k: p["scale"][k].square() * torch.eye(4),
}


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_ellipses_are_the_fitted_gaussians_on_the_drawn_columns(covariance: str) -> None:
    fit = iris_fit(covariance)
    figure = fit.plot()
    axes = figure.axes[0]
    columns = list(fit.schema.columns or ())
    pair = [columns.index(axes.get_xlabel()), columns.index(axes.get_ylabel())]
    drawn = ellipses(figure)
    assert len(drawn) == 6
    for k in range(3):
        matrix = COVARIANCES[covariance](fit.params, k)[pair][:, pair].numpy()
        for shape, deviations in zip(drawn[2 * k : 2 * k + 2], (1, 2), strict=True):
            np.testing.assert_allclose(shape.get_center(), fit.params["loc"][k, pair], rtol=1e-12)
            turn = np.linspace(0, 2 * np.pi, 50)
            edge = shape.get_patch_transform().transform(np.column_stack([np.cos(turn), np.sin(turn)]))
            edge = edge - np.asarray(shape.get_center())  # points on it lie at that Mahalanobis distance
            distance = np.sqrt(np.einsum("ni,ij,nj->n", edge, np.linalg.inv(matrix), edge))
            np.testing.assert_allclose(distance, deviations, rtol=1e-6)


def test_rows_stand_where_they_are_in_the_colour_of_their_component() -> None:
    fit = iris_fit()
    figure = fit.plot()
    axes = figure.axes[0]
    table = load_bundled("iris")[[axes.get_xlabel(), axes.get_ylabel()]].to_numpy()
    own = fit.clusters().numpy()
    points = rows_drawn(figure)
    assert sorted(points) == ["rows 0", "rows 1", "rows 2"]
    certainty = 1.5 * (fit.latents()["z"].amax(1).numpy() - 1 / 3)
    for k in range(3):
        np.testing.assert_allclose(points[f"rows {k}"], table[own == k])
        (drawn,) = [c for c in axes.collections if c.get_gid() == f"rows {k}"]
        colors = np.asarray(drawn.get_facecolor())
        rgb = [int(PALETTE[k][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        np.testing.assert_allclose(colors[:, :3], np.tile(rgb, (len(colors), 1)))
        np.testing.assert_allclose(colors[:, 3], 0.15 + 0.7 * certainty[own == k], atol=1e-6)  # pale where uncertain
    for k, share in enumerate(fit.params["weights"].tolist()):
        assert f"{k}   {100 * share:.0f} %" in texts(figure)


def test_the_pair_drawn_sets_the_components_furthest_apart() -> None:
    """By brute force over all pairs, with the affinity of two densities integrated on a grid."""
    fit = iris_fit()
    table = adapt("iris").values.numpy()
    loc, covariance, shares = (fit.params[name].numpy() for name in ("loc", "covariance", "weights"))
    best: dict[tuple[int, int], float] = {}
    for i in range(4):
        for j in range(i + 1, 4):
            sides = [np.linspace(table[:, c].min() - 6, table[:, c].max() + 6, 500) for c in (i, j)]
            grid = np.stack(np.meshgrid(*sides, indexing="ij"), -1)
            cell = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
            blur = np.diag((0.1 * table[:, [i, j]].std(0)) ** 2)
            densities = [
                scipy.stats.multivariate_normal(mean[[i, j]], cov[[i, j]][:, [i, j]] + blur).pdf(grid)
                for mean, cov in zip(loc, covariance, strict=True)
            ]
            best[i, j] = sum(
                shares[a] * shares[b] * (1 - np.sqrt(densities[a] * densities[b]).sum() * cell)
                for a in range(3)
                for b in range(a)
            )
    assert tuple(telling_pair(read_columns(fit, None, "numbers"))) == max(best, key=lambda pair: best[pair])


def test_columns_that_tell_nothing_are_not_drawn(generator) -> None:
    x = torch.randn(200, 40, generator=generator).double()
    x[:80, 17] += 6
    x[80:, 31] -= 6
    figure = zoo.fit("gaussian_mixture", x, num_components=2, covariance="diagonal").plot()
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("x17", "x31")
    assert "on the 2 of 40 columns" in texts(figure)


def test_apart_is_0_for_equal_components_and_grows_with_spread_alone() -> None:
    mean, shares = torch.zeros(2, 3, 1), torch.tensor([0.5, 0.5])
    covariance = torch.ones(2, 3, 1, 1)
    covariance[1, :, 0, 0] = torch.tensor([1.0, 4.0, 100.0])
    found = apart(mean, covariance, shares)
    assert found[0].abs() < 1e-7
    assert found[0] < found[1] < found[2] < 0.25


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_rows_with_missing_cells_are_hollow_at_their_imputed_place(covariance: str) -> None:
    table = load_bundled("iris").to_numpy().copy()
    table[np.random.default_rng(0).random(table.shape) < 0.2] = np.nan
    frame = pd.DataFrame(table, columns=load_bundled("iris").columns)
    fit = zoo.fit("gaussian_mixture", frame, num_components=3, covariance=covariance)
    figure = fit.plot()
    names = [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
    whole = fit.impute()[names].to_numpy()
    missing = frame[names].isna().any(axis=1).to_numpy()
    own = fit.clusters().numpy()
    points = rows_drawn(figure)
    assert missing.any()
    assert "hollow" in texts(figure)
    for k in range(3):
        np.testing.assert_allclose(points[f"rows {k}"], whole[(own == k) & ~missing])
        np.testing.assert_allclose(points[f"imputed {k}"], whole[(own == k) & missing])
        (drawn,) = [c for c in figure.axes[0].collections if c.get_gid() == f"imputed {k}"]
        assert len(drawn.get_facecolor()) == 0


def test_other_rows_can_be_drawn_and_of_many_a_part(generator, monkeypatch) -> None:
    x = torch.stack([own(generator, 0, 8), own(generator, 0, 8)], 1)
    fit = zoo.fit("gaussian_mixture", x, num_components=2)
    (points,) = rows_drawn(fit.plot(data=x[:40])).values()
    np.testing.assert_allclose(points, x[:40])
    monkeypatch.setattr(plots_clusters, "POINTS", 50)
    figure = fit.plot()
    assert sum(map(len, rows_drawn(figure).values())) == 50
    assert "50 of 120 rows" in texts(figure)
    assert {tuple(p) for part in rows_drawn(figure).values() for p in part} <= {tuple(p) for p in x.tolist()}
    monkeypatch.setattr(plots_read, "ROWS", 40)
    assert "40 of 120 rows" in texts(fit.plot())
    one = zoo.fit("gaussian_mixture", x[:, 0], num_components=2).plot()
    assert "40 of 120 rows" in texts(one)


def test_one_column_is_a_histogram_under_the_fitted_density(generator) -> None:
    x = own(generator, 10, 20, sd=2.0, each=150)
    x[3] = torch.nan
    fit = zoo.fit("gaussian_mixture", pd.Series(x.numpy(), name="waiting"), num_components=2)
    figure = fit.plot("clusters")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "waiting"
    assert "300 rows (1 missing)" in texts(figure)
    *parts, total = sorted(axes.lines, key=lambda line: line.get_color() == "#1A1A1A")
    grid = np.asarray(total.get_xdata(), dtype=float)
    expected = [
        w * scipy.stats.norm(m, s).pdf(grid)
        for w, m, s in zip(*(fit.params[n].tolist() for n in ("weights", "loc", "scale")), strict=True)
    ]
    for line, values in zip(parts, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-9)
    np.testing.assert_allclose(total.get_ydata(), sum(expected), rtol=1e-9)
    assert np.trapezoid(np.asarray(total.get_ydata()), grid) == pytest.approx(1, abs=0.03)
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)


def test_bars_are_narrow_enough_for_the_narrowest_component(generator) -> None:
    noise = torch.randn(90, generator=generator)
    x = torch.cat([0.4 * noise[:10] - 12, 2.0 * noise[10:80], 0.4 * noise[80:] + 12])
    fit = zoo.fit("gaussian_mixture", x, num_components=3, restarts=5)
    bars = [patch for patch in fit.plot("clusters").axes[0].patches if isinstance(patch, Rectangle)]
    assert bars[0].get_width() < 2.5 * fit.params["scale"].min().item()
    assert len(bars) <= 90 / 3


def test_a_weight_of_2_draws_the_row_twice() -> None:
    values, weights = torch.tensor([1.0, 2, 3, 7, 8, 9]).repeat(5), torch.tensor([1.0, 2, 3, 3, 2, 1]).repeat(5)
    once = zoo.fit("gaussian_mixture", values, num_components=2, weights=weights)
    twice = zoo.fit("gaussian_mixture", values.repeat_interleave(weights.long()), num_components=2)
    heights = [
        np.histogram(
            [b.get_x() + b.get_width() / 2 for b in fit.plot().axes[0].patches],
            bins=[0, 2.5, 5, 7.5, 10],
            weights=[b.get_height() * b.get_width() for b in fit.plot().axes[0].patches],
        )[0]
        for fit in (once, twice)
    ]
    np.testing.assert_allclose(heights[0], heights[1])
    counts = values.long()
    shares = [
        [bar.get_height() for bar in fit.plot().axes[0].patches]
        for fit in (
            zoo.fit("poisson_mixture", counts, num_components=1, weights=weights),
            zoo.fit("poisson_mixture", counts.repeat_interleave(weights.long()), num_components=1),
        )
    ]
    np.testing.assert_allclose(shares[0], shares[1])


def test_a_single_component_is_drawn_too(generator) -> None:
    figure = zoo.fit("gaussian_mixture", torch.randn(50, 3, generator=generator), num_components=1).plot()
    assert len(ellipses(figure)) == 2
    assert "on the first 2 of 3 columns" in texts(figure)


# --- a person's own models --------------------------------------------------------------------------------------------


def crossed(x):
    """Two latents of a row, a column each, and a column of noise that neither touches."""
    a, b = pyro.param("a", torch.tensor([0.0, 6.0])), pyro.param("b", torch.tensor([0.0, 3.0, 9.0]))
    ua = pyro.param("ua", torch.ones(2) / 2, constraint=constraints.simplex)
    ub = pyro.param("ub", torch.ones(3) / 3, constraint=constraints.simplex)
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Categorical(ua), infer={"enumerate": "parallel"})
        v = pyro.sample("v", dist.Categorical(ub), infer={"enumerate": "parallel"})
        pyro.sample("height", dist.Normal(a[u], scale[0]), obs=x[:, 0])
        pyro.sample("width", dist.Normal(b[v], scale[1]), obs=x[:, 1])


def test_components_of_two_latents_are_their_pairs_of_values(generator) -> None:
    x = torch.stack([own(generator, 0, 6, 6, 0, 0, 6), own(generator, 0, 0, 4, 4, 9, 9)], 1)
    fit = zoo.fit(Pair(crossed), x)
    figure = fit.plot()
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("height", "width")
    centers = [shape.get_center() for shape in ellipses(figure)[::2]]
    np.testing.assert_allclose(centers, [(a, b) for a in fit.params["a"] for b in fit.params["b"]])
    reading = read_columns(fit, None, "numbers")
    assert reading.components == ("u=0, v=0", "u=0, v=1", "u=0, v=2", "u=1, v=0", "u=1, v=1", "u=1, v=2")
    np.testing.assert_allclose(reading.shares, torch.outer(fit.params["ua"], fit.params["ub"]).flatten())
    posterior, _ = reading.posterior(torch.arange(len(x)))
    both = fit.latents()
    torch.testing.assert_close(posterior, (both["u"].unsqueeze(2) * both["v"].unsqueeze(1)).flatten(1))


def test_a_latent_without_bearing_on_the_drawn_column_is_summed_out(generator) -> None:
    def mixed(x):
        a, b = pyro.param("a", torch.tensor([0.0, 6.0])), pyro.param("b", torch.tensor([2.0, 9.0, 30.0]))
        ua = pyro.param("ua", torch.ones(2) / 2, constraint=constraints.simplex)
        ub = pyro.param("ub", torch.ones(2, 3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Categorical(ua), infer={"enumerate": "parallel"})
            v = pyro.sample("v", dist.Categorical(ub[u]), infer={"enumerate": "parallel"})
            pyro.sample("size", dist.Normal(a[u], 1.0), obs=x[:, 0])
            pyro.sample("eggs", dist.Poisson(b[v]), obs=x[:, 1])

    x = torch.stack([own(generator, 0, 6), torch.poisson(torch.tensor([2.0, 9.0, 30.0]).repeat(40))], 1)
    fit = zoo.fit(Pair(mixed), x, start={"b": torch.tensor([2.0, 9.0, 30.0])})
    for nature, kind, latent in (("numbers", "clusters", "u"), ("counts", "rates", "v")):
        reading = read_columns(fit, None, nature)
        posterior, _ = reading.posterior(torch.arange(len(x)))
        torch.testing.assert_close(posterior, fit.latents()[latent])
        assert len(fit.plot(kind).axes[0].lines) == len(reading.shares) + 1
    np.testing.assert_allclose(
        read_columns(fit, None, "counts").shares, fit.params["ua"] @ fit.params["ub"], rtol=1e-12
    )
    assert texts(fit.plot()) == texts(fit.plot("clusters"))  # numbers before counts


def test_densities_of_any_distribution_are_drawn_on_its_support(generator) -> None:
    def waits(x):
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor([0.3, 5.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("wait", dist.Exponential(rate[z]), obs=x)

    x = torch.empty(400).exponential_(1.0, generator=generator) * torch.tensor([4.0, 0.2]).repeat(200)
    fit = zoo.fit(Pair(waits), x)
    *parts, _ = sorted(fit.plot().axes[0].lines, key=lambda line: line.get_color() == "#1A1A1A")
    weights, rates = fit.params["weights"].tolist(), fit.params["rate"].tolist()
    for line, weight, rate in zip(parts, weights, rates, strict=True):
        grid = np.asarray(line.get_xdata(), dtype=float)
        assert grid.min() < 0
        np.testing.assert_allclose(line.get_ydata(), weight * scipy.stats.expon(scale=1 / rate).pdf(grid), atol=1e-12)


class Line(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def lines(data):
    slope = pyro.param("slope", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(data.y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(slope[z] * data.x, 1.0), obs=data.y)


def test_where_no_other_picture_fits_the_bound_is_drawn(generator) -> None:
    x = torch.randn(40, generator=generator)
    fit = zoo.fit(Pair(lines), Line(x, x * 2))
    assert texts(fit.plot()) == texts(fit.plot("bound"))
    assert fit.plot().get_suptitle().startswith("lines\n")
    with pytest.raises(
        OptionError, match=r"kind: met 'clusters', but site 'y' has a Normal that differs from row to row"
    ):
        fit.plot("clusters")


def test_a_distribution_without_moments_is_named(generator) -> None:
    def heavy(x):
        loc = pyro.param("loc", torch.tensor([0.0, 5.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Cauchy(loc[z], 1.0), obs=x)

    fit = zoo.fit(Pair(heavy), own(generator, 0, 9))
    assert texts(fit.plot()) == texts(fit.plot("bound"))
    with pytest.raises(OptionError, match="site 'x' has a Cauchy without a finite mean and variance"):
        fit.plot("clusters")


def test_several_values_of_a_latent_in_a_row_make_no_components() -> None:
    def words(x):
        probs = pyro.param("probs", torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]), constraint=constraints.simplex)
        mix = pyro.param("mix", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("word", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Categorical(mix), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Categorical(probs[z]), obs=x)

    fit = zoo.fit(Pair(words), torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2], [2, 1, 0, 0]]), max_iters=3, tol=0)
    assert texts(fit.plot()) == texts(fit.plot("bound"))
    with pytest.raises(OptionError, match="latent 'z' has several values in each row"):
        fit.plot("profiles")


# --- profiles ---------------------------------------------------------------------------------------------------------


def tables(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_of_two_answers_the_second_is_drawn() -> None:
    fit = zoo.fit("latent_class", "carcinoma", num_classes=3)
    figure = fit.plot()
    expected = torch.stack([fit.params[f"probs_{j}"][:, 1] for j in range(7)]).numpy()
    (table,) = tables(figure)
    np.testing.assert_allclose(table, expected)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{c} = yes" for c in "ABCDEFG"]
    shares = [f"{k}\n{100 * s:.0f} %" for k, s in enumerate(fit.params["weights"].tolist())]
    assert [t.get_text() for t in axes.get_xticklabels()] == shares
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written == {(i, k): f"{expected[i, k]:.2f}" for i in range(7) for k in range(3)}


def test_every_answer_of_many_is_drawn_and_no_item_is_torn_apart() -> None:
    sizes = [2 + j % 4 for j in range(20)]
    codes = np.column_stack([np.random.default_rng(j).integers(0, c, 200) for j, c in enumerate(sizes)])
    codes[0] = [c - 1 for c in sizes]
    fit = zoo.fit("latent_class", codes, num_classes=4, max_iters=20, tol=0)
    figure = fit.plot()
    lines = [fit.params[f"probs_{j}"].T[1 if c == 2 else 0 :] for j, c in enumerate(sizes)]
    assert len(tables(figure)) > 1
    np.testing.assert_allclose(np.concatenate(tables(figure)), torch.cat(lines))
    for axes in figure.axes[:-1]:
        assert axes.get_yticklabels()[0].get_text().startswith("x_")


def test_bernoulli_and_one_hot_sites_are_profiles_too() -> None:
    def quiz(x):
        right = pyro.param("a", torch.tensor([[0.2, 0.6], [0.7, 0.9]]), constraint=constraints.unit_interval)
        pick = pyro.param("b", torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("right", dist.Bernoulli(right[z]).to_event(1), obs=x[:, :2])
            pyro.sample("pick", dist.OneHotCategorical(pick[z]), obs=x[:, 2:])

    random = np.random.default_rng(0)
    x = np.column_stack([random.integers(0, 2, (100, 2)), np.eye(3)[random.integers(0, 3, 100)]])
    frame = pd.DataFrame(x, columns=["q1", "q2", "red", "green", "blue"])
    fit = zoo.fit(Pair(quiz), frame, max_iters=5, tol=0)
    figure = fit.plot("profiles")
    (table,) = tables(figure)
    np.testing.assert_allclose(table, torch.cat([fit.params["a"].T, fit.params["b"].T]))
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == ["q1 = 1", "q2 = 1", "pick = red", "= green", "= blue"]


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_are_bars_with_the_fitted_probabilities() -> None:
    fit = zoo.fit("poisson_mixture", "hasselblad_deaths", num_components=2)
    axes = fit.plot().axes[0]
    first, second, total = axes.lines
    counts = np.asarray(total.get_xdata(), dtype=float)
    pmfs = [
        float(w) * scipy.stats.poisson(float(r)).pmf(counts)
        for w, r in zip(fit.params["weights"], fit.params["rate"].flatten(), strict=True)
    ]
    np.testing.assert_allclose(first.get_ydata(), pmfs[0], rtol=1e-9)
    np.testing.assert_allclose(second.get_ydata(), pmfs[1], rtol=1e-9)
    np.testing.assert_allclose(total.get_ydata(), sum(pmfs), rtol=1e-9)
    assert np.sum(total.get_ydata()) == pytest.approx(1, abs=1e-3)
    observed = [162, 267, 271, 185, 111, 61, 27, 8, 3, 1]  # days with 0, 1, ..., 9 deaths
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights[:10], np.array(observed) / 1096)
    assert sum(heights[10:]) == 0


def test_a_wide_range_of_counts_is_binned_and_still_sums_to_1() -> None:
    x = np.random.default_rng(0).poisson([100, 400], (200, 2)).T.flatten()
    fit = zoo.fit("poisson_mixture", x, num_components=2)
    axes = fit.plot().axes[0]
    step = round(axes.patches[1].get_x() - axes.patches[0].get_x())
    assert step > 1
    assert sum(bar.get_height() for bar in axes.patches) * step == pytest.approx(1)
    assert np.sum(axes.lines[-1].get_ydata()) == pytest.approx(1, abs=0.02)
    assert f"bars of {step} counts" in axes.get_ylabel()


def test_a_table_of_counts_is_a_heat_map_of_rates() -> None:
    rates = np.array([[1, 5, 20.0], [8, 2, 3]])
    x = np.random.default_rng(0).poisson(np.repeat(rates, 100, axis=0))
    fit = zoo.fit("poisson_mixture", pd.DataFrame(x, columns=["cats", "dogs", "birds"]), num_components=2)
    figure = fit.plot()
    (table,) = tables(figure)
    np.testing.assert_allclose(table, fit.params["rate"])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["cats", "dogs", "birds"]
    assert figure.axes[0].texts[0].get_text() == f"{table[0, 0]:.2f}"


def test_of_a_multinomial_the_shares_of_its_columns_are_drawn() -> None:
    def topics(x):
        probs = pyro.param("probs", torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Multinomial(probs=probs[z], validate_args=False), obs=x)

    x = torch.tensor([[5, 2, 0], [6, 1, 1], [0, 2, 9], [1, 1, 4]])
    fit = zoo.fit(Pair(topics), x)
    figure = fit.plot("rates")
    np.testing.assert_allclose(tables(figure)[0], fit.params["probs"])
    assert "share of all counts" in texts(figure)


# --- bound and decomposition ------------------------------------------------------------------------------------------


def test_the_bound_its_gap_and_the_ends_of_the_restarts(generator) -> None:
    fit = zoo.fit("gaussian_mixture", own(generator, 0, 10, 100, 110, each=30), num_components=3, restarts=8)
    figure = fit.plot("bound")
    first, second, third = figure.axes
    np.testing.assert_allclose(first.lines[0].get_ydata(), fit.history)
    gap = (fit.history[-1] - fit.history[:-1]).numpy()
    np.testing.assert_allclose(second.lines[0].get_ydata(), gap[gap > 0])
    assert second.get_yscale() == "log"
    assert len(fit.mode_map) > 1
    assert [bar.get_width() for bar in third.patches] == [mode.count for mode in fit.mode_map]
    names = [f"{mode.bound:.2f}".replace("-", "\N{MINUS SIGN}") for mode in fit.mode_map]
    assert [label.get_text() for label in third.get_yticklabels()] == names
    assert len(zoo.fit("poisson_mixture", "hasselblad_deaths").plot("bound").axes) == 2  # of one start


def test_optima_that_cannot_be_trusted_are_marked(generator) -> None:
    modes = [Mode(-10.0 - m, 15 - m, 0.1 * m, m != 2, m == 14, {}) for m in range(15)]
    bounds = tuple(mode.bound for mode in modes for _ in range(mode.count))
    fit = zoo.fit("gaussian_mixture", own(generator, 0, 9), num_components=2)
    words = texts(dataclasses.replace(fit, mode_map=ModeMap(tuple(modes), bounds, failed=3)).plot("bound"))
    assert "120 starts ended: 15 optima; the best 12 of 15; 3 starts failed" in words
    assert " 13  not converged" in words
    last = dataclasses.replace(fit, mode_map=ModeMap((modes[14], modes[0]), (-24.0, -10.0)))
    assert " 1  degenerate" in texts(last.plot("bound"))
    assert "(degenerate)" in last.plot("clusters").get_suptitle()


@pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")
def test_a_fit_that_did_not_converge_says_so(generator) -> None:
    x = own(generator, 0, 4)
    for most in (0, 2):
        fit = zoo.fit("gaussian_mixture", x, num_components=2, max_iters=most)
        words = texts(fit.plot("bound"))
        assert "NOT met" in words
        assert "not converged" in words
    assert "the bound never moved" in texts(zoo.fit("gaussian_mixture", x, max_iters=0).plot("bound"))


@pytest.mark.parametrize(("name", "data"), [("gaussian_mixture", "iris"), ("latent_class", "carcinoma")])
def test_bars_of_elbo_and_kl_reach_the_evidence(name: str, data: Any) -> None:
    fit = zoo.fit(registered(name).factory(2), data)
    steps = fit.half_steps(5)
    after_e = [s for s in steps if s.moment == "after E"]
    after_m = [s for s in steps if s.moment == "after M"]
    figure = fit.plot("decomposition")
    assert len(figure.axes) == 4
    for t, axes in enumerate(figure.axes):
        shown = [after_e[t], after_m[t], after_e[t + 1]]
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        marks = [float(c.get_segments()[0][0, 1]) for c in axes.collections]
        for step, elbo, kl, mark in zip(shown, bars[::2], bars[1::2], marks, strict=True):
            assert elbo.get_y() == axes.get_ylim()[0]
            assert elbo.get_y() + elbo.get_height() == pytest.approx(step.elbo, rel=1e-12)
            assert kl.get_y() == pytest.approx(step.elbo, rel=1e-12)
            assert kl.get_height() == pytest.approx(step.kl, abs=1e-12)
            assert kl.get_y() + kl.get_height() == pytest.approx(step.log_evidence, rel=1e-12)
            assert mark == pytest.approx(step.log_evidence, rel=1e-12)
        assert shown[0].elbo < shown[1].elbo < shown[2].elbo  # the M-step raises the ELBO, the E-step raises it again
        assert shown[1].kl > 1e-6 > abs(shown[2].kl)
        low, high = axes.get_ylim()
        assert (shown[2].elbo - shown[0].elbo) / (high - low) > 0.6  # zoomed: the step fills the panel


def test_iterations_that_do_not_move_are_left_out(generator) -> None:
    fit = zoo.fit("gaussian_mixture", own(generator, 0), num_components=1)
    assert len(iterations(fit.half_steps(5))) == 1
    assert "no gap" in texts(fit.plot("decomposition"))


# --- fits without data ------------------------------------------------------------------------------------------------


def test_a_loaded_fit_draws_what_needs_no_rows_and_asks_for_them_otherwise(tmp_path, generator) -> None:
    x = torch.stack([own(generator, 0, 8), own(generator, 0, 8)], 1)
    fits = {
        "gaussian_mixture": zoo.fit("gaussian_mixture", x, num_components=2),
        "latent_class": zoo.fit("latent_class", "carcinoma"),
        "poisson_mixture": zoo.fit("poisson_mixture", "hasselblad_deaths"),
    }
    loaded = {name: zoo.load(fit.save(tmp_path / name)) for name, fit in fits.items()}
    for name, fit in loaded.items():
        assert texts(fit.plot("bound")) == texts(fits[name].plot("bound"))
        with pytest.raises(DataError, match="pass the data"):
            fit.plot("decomposition")
    assert texts(loaded["latent_class"].plot()) == texts(fits["latent_class"].plot())
    for name in ("gaussian_mixture", "poisson_mixture"):
        with pytest.raises(DataError, match="pass the data"):
            loaded[name].plot()
    assert texts(loaded["gaussian_mixture"].plot(data=x)) == texts(fits["gaussian_mixture"].plot())
