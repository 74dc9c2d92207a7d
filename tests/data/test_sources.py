"""Rows that are read when they are asked for: memory maps, sparse matrices, loaders; and the devices they go to."""

import sys
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from latentzoo import Pair, em, svi, zoo
from latentzoo.inference.amortized import fit as deep
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.data import devices
from latentzoo.inference.data import streams as rows
from latentzoo.inference.data import structures as arrays
from latentzoo.inference.data.streams import read_whole, rows_of
from latentzoo.inference.nn.networks import mlp
from latentzoo.inference.svi.ascent import Ascent

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

DIGITS = (load_digits().data[:400] > 8).astype(np.float32)
IRIS = load_iris().data
SHORT = {"num_steps": 20, "tol": 0, "progress": False}
SMALL = {"hidden": (8,), **SHORT}


class Images(Dataset):
    """Rows with labels, as a person's own data set has them."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, place):
        return self.table[place], place % 10


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.from_numpy(DIGITS))


def mapped(folder, table, name="x.npy"):
    np.save(folder / name, table)
    return np.load(folder / name, mmap_mode="r")


def gaps_in(table, seed=0):
    out = np.where(np.random.default_rng(seed).random(table.shape) < 0.2, np.nan, table)
    out[:, 0] = table[:, 0]
    return out


SOURCES = {
    "a memory map": lambda folder: mapped(folder, DIGITS),
    "its path": lambda folder: mapped(folder, DIGITS) is not None and folder / "x.npy",
    "bytes": lambda folder: mapped(folder, DIGITS.astype(np.uint8)),
    "booleans": lambda folder: mapped(folder, DIGITS.astype(bool)),
    "the other byte order": lambda folder: mapped(folder, DIGITS.astype(">f8")),
    "columns first": lambda folder: mapped(folder, np.asfortranarray(DIGITS)),
    "rows of a memory map": lambda folder: mapped(folder, np.repeat(DIGITS, 2, axis=0))[::2],
    "CSR": lambda _: sp.csr_matrix(DIGITS),
    "COO": lambda _: sp.coo_array(DIGITS.astype(int)),
    "a data set": lambda _: Images(DIGITS),
    "a loader": lambda _: DataLoader(Images(torch.from_numpy(DIGITS)), batch_size=128, shuffle=True),
    "a loader of tensors": lambda _: DataLoader(TensorDataset(torch.from_numpy(DIGITS)), batch_size=128),
    "tensors": lambda _: TensorDataset(torch.from_numpy(DIGITS), torch.arange(400)),
    "a collate_fn": lambda _: DataLoader(
        Images(DIGITS), batch_size=128, collate_fn=lambda items: (torch.from_numpy(np.stack([x for x, _ in items])), 0)
    ),
}


@pytest.fixture(scope="module")
def in_memory():
    fit = zoo.fit("vae", DIGITS, validation=0.1, **SMALL)
    return fit, fit.score(), fit.embeddings(), fit.reconstruct(), fit.latents()["z"].sd, fit.generate(3)


@pytest.mark.parametrize("name", SOURCES)
def test_rows_from_anywhere_give_the_numbers_of_a_table_to_the_bit(name, in_memory, tmp_path):
    source = SOURCES[name](tmp_path)
    fit = zoo.fit("vae", source, validation=0.1, **SMALL)
    other, score, embeddings, reconstructed, sd, generated = in_memory
    assert isinstance(fit.data.values, torch.Tensor if name == "tensors" else rows.Rows)
    assert torch.equal(fit.history, other.history)
    assert all(torch.equal(fit.params[key], value) for key, value in other.params.items())
    assert torch.equal(fit.score(source), score)
    assert torch.equal(fit.score(), score)
    assert fit.embeddings(source).equals(embeddings)
    assert torch.equal(fit.latents(source)["z"].sd, sd)
    dense = (lambda x: x.toarray()) if name in ("CSR", "COO") else np.asarray
    np.testing.assert_array_equal(dense(fit.reconstruct(source)), reconstructed)
    np.testing.assert_array_equal(dense(fit.generate(3)), generated)
    np.testing.assert_array_equal(dense(fit.impute(source)), DIGITS)


def test_missing_cells_of_every_source_are_those_of_the_table(tmp_path):
    table = gaps_in(IRIS)
    found = zoo.fit("missing_data_vae", table, **SMALL)
    for source in (mapped(tmp_path, table), sp.csr_array(table), Images(table)):
        fit = zoo.fit("missing_data_vae", source, **SMALL)
        assert torch.equal(fit.history, found.history)
        filled = fit.impute(source)
        np.testing.assert_array_equal(filled.toarray() if sp.issparse(filled) else filled, found.impute(table))


def test_a_pair_of_ones_own_reads_rows_and_says_why_its_inference_was_picked(tmp_path):
    fit = zoo.fit(own_pair(4), mapped(tmp_path, IRIS), **SHORT)
    assert "a network, 'net'" in fit.reason
    assert torch.equal(fit.history, zoo.fit(own_pair(4), IRIS, **SHORT).history)


def own_pair(width):
    torch.manual_seed(0)
    net = mlp(2, (8,), width)

    def model(x):
        decode = pyro.module("net", net)
        scale = pyro.param("scale", torch.ones(width), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    return Pair(model)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_nothing_as_large_as_the_table_is_ever_made(tmp_path, monkeypatch):
    """Every tensor that torch makes is looked at, in training and after it."""
    table = gaps_in(np.random.default_rng(0).normal(size=(60_000, 10)).astype(np.float32))
    source = mapped(tmp_path, table)
    cells = 20_000
    for module, name in ((rows, "CELLS"), (rows, "DRAWN"), (arrays, "CHUNK")):
        monkeypatch.setattr(module, name, cells)
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(
                one.numel() for one in (out if isinstance(out, list | tuple) else [out]) if torch.is_tensor(one)
            )
            return out

    with Watch():
        fit = zoo.fit("missing_data_vae", source, validation=0.1, **SMALL)
        trained, made[:] = max(made), []
        fit.embeddings(source)
        embedded, made[:] = max(made), []
        fit.importance(source, num=1)
        scored = max(made)
    # 60,000 are positions of rows, and 120,000 the embeddings: the table has 600,000 cells
    assert len(table) <= trained <= 60_000
    assert embedded == 120_000
    assert scored <= 60_000
    assert fit.score(source[:5]).shape == (5,)


def test_what_is_measured_of_columns_by_pieces_is_what_numpy_says(tmp_path, monkeypatch):
    table = gaps_in(np.random.default_rng(0).normal([3.0, 0.0, -2.0, 9.0], [1.0, 5.0, 0.1, 2.0], (1000, 4)))
    monkeypatch.setattr(rows, "CELLS", 64)
    fit = zoo.fit(own_pair(4), mapped(tmp_path, table), **SHORT)
    np.testing.assert_allclose(fit.guide_parts["fixed/mean"], np.nanmean(table, 0), rtol=1e-5)
    np.testing.assert_allclose(fit.guide_parts["fixed/sd"], np.nanstd(table, 0), rtol=1e-5)


def test_starts_are_found_on_rows_spread_over_the_data_in_which_every_column_has_a_value(tmp_path, monkeypatch):
    table = np.arange(4000.0).reshape(1000, 4)
    table[:, 3] = np.nan
    table[[617, 900], 3] = 5.0, 7.0
    monkeypatch.setattr(rows, "CELLS", 40)
    found = rows.spread_rows(rows_of(mapped(tmp_path, table)))
    assert found[:, 0].tolist() == [4.0 * row for row in (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)]
    assert found[0, 3] == 5.0
    assert found[1:, 3].isnan().all()
    fit = zoo.fit("vae", mapped(tmp_path, table), likelihood="gaussian", covariance="fixed", **SMALL)
    assert torch.isfinite(fit.history).all()


def test_verbs_that_look_at_all_rows_at_once_say_so(tmp_path, monkeypatch):
    source = mapped(tmp_path, IRIS)
    fit = zoo.fit("linear_vae", source, **SHORT)
    assert fit.posterior("z").batch_shape == (150,)
    monkeypatch.setattr(rows, "WHOLE", 100)
    for verb in (lambda: fit.posterior("z"), lambda: fit.gaps(), lambda: fit.to_arviz()):
        with pytest.raises(DataError, match=r"looks at all rows at once, and these 150 x 4 cells.*pass some of the"):
            verb()
    assert fit.posterior("z", source[:20]).batch_shape == (20,)


# --- saving, going on -------------------------------------------------------------------------------------------------


def test_a_fit_of_a_memory_map_is_saved_loaded_and_resumed(tmp_path):
    source = mapped(tmp_path, DIGITS)
    options = {"hidden": (8,), "tol": 0, "learning_rate": 0.01}
    whole = zoo.fit("vae", source, num_steps=40, **options)
    half = {**options, "checkpoint": tmp_path / "run"}
    zoo.fit("vae", source, num_steps=25, **half)
    again = zoo.fit("vae", source, num_steps=40, resume=True, **half)
    assert torch.equal(whole.history, again.history)
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)
    other = mapped(tmp_path, 1 - DIGITS, "other.npy")
    with pytest.raises(OptionError, match="is of another fit, its data is"):
        zoo.fit("vae", other, num_steps=40, resume=True, **half)
    again.save(tmp_path / "saved")
    loaded = zoo.load(tmp_path / "saved")
    assert torch.equal(loaded.score(tmp_path / "x.npy"), whole.score())
    with pytest.raises(DataError, match="holds no data: pass the data"):
        loaded.score()


# --- drivers without networks -----------------------------------------------------------------------------------------


def test_drivers_without_networks_load_what_can_be_loaded(tmp_path):
    source = mapped(tmp_path, IRIS)
    options = {"num_components": 2, "max_iters": 5, "progress": False}
    expected = zoo.fit("gaussian_mixture", IRIS, **options)
    tensors = TensorDataset(torch.from_numpy(IRIS))
    for data in (source, sp.csr_array(IRIS), tensors, DataLoader(tensors, batch_size=50)):
        assert torch.equal(zoo.fit("gaussian_mixture", data, **options).history, expected.history)
    for inference in ("em", "svi"):
        with pytest.raises(DataError, match=r"loader, which only pairs with networks are fitted from.*torch\.stack"):
            zoo.fit("gaussian_mixture", Images(IRIS), num_components=2, inference=inference)
    with pytest.raises(DataError, match="only pairs with networks"):
        em(zoo.create("gaussian_mixture", num_components=2), Images(IRIS))
    by_gradient = {"inference": "svi", "num_components": 2, **SHORT}
    found = zoo.fit("gaussian_mixture", source, **by_gradient)
    assert torch.equal(found.history, zoo.fit("gaussian_mixture", IRIS, **by_gradient).history)
    with pytest.raises(DataError, match="only pairs with networks"):
        found.score(Images(IRIS))


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_the_batches_of_a_loader_are_as_large_as_it_says():
    def sizes(loader, **options):
        fit = zoo.fit("vae", loader, **SMALL, **options)
        return fit.history

    by_64 = sizes(TensorDataset(torch.from_numpy(DIGITS)), batch_size=64)
    assert torch.equal(sizes(DataLoader(Images(DIGITS), batch_size=64)), by_64)
    assert torch.equal(sizes(DataLoader(Images(DIGITS), batch_size=100), batch_size=64), by_64)
    assert torch.equal(sizes(DataLoader(Images(DIGITS))), sizes(DIGITS))  # a loader's own default is nobody's wish
    whole = sizes(DIGITS, batch_size=400)
    assert torch.equal(sizes(DataLoader(Images(DIGITS), batch_size=512)), whole)


def test_a_part_of_a_data_set_is_a_data_set():
    found = zoo.fit("vae", Subset(Images(DIGITS), range(100, 300)), **SMALL)
    assert torch.equal(found.history, zoo.fit("vae", DIGITS[100:300], **SMALL).history)


class Odd(Images):
    def __init__(self, items):
        super().__init__(items)

    def __getitem__(self, place):
        return self.table[place]


STRANGE = {
    "a stream": (Stream(), "a Stream that is only gone through in order.*write what it gives to a .npy file"),
    "a loader of a stream": (DataLoader(Stream(), batch_size=8), "a Stream that is only gone through in order"),
    "nothing": (Odd([]), "a Odd of no rows"),
    "widths": (Odd([torch.zeros(4)] * 20 + [torch.zeros(3)]), r"row 20 has shape \(3,\), row 0 has \(4,\)"),
    "a width later": (Odd([torch.zeros(4)] * 65536 + [torch.zeros(3)]), r"rows of shape \(3,\), expected \(4,\)"),
    "dicts": (Odd([{"x": 1.0}] * 3), "item 0 of the dataset is a dict, expected a row of numbers"),
    "words": (Odd([["a", "b"]] * 3), "row 0 holds <U1, expected numbers"),
    "ragged": (Odd([[[1.0], [1.0, 2.0]]] * 3), "row 0 holds parts of unequal lengths"),
    "no columns": (Odd([torch.zeros(0)] * 3), r"shape \(3, 0\), which has no columns"),
    "drawn rows": (
        DataLoader(Images(DIGITS), sampler=WeightedRandomSampler([1.0] * 400, 400)),
        "rows are drawn by a WeightedRandomSampler, expected one with shuffle=True or False",
    ),
    "own batches": (
        DataLoader(Images(DIGITS), batch_sampler=[[0, 1], [2, 3]]),
        "rows are drawn by a list",
    ),
    "a dict of a batch": (
        DataLoader(Images(DIGITS), batch_size=8, collate_fn=lambda items: {"x": items}),
        "the loader's collate_fn gives a dict, expected a tensor of rows",
    ),
    "fewer than asked": (
        DataLoader(Images(DIGITS), batch_size=8, collate_fn=lambda items: torch.zeros(3, 64)),
        "collate_fn makes 3 rows of 1 items",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_loader_that_cannot_be_used_is_refused_in_plain_words(name):
    data, words = STRANGE[name]
    with pytest.raises(DataError, match=words):
        zoo.fit("vae", data, likelihood="gaussian", **SMALL)


# --- bad input --------------------------------------------------------------------------------------------------------


def late(value, row=350, column=5):
    table = DIGITS.copy()
    table[row, column] = value
    return table


def kinds_of(table, folder):
    return {"map": mapped(folder, table), "sparse": sp.csr_matrix(table), "loader": Images(table)}


@pytest.mark.parametrize("kind", ["map", "sparse", "loader"])
def test_cells_that_cannot_be_are_named_by_row_and_column(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CELLS", 6400)
    with pytest.raises(DataError, match="row 350, column 5, holds 7, which Bernoulli cannot take: expected 0 or 1"):
        zoo.fit("vae", kinds_of(late(7), tmp_path)[kind], **SMALL)
    with pytest.raises(DataError, match=r"met inf in column 5, row 350"):
        zoo.fit("vae", kinds_of(late(np.inf), tmp_path)[kind], **SMALL)
    empty = late(np.nan, column=slice(None))
    with pytest.raises(DataError, match="row 350 has no observed cell"):
        zoo.fit("vae", kinds_of(empty, tmp_path)[kind], **SMALL)
    with pytest.raises(DataError, match="only missing cells in column 5"):
        zoo.fit("vae", kinds_of(late(np.nan, row=slice(None)), tmp_path)[kind], **SMALL)
    with pytest.raises(OptionError, match="batch_size: met 500, expected a whole number from 1 to 400"):
        zoo.fit("vae", kinds_of(DIGITS, tmp_path)[kind], batch_size=500, **SMALL)
    fit = zoo.fit("vae", DIGITS, **SMALL)
    with pytest.raises(DataError, match=r"met inf in column 5, row 350"):
        fit.embeddings(kinds_of(late(np.inf), tmp_path)[kind])
    with pytest.raises(DataError, match="row 350, column 5, holds 7"):
        fit.score(kinds_of(late(7), tmp_path)[kind])
    with pytest.raises(DataError, match="met 10 columns, expected 64 columns as in training"):
        fit.score(kinds_of(DIGITS[:, :10], tmp_path)[kind])
    assert fit.score(kinds_of(empty, tmp_path)[kind])[350] == 0


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.array([["a", "b"], ["c", "d"]]), "dtype <U1, expected numbers"),
        (np.ones((3, 2), complex), "complex128, expected real numbers"),
        (np.zeros((3, 2), [("a", "f4")]), "dtype .*expected numbers"),
        (np.array(5.0), "single number"),
    ],
)
def test_memory_maps_of_anything_but_numbers_are_refused(table, words, tmp_path):
    with pytest.raises(DataError, match=words):
        zoo.fit("vae", mapped(tmp_path, table), likelihood="gaussian")


def test_codes_in_a_memory_map_are_those_of_the_labels_of_training(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"size": IRIS[:, 0], "kind": np.array(["a", "b", "c"])[np.arange(150) % 3]})
    fit = zoo.fit("vae", frame, likelihood="mixed", **SHORT)
    codes = np.column_stack([IRIS[:, 0], np.arange(150) % 3])
    assert fit.embeddings(mapped(tmp_path, codes)).equals(fit.embeddings(frame))
    codes[7, 1] = 3
    with pytest.raises(DataError, match=r"column 'kind' holds 3\.0, expected codes 0 to 2"):
        fit.embeddings(mapped(tmp_path, codes))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused(tmp_path):
    absent = "cuda" if not torch.cuda.is_available() else "hpu"
    for device in (absent, "moon", ["cpu"]):
        with pytest.raises(OptionError, match=r"device: met .*which torch cannot use here; give 'cpu'"):
            zoo.fit("vae", DIGITS, device=device)
    here = zoo.fit("vae", mapped(tmp_path, DIGITS), device="cpu", **SMALL)
    assert torch.equal(here.history, zoo.fit("vae", DIGITS, device=torch.device("cpu"), **SMALL).history)


@contextmanager
def elsewhere(story, values, training=False):
    """`installed` for the meta device, to which weights that exist cannot be moved: others stand in for them."""
    out = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    kept = []
    for name, network in story.networks.items():
        for place, part in network.named_modules():
            for key, weight in list(part._parameters.items()):
                kept.append((part._parameters, key, weight))
                full = f"{name}$$${'.'.join(filter(None, [place, key]))}"
                part._parameters[key] = out[full] = nn.Parameter(out[full].detach())
    try:
        yield out
    finally:
        for table, key, weight in kept:
            table[key] = weight


class Two(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Stepped(Exception):
    """One step has been taken."""


@pytest.mark.parametrize("objective", ["elbo", "dreg"])
@pytest.mark.parametrize(
    ("kind", "free", "lies"),
    [
        ("table", 1e9, "Tensor"),
        ("table", 100, "Rows"),
        ("map", 1e9, "Tensor"),
        ("map", 100, "Rows"),
        ("loader", 1e9, "Rows"),
    ],
)
def test_all_that_a_step_takes_is_on_the_device(kind, free, lies, objective, tmp_path, monkeypatch):
    """On torch's meta device, which has shapes and no numbers: two devices in one operation are an error there too.

    Data move once where they fit, and by batch otherwise.
    """

    def run(ascent, *_):
        batch, _ = ascent.batch(ascent.batches.next(), 0)
        loss = ascent.steps.loss(batch)
        loss.backward()
        places = [loss, *ascent.leaves.values(), *(leaf.grad for leaf in ascent.leaves.values())]
        assert {tensor.device.type for tensor in places} == {"meta"}
        assert batch.rows.device.type == "meta"
        assert type(ascent.steps.loss.__self__.data).__name__ == lies
        raise Stepped

    monkeypatch.setattr(
        sys.modules["latentzoo.inference.drivers.svi"], "check_device", lambda device, *_: torch.device(device)
    )
    monkeypatch.setattr(deep, "installed", elsewhere)
    monkeypatch.setattr(Ascent, "run", run)
    monkeypatch.setattr(devices, "free_bytes", lambda _: free)
    data = {"table": IRIS, "map": mapped(tmp_path, IRIS), "loader": Images(IRIS)}[kind]
    with pytest.raises(Stepped):
        svi(own_pair(4), data, device="meta", objective=objective, batch_size=50, validation=0.2, weights=np.ones(150))
    assert torch.get_default_device().type == "cpu"


def test_rows_moved_by_pieces_are_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CELLS", 64)
    table = rows_of(mapped(tmp_path, IRIS))
    assert torch.equal(read_whole(table, table.dtype, torch.device("cpu")), torch.from_numpy(IRIS))
    by_batch = devices.place(torch.from_numpy(IRIS), torch.device("cpu"))
    assert isinstance(by_batch, torch.Tensor)
    monkeypatch.setattr(devices, "free_bytes", lambda _: 0)
    lazily = devices.place(torch.from_numpy(IRIS), torch.device("meta"))
    assert arrays.slice_rows(lazily, torch.tensor([3, 1])).device.type == "meta"
    with pytest.raises(OptionError, match=r"'meta' has no room for the .* GiB of the data, and data of several"):
        devices.place(Two(torch.zeros(5), torch.zeros(5, 2)), torch.device("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("free", [1e9, 0])
def test_a_fit_on_a_gpu_is_as_good_as_one_on_the_cpu(free, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda _: free)
    source = mapped(tmp_path, IRIS)
    options = {"num_steps": 400, "tol": 0, "learning_rate": 0.02, "batch_size": 50}
    here, there = (zoo.fit("linear_vae", source, device=device, **options) for device in ("cpu", "cuda"))
    assert all(value.device.type == "cpu" for value in (*there.params.values(), there.history))
    assert float(there.score(source).mean()) == pytest.approx(float(here.score(source).mean()), abs=0.1)
    kept = {**options, "device": "cuda", "checkpoint": tmp_path / "run"}
    zoo.fit("linear_vae", source, **{**kept, "num_steps": 250})
    assert torch.equal(zoo.fit("linear_vae", source, resume=True, **kept).history, there.history)
