"""A variational autoencoder beside a PyTorch loop written by hand, and beside Pyro's own SVI: the time of an epoch.

The same networks (784-400-20), optimizer, batches and bound on each side; what is done once is in neither. And the
rows of a file embedded, beside the encoder alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from measure import Row, alternate, per_iteration, seconds
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional

from latentzoo import Fit, zoo
from latentzoo.inference.posterior.amortized import HELD

N, D, H, K, BATCH = 12_800, 784, 400, 20, 128
FLOOR = 1e-4


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 2 * K))
    return encoder, nn.Sequential(nn.Linear(K, H), nn.ReLU(), nn.Linear(H, D))


def images() -> Tensor:
    return (torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.2).float()


def by_hand(x: Tensor, epochs: int) -> list[float]:
    """What a person would write: fused Adam, batches drawn anew for each epoch."""
    encoder, decoder = networks()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    bounds = []
    for _ in range(epochs):
        for rows in torch.randperm(N).split(BATCH):
            batch = x[rows]
            loc, raw = encoder(batch).chunk(2, -1)
            scale = functional.softplus(raw) + FLOOR
            out = decoder(loc + scale * torch.randn_like(loc))
            kl = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum()
            loss = (functional.binary_cross_entropy_with_logits(out, batch, reduction="sum") + kl) / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bounds.append(-loss.item())
    return bounds


def by_pyro(x: Tensor, epochs: int) -> None:
    encoder, decoder = networks()

    def model(batch: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=batch)

    def guide(batch: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(batch)):
            loc, raw = encoder(batch).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, functional.softplus(raw) + FLOOR).to_event(1))

    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        for _ in range(epochs):
            for rows in torch.randperm(N).split(BATCH):
                svi.step(x[rows])


def epoch_of_vae(peer: str, target: float, rounds: int, compile: bool | None = None) -> Row:
    """Milliseconds of an epoch; beside the loop by hand the ratio is ours over theirs, at most the target.

    What is done once (reading, recording, compiling) stands in both of the runs whose difference is taken.
    """
    x = images()
    encoder, decoder = networks()
    pair = zoo.create("vae", latent_dim=K, encoder=encoder, decoder=decoder)

    def ours(epochs: int):
        return zoo.fit(pair, x, epochs=epochs, batch_size=BATCH, tol=0, progress=False, compile=compile)

    other = by_hand if peer == "PyTorch by hand" else by_pyro
    mine, theirs = ours(2).history[-101:-1].mean() / N, sum(by_hand(x, 2)[-100:]) / 100
    assert abs(mine - theirs) < 0.01 * abs(theirs), (mine, theirs)
    # short turns, and many: the machine's speed changes by the minute
    many, rounds = (21, rounds) if compile else (3, 3 * rounds)
    a, b = alternate(
        lambda: per_iteration(ours, 1, many), lambda: per_iteration(lambda epochs: other(x, epochs), 1, many), rounds
    )
    job = f"VAE {D}-{H}-{K}, batch {BATCH}, an epoch of {N:,} rows{', compile=True' if compile else ''}"
    hand = peer == "PyTorch by hand"
    return Row(job, peer, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", a / b if hand else b / a, target, at_most=hand)


ROWS, WIDE, CODE = 1_000_000, 64, 2  # of the file


def write_rows(path: Path) -> None:
    """A table that is never in memory as a whole."""
    table = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, WIDE))
    random = np.random.default_rng(0)
    for start in range(0, ROWS, 50_000):
        table[start : start + 50_000] = random.standard_normal((50_000, WIDE), dtype=np.float32)
    table.flush()


def fitted(path: Path) -> Fit:
    few = np.load(path, mmap_mode="r")[:2000]
    return zoo.fit("vae", few, likelihood="gaussian", latent_dim=CODE, num_steps=50, tol=0, progress=False)


def embedding(target: float, rounds: int) -> Row:
    """Seconds for all rows: ours as a table of the means, theirs the encoder's outputs, in the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        write_rows(path)
        fit = fitted(path)
        encoder = nn.Sequential(nn.Linear(WIDE, 128), nn.ReLU(), nn.Linear(128, 2 * CODE))
        held = {name: value for name, value in fit.guide_parts.items() if "encoder$$$" in name}
        encoder.load_state_dict({name.rpartition("$")[2]: value for name, value in held.items()})

        def theirs() -> Tensor:
            table = np.load(path, mmap_mode="r")
            with torch.no_grad():
                batches = (torch.from_numpy(table[start : start + HELD]) for start in range(0, ROWS, HELD))
                return torch.cat([encoder(batch) for batch in batches])

        assert np.array_equal(fit.embeddings(path).to_numpy(), theirs()[:, :CODE].double().numpy())
        a, b = alternate(lambda: seconds(lambda: fit.embeddings(path)), lambda: seconds(theirs), rounds)
    job = f"embedding {ROWS:,} rows x {WIDE} columns from a memory map, encoder {WIDE}-128-{2 * CODE}"
    return Row(job, "torch forward alone", f"{a:.2f} s", f"{b:.2f} s", a / b, target, at_most=True)


MEMORY = """
import re, sys, threading
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
sys.path.insert(0, sys.argv[1])
from deep_jobs import fitted
def held():  # by the program itself: pages of the file belong to the system, which takes them back
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
path = Path(sys.argv[2])
fit = fitted(path)
fit.embeddings()
before, most, done = held(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.001):
        most = max(most, held())
thread = threading.Thread(target=watch)
thread.start()
fit.embeddings(path)
done.set()
thread.join()
print(most - before)
"""


def embedding_memory(target: float) -> Row:
    """Memory that embedding adds to the process: a batch with what the encoder makes of it, and the embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        write_rows(path)
        size = path.stat().st_size
        command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(path), str(torch.get_num_threads())]
        added = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    job = f"peak memory of the same, above the process before (embeddings {ROWS * CODE * 8 / 2**20:.0f} MiB of it)"
    return Row(
        job, "the data", f"{added / 2**20:.0f} MiB", f"{size / 2**20:.0f} MiB", added / size, target, at_most=True
    )


DEEP_JOBS = {
    "vae-by-hand": lambda rounds: epoch_of_vae("PyTorch by hand", 1.10, rounds),
    "vae-pyro": lambda rounds: epoch_of_vae("Pyro SVI.step", 1.25, rounds),
    "vae-compiled": lambda rounds: epoch_of_vae("PyTorch by hand", 1.0, rounds, compile=True),
    "embedding-map": lambda rounds: embedding(1.3, rounds),
    "embedding-memory": lambda rounds: embedding_memory(0.3),
}
