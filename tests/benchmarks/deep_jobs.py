"""A variational autoencoder beside a PyTorch loop written by hand, and beside Pyro's own SVI: the time of an epoch.

The same networks (784-400-20), optimizer, batches and bound on each side; what is done once is in neither.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from measure import Row, alternate, per_iteration
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional

from latentzoo import zoo

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


def epoch_of_vae(peer: str, target: float, rounds: int) -> Row:
    """Milliseconds of an epoch; beside the loop by hand the ratio is ours over theirs, at most the target."""
    x = images()
    encoder, decoder = networks()
    pair = zoo.create("vae", latent_dim=K, encoder=encoder, decoder=decoder)

    def ours(epochs: int):
        return zoo.fit(pair, x, epochs=epochs, batch_size=BATCH, tol=0, progress=False)

    other = by_hand if peer == "PyTorch by hand" else by_pyro
    mine, theirs = ours(2).history[-101:-1].mean() / N, sum(by_hand(x, 2)[-100:]) / 100
    assert abs(mine - theirs) < 0.01 * abs(theirs), (mine, theirs)
    a, b = alternate(
        lambda: per_iteration(ours, 1, 3), lambda: per_iteration(lambda epochs: other(x, epochs), 1, 3), rounds
    )
    job = f"VAE {D}-{H}-{K}, batch {BATCH}, an epoch of {N:,} rows"
    hand = peer == "PyTorch by hand"
    return Row(job, peer, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", a / b if hand else b / a, target, at_most=hand)


DEEP_JOBS = {
    "vae-by-hand": lambda rounds: epoch_of_vae("PyTorch by hand", 1.10, rounds),
    "vae-pyro": lambda rounds: epoch_of_vae("Pyro SVI.step", 1.25, rounds),
}
