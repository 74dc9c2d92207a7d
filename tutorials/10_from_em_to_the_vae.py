# %% [markdown]
# # 10. From EM to the variational autoencoder
#
# Tutorial 2 made EM out of one identity, which holds for every $q$ and every parameter $\theta$,
#
# $$\log p_\theta(x) = \mathrm{ELBO}(q, \theta) + \mathrm{KL}\big(q(z) \,\|\, p_\theta(z \mid x)\big).$$
#
# The E-step closed the gap: it set $q$ to the posterior. That takes a posterior which can be written down. Let a neural
# network stand between $z$ and $x$, and it cannot. This tutorial keeps the identity and the bound, and changes three
# things, one after the other:
#
# 1. $q$ is a normal distribution, and comes as near to the posterior as it can: the gap stays open a little;
# 2. its mean and its standard deviation are climbed to by gradient, through draws: the reparameterization trick;
# 3. a second network computes them from $x$, for all rows at once: the E-step has become a function.
#
# What comes out is the variational autoencoder (VAE). It is written here in plain PyTorch first, where each line of the
# mathematics is a line of code, and by the library afterwards.
#
# Sources: Kingma and Welling (2014), *Auto-Encoding Variational Bayes*, ICLR. Rezende, Mohamed and Wierstra (2014),
# *Stochastic Backpropagation and Approximate Inference in Deep Generative Models*, ICML. Cremer, Li and Duvenaud
# (2018), *Inference Suboptimality in Variational Autoencoders*, ICML.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional

from latentzoo import zoo
from latentzoo.inference.data import load_bundled
from latentzoo.inference.data.batches import Batches

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#C4C8CC"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


def log_normal(value, mean, sd):
    """Log density of a normal distribution, of each number."""
    return -0.5 * ((value - mean) / sd) ** 2 - torch.log(torch.as_tensor(sd)) - 0.5 * math.log(2 * math.pi)


# %% [markdown]
# ## A posterior that nobody can write down
#
# Three hundred points lie along a bent line in the plane. One number for each point should do: where on the line it is.
#
# $$z_n \sim \mathcal{N}(0, 1), \qquad x_n \mid z_n \sim \mathcal{N}\big(f_\theta(z_n), \; \sigma^2 I\big),$$
#
# and $f_\theta$ is a network with one input and two outputs. In tutorial 9 it was the linear map $W z + \mu$, and all
# was known in closed form. With a network it is not: $z$ goes through a $\tanh$ before it is squared.
#
# One number can still be summed out, on a grid. So here, and only here, EM can be run as it stands: the E-step is a
# table of 161 probabilities for each row, and the M-step takes a few steps of gradient. Each further latent number
# would multiply the grid by 161. It is done once, to know what is right.

# %%
N, GRID = 300, 161
random = torch.Generator().manual_seed(0)
angle = 4.2 * torch.rand(N, generator=random) - 0.5
bent = torch.stack([angle.cos(), angle.sin()], 1) + 0.12 * torch.randn(N, 2, generator=random)
z_grid = torch.linspace(-4, 4, GRID).unsqueeze(1)
STEP = float(z_grid[1] - z_grid[0])


class Curve(nn.Module):
    """f, from one number to a point of the plane, and the noise about it."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 2))
        self.log_sd = nn.Parameter(torch.tensor(-0.7))

    def log_likelihood(self, x, z):
        """log p(x | z) of points and latents with any leading shape."""
        return log_normal(x, self.f(z), self.log_sd.exp()).sum(-1)

    def log_joint(self, x):
        """log p(x_n, z_g) of each point at each place of the grid, with the width of a cell: (N, GRID)."""
        prior = log_normal(z_grid, 0.0, 1.0).squeeze(1) + math.log(STEP)
        return prior + self.log_likelihood(x.unsqueeze(1), z_grid)


def network(build, seed):
    """A network whose weights come from a seed of their own: the generator of others is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


exact = network(Curve, 0)
optimizer = torch.optim.Adam(exact.parameters(), lr=0.02)
by_em = []
for _ in range(250):
    with torch.no_grad():  # E-step: the posterior, on the grid
        joint = exact.log_joint(bent)
        posterior = joint.softmax(1)
        by_em.append(float(joint.logsumexp(1).mean()))
    for _ in range(4):  # M-step: up the expected log density, a little
        optimizer.zero_grad()
        (-(posterior * exact.log_joint(bent)).sum(1).mean()).backward()
        optimizer.step()
print(f"log p(x) of a point: {by_em[0]:.3f} at the start, {by_em[-1]:.3f} after {len(by_em)} iterations of EM")
print(f"noise {exact.log_sd.exp().item():.3f}; the points were made with 0.12")
assert by_em[-1] > by_em[0] + 1
assert abs(exact.log_sd.exp().item() - 0.12) < 0.03

# %% [markdown]
# ## The gradient of an expectation
#
# Without the grid there is only the bound. For one row, with $q(z) = \mathcal{N}(m, s^2)$,
#
# $$\mathrm{ELBO}(m, s) = E_q[\log p_\theta(x \mid z)] -
# \mathrm{KL}\big(\mathcal{N}(m, s^2) \,\|\, \mathcal{N}(0, 1)\big), \qquad
# \mathrm{KL} = \tfrac12 (s^2 + m^2 - 1) - \log s.$$
#
# The divergence is known. The expectation can be estimated by draws; but its *gradient*? The numbers $m$ and $s$ that
# we want to move are those of the distribution that is drawn from, and a draw has no slope. There are two ways out.
#
# - **Score function.** $\nabla E_q[g(z)] = E_q[g(z) \, \nabla \log q(z)]$ is an expectation again. It takes no slope of
#   $g$, so it serves discrete latents too. It learns of $g$ only by trying.
# - **Reparameterization.** Draw $\varepsilon \sim \mathcal{N}(0, 1)$, which depends on nothing, and set
#   $z = m + s \varepsilon$. Now $z$ is a function of $m$ and $s$, and so
#   $\nabla E_\varepsilon[g(m + s \varepsilon)] = E_\varepsilon[\nabla g(m + s \varepsilon)]$: the chain rule goes
#   through the draw. Each draw brings the slope of $g$, which says where to go.
#
# Both are right on average. How much do they scatter? Take one point of the data, the curve that EM has found, and a
# $q$ that has not arrived yet. The true gradient comes from a sum over the grid.

# %%
row = bent[7]
m, s = torch.tensor(0.5, requires_grad=True), torch.tensor(0.4, requires_grad=True)


def divergence(m, s):
    """KL of N(m, s^2) from N(0, 1)."""
    return 0.5 * (s**2 + m**2 - 1) - s.log()


def g(z):
    return exact.log_likelihood(row, z.unsqueeze(-1))


fine = torch.linspace(-4, 4, 4001)  # of epsilon
weight = log_normal(fine, 0.0, 1.0).softmax(0)
truth = torch.autograd.grad((weight * g(m + s * fine)).sum() - divergence(m, s), (m, s))

DRAWS = 4000
of_divergence = torch.stack(torch.autograd.grad(divergence(m, s), (m, s)))
epsilon = torch.randn(DRAWS, generator=random)
m_each, s_each = m.detach().expand(DRAWS).requires_grad_(), s.detach().expand(DRAWS).requires_grad_()
pathwise = torch.stack(torch.autograd.grad(g(m_each + s_each * epsilon).sum(), (m_each, s_each)), 1) - of_divergence
with torch.no_grad():
    slope_of_log_q = torch.stack([epsilon / s, (epsilon**2 - 1) / s], 1)
    score = g(m + s * epsilon).unsqueeze(1) * slope_of_log_q - of_divergence

for name, estimates in (("score function", score), ("reparameterization", pathwise)):
    mean, sd = estimates.mean(0), estimates.std(0)
    error = sd / DRAWS**0.5
    for k, number in enumerate("ms"):
        print(
            f"{name:18} d/d{number}: {mean[k]:8.2f} +- {error[k]:.2f}, exact {truth[k]:8.2f}; sd of a draw {sd[k]:7.2f}"
        )
        assert abs(mean[k] - truth[k]) < 4 * error[k]
needed = ((score.std(0) / pathwise.std(0)) ** 2).detach()
print(f"draws that the score function needs for one of the other: {needed[0]:.0f} for m, {needed[1]:.0f} for s")
assert needed.min() > 5

figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for k, (panel, number) in enumerate(zip(panels, ("m", "s"), strict=True)):
    low, high = score[:, k].quantile(torch.tensor([0.01, 0.99])).tolist()
    bins = torch.linspace(low, high, 90).tolist()
    panel.hist(score[:, k].tolist(), bins, density=True, color=ORANGE, alpha=0.55, label="score function")
    panel.hist(pathwise[:, k].tolist(), bins, density=True, color=BLUE, alpha=0.65, label="reparameterization")
    panel.axvline(
        float(truth[k]), color="black", linewidth=1.2, linestyle="--", label="exact gradient, the mean of both"
    )
    panel.set(xlabel=rf"estimate of $\partial\,$ELBO$\,/\,\partial {number}$ from one draw", yticks=[])
    panel.spines[["top", "right", "left"]].set_visible(False)
panels[0].set_title(f"{DRAWS} estimates of one gradient", loc="left")
panels[1].legend(frameon=False)
save(figure, "10_gradients")

# %% [markdown]
# ## The E-step becomes a network
#
# Three hundred rows have three hundred pairs $(m_n, s_n)$. One could climb each of them after each step of $\theta$,
# and again from nothing for a row that comes tomorrow. But rows that are near each other have posteriors that are near
# each other, so $(m_n, s_n)$ should be a function of $x_n$, and functions can be learned. The **encoder** is a
# network $x \mapsto (m, s)$ with weights $\phi$, the **decoder** is $f_\theta$, and both climb the one bound
#
# $$\sum_n E_{\varepsilon}\big[\log p_\theta(x_n \mid m_\phi(x_n) + s_\phi(x_n) \, \varepsilon)\big]
#     - \mathrm{KL}\big(q_\phi(z \mid x_n) \,\|\, p(z)\big).$$
#
# There are no E and M any more: each step moves both arguments of the bound a little. This is all of it:


# %%
def encode(network, x):
    """Means and standard deviations of q, a half of the outputs each."""
    m, raw = network(x).chunk(2, -1)
    return m, functional.softplus(raw) + 1e-4  # positive


learned = network(Curve, 0)  # the start that EM had
encoder = network(lambda: nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)), 1)
optimizer = torch.optim.Adam([*learned.parameters(), *encoder.parameters()], lr=0.02)
by_vae = []  # the bound, and log p(x), which only the grid knows
for step in range(1000):
    m, s = encode(encoder, bent)
    z = m + s * torch.randn(N, 1, generator=random)
    bound = learned.log_likelihood(bent, z) - divergence(m, s).sum(-1)
    optimizer.zero_grad()
    (-bound.mean()).backward()
    optimizer.step()
    if step % 4 == 0:
        with torch.no_grad():
            by_vae.append((bound.mean().item(), learned.log_joint(bent).logsumexp(1).mean().item()))
bounds, evidence = zip(*by_vae, strict=True)
settled = sum(bounds[-50:]) / 50
print(f"EM on the grid: log p(x) {by_em[-1]:.3f}")
print(f"VAE:            log p(x) {evidence[-1]:.3f}, bound {settled:.3f}")
assert settled < evidence[-1]  # it is a bound
assert evidence[-1] > by_em[-1] - 0.15  # and it leads to nearly the same place

# %% [markdown]
# The gap at the right of the next picture is the mean divergence of $q$ from the posterior. It does not close, and it
# has a price: the VAE climbs the bound, not the likelihood, so it prefers curves whose posteriors are nearly normal.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(1, 1.25))
left.plot(*bent.T, "o", color=GREY, markersize=4, zorder=0)
inner = z_grid[(z_grid.abs() < 2.4).squeeze(1)]
for title, curve, shade in (("EM on the grid", exact, GREEN), ("VAE", learned, BLUE)):
    with torch.no_grad():
        left.plot(*curve.f(inner).T, color=shade, linewidth=2.5, label=title)
        ticks = curve.f(torch.arange(-2.0, 3).unsqueeze(1))
    left.plot(*ticks.T, "o", color=shade, markersize=7, markeredgecolor="white")
with torch.no_grad():
    for z, (a, b) in zip(range(-2, 3), ticks.tolist(), strict=True):  # towards the middle of the bend
        left.annotate(f"{z}", (a, b), (0.72 * a, 0.72 * b), color=BLUE, ha="center", va="center", fontsize=10)
left.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", xlim=(-1.5, 1.5), ylim=(-0.9, 1.3))
left.set_title("The points, and $f(z)$ for $z$ from $-2.4$ to 2.4", loc="left")
left.legend(frameon=False, loc="lower center", borderaxespad=0)
steps = range(0, 1000, 4)
right.plot(steps, by_em, color=GREEN, linewidth=2.5, label=r"EM on the grid, $\log p(x)$")
right.plot(steps, evidence, color=BLUE, linewidth=2, label=r"VAE, $\log p(x)$ by the grid")
right.plot(steps, bounds, color=ORANGE, linewidth=0.8, label="VAE, the bound (one draw a row)")
right.set(xlabel="steps of the decoder", ylabel="nats for a point, mean", ylim=(by_em[-1] - 1.6, by_em[-1] + 0.2))
right.set_title("The bound stays below the likelihood", loc="left")
right.legend(frameon=False, loc="lower right")
save(figure, "10_curve")

# %% [markdown]
# ## What the gap is made of
#
# The bound of a row can fall short for two reasons. No normal distribution is the posterior: the *approximation gap*.
# And the encoder does not give the best normal for this row: the *amortization gap*. To tell them apart, climb $m$ and
# $s$ for each row by themselves, with the decoder as it is, and let the grid say what the posterior is.

# %%
free_m, free_s = (value.detach().clone() for value in encode(encoder, bent))
free_raw = torch.log(torch.expm1(free_s))
for value in (free_m, free_raw):
    value.requires_grad_()
nodes = torch.linspace(-5, 5, 61)  # of epsilon, for bounds without noise
node_weight = log_normal(nodes, 0.0, 1.0).softmax(0)


def exact_bound(m, s):
    """The bound of each row, the expectation by a sum over epsilon."""
    z = m + s * nodes  # (N, 61)
    return learned.log_likelihood(bent.unsqueeze(1), z.unsqueeze(-1)) @ node_weight - divergence(m, s).squeeze(1)


optimizer = torch.optim.Adam([free_m, free_raw], lr=0.03)
for _ in range(300):
    optimizer.zero_grad()
    (-exact_bound(free_m, functional.softplus(free_raw)).sum()).backward()
    optimizer.step()
with torch.no_grad():
    m, s = encode(encoder, bent)
    amortized = exact_bound(m, s)
    best = exact_bound(free_m, functional.softplus(free_raw))
    joint = learned.log_joint(bent)
    log_p = joint.logsumexp(1)
print(f"log p(x)                      {log_p.mean():.4f}")
print(f"bound, each row its own q     {best.mean():.4f}   approximation gap {(log_p - best).mean():.4f}")
print(f"bound, the encoder's q        {amortized.mean():.4f}   amortization gap  {(best - amortized).mean():.4f}")
assert (log_p - best).min() > -1e-3
assert (best - amortized).mean() > 0
assert (log_p - amortized).mean() < 0.3

# %% [markdown]
# Three rows, from the one where the encoder does best to the one where it does worst. The grey area is the posterior.

# %%
order = (log_p - amortized).argsort()
line = torch.linspace(-4, 4, 1601)
figure, panels = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
for panel, n, title in zip(
    panels, (order[0], order[N // 2], order[-1]), ("the best row", "a middling row", "the worst row"), strict=True
):
    with torch.no_grad():
        log_joint = log_normal(line, 0.0, 1.0) + learned.log_likelihood(bent[n], line.unsqueeze(1))
    density = (log_joint - log_p[n]).exp()
    panel.fill_between(line, density, color=GREY, linewidth=0, label=r"posterior $p(z \mid x_n)$")
    own = functional.softplus(free_raw[n]).item()
    for center, width, shade, label in (
        (free_m[n].item(), own, GREEN, "the best normal"),
        (m[n].item(), s[n].item(), ORANGE, "the encoder's"),
    ):
        panel.plot(line, log_normal(line, center, width).exp(), color=shade, linewidth=2, label=label)
    seen = line[(density > 0.01 * density.max()) | (log_normal(line, m[n], s[n]) > math.log(0.02))]
    panel.set(xlabel="z", yticks=[], xlim=(float(seen[0]) - 0.1, float(seen[-1]) + 0.1), ylim=(0, None))
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_title(f"{title}: {log_p[n] - amortized[n]:.3f} nats lost", loc="left", fontsize=11)
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
save(figure, "10_posteriors")

# %% [markdown]
# ## Digits by hand: the loss is reconstruction plus divergence
#
# Now real data, where no grid helps: 1797 handwritten digits of 8 x 8 pixels, with ink or without. The likelihood of a
# pixel is Bernoulli, and minus its logarithm is the cross-entropy that every classifier is trained with. So what is
# minimized, minus the bound, has two parts,
#
# $$\underbrace{-E_q[\log p_\theta(x \mid z)]}_{\text{reconstruction}} +
#     \underbrace{\mathrm{KL}\big(q_\phi(z \mid x) \,\|\, p(z)\big)}_{\text{what } z \text{ tells of } x},$$
#
# both in nats. The first is what it costs to send a digit to somebody who knows $z$; the second what it costs to send
# $z$, as precisely as $q$ knows it. An autoencoder has the first part alone, so its code is free, and it may lay the
# digits out in any way. The second part keeps the codes near the prior, so that draws from the prior decode to digits.
#
# The networks have 128 hidden units. Two latent numbers are few, but they can be drawn.

# %%
digits = load_bundled("binary_digits")
images = torch.tensor(digits.to_numpy(), dtype=torch.float32)
label = torch.tensor(load_bundled("labelled_digits")["digit"].to_numpy())
D, HIDDEN, K, EPOCHS, BATCH, SEED = 64, 128, 2, 60, 128, 0


def encoder_and_decoder():
    """The two networks, with the same starting weights each time."""
    return network(
        lambda: (
            nn.Sequential(nn.Linear(D, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * K)),
            nn.Sequential(nn.Linear(K, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, D)),
        ),
        seed=1,
    )


with torch.random.fork_rng():
    encoder, decoder = encoder_and_decoder()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=4e-3, fused=True)
    batches = Batches(len(images), BATCH, SEED + 1)  # which rows each batch has
    torch.manual_seed(SEED)
    parts = []  # reconstruction and divergence of each step
    for _ in range(EPOCHS * (len(images) // BATCH)):
        x = images[batches.next()]
        m, s = encode(encoder, x)
        z = m + s * torch.randn_like(m)
        reconstruction = functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / BATCH
        kl = divergence(m, s).sum() / BATCH
        optimizer.zero_grad()
        (reconstruction + kl).backward()
        optimizer.step()
        parts.append((reconstruction.item(), kl.item()))
by_epoch = torch.tensor(parts).unflatten(0, (EPOCHS, -1)).mean(1)
for epoch in (1, 2, 5, 10, 20, EPOCHS):
    reconstruction, kl = by_epoch[epoch - 1].tolist()
    print(f"epoch {epoch:2}: reconstruction {reconstruction:6.2f} + divergence {kl:5.2f} = {reconstruction + kl:6.2f}")
low = int(by_epoch[:, 1].argmin())
print(f"the divergence falls until epoch {low + 1}, to {by_epoch[low, 1]:.2f}, and rises from then on")
assert 0 < low < 10
assert by_epoch[-1, 1] > 3 * by_epoch[low, 1]
assert by_epoch[-1, 0] < by_epoch[low, 0] - 3

# %% [markdown]
# It goes in two acts. At first the decoder learns the mean digit, which needs no code: what $q$ says of a row is a cost
# without a gain, and the divergence falls. Then the decoder begins to listen, and each nat of code is paid for by more
# than one nat of reconstruction.

# %% [markdown]
# ## Digits by the driver
#
# In the library the same is two plain Pyro functions, model and guide; `vae` has them. It finds the bound, its
# gradients and the batches. To compare to the last digit, give it the same two networks, with the same starting
# weights.

# %%
start = dict(zip(("encoder", "decoder"), encoder_and_decoder(), strict=True))
pair = zoo.create("vae", latent_dim=K, **start)
fit = zoo.fit(pair, digits, epochs=EPOCHS, batch_size=BATCH, learning_rate=4e-3, seed=SEED, tol=0, clip=0)
by_hand = -torch.tensor(parts, dtype=torch.float64).sum(1)
by_driver = fit.history[:-1] / len(images)
print(
    f"bound of the last epoch for a digit: by hand {by_hand[-14:].mean():.4f}, by driver {by_driver[-14:].mean():.4f}"
)
assert torch.allclose(by_driver[:100], by_hand[:100], rtol=1e-4)  # step by step; later on rounding adds up
assert torch.allclose(*(side.unflatten(0, (EPOCHS, -1)).mean(1) for side in (by_driver, by_hand)), rtol=5e-3)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.4, 1))
epochs = range(1, EPOCHS + 1)
left.stackplot(epochs, *by_epoch.flip(1).T, colors=[ORANGE, BLUE], alpha=0.75, labels=["divergence", "reconstruction"])
loss = -by_driver.unflatten(0, (EPOCHS, -1)).mean(1)
left.plot(epochs, loss, color="black", linewidth=2, linestyle=":", label="minus the bound, by the driver")
left.set(xlabel="epoch", ylabel="nats for a digit", xlim=(1, EPOCHS), ylim=(0, 36))
left.set_title("The loss of a VAE is a sum of two", loc="left")
left.legend(frameon=False, loc="upper right", reverse=True)
right.plot(epochs, by_epoch[:, 1], color=ORANGE, linewidth=2)
right.set(xscale="log", xlabel="epoch", ylim=(0, None), xlim=(1, EPOCHS))
right.set_xticks([1, 2, 5, 10, 20, 60], ["1", "2", "5", "10", "20", "60"])
right.minorticks_off()
right.set_title("The divergence by itself", loc="left")
save(figure, "10_loss")

# %% [markdown]
# The fit knows the verbs of every other fit. `embeddings` gives the posterior means, one pass of the encoder; nobody
# told it which digit is which. `fit.plot()` decodes a grid of codes into images.

# %%
codes = torch.tensor(fit.embeddings().to_numpy())
figure, panel = plt.subplots(figsize=(7.4, 6), layout="constrained")
shades = plt.get_cmap("tab10")
for digit in range(10):
    some = codes[label == digit]
    panel.plot(*some.T, ".", color=shades(digit), markersize=5, alpha=0.6)
for digit in range(10):
    at = codes[label == digit].median(0).values.tolist()
    panel.text(*at, str(digit), color=shades(digit), fontsize=18, fontweight="bold", ha="center", va="center").set_bbox(
        {"facecolor": "white", "alpha": 0.8, "boxstyle": "circle,pad=0.15", "edgecolor": shades(digit)}
    )
panel.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
panel.set_title("1797 digits by what two numbers say of them", loc="left")
save(figure, "10_codes")

# %%
save(fit.plot(), "10_manifold")

# %% [markdown]
# Are the codes of use? The nearest other code is that of the same digit far more often than by chance, which is one in
# ten. And what of the gap? There is no grid over 64 pixels, but draws from $q$ weighted by
# $p_\theta(x, z) / q_\phi(z \mid x)$ come near $\log p(x)$ from below, and `fit.gaps` does for these digits what was
# done by hand for the points.

# %%
nearest = torch.cdist(codes, codes).fill_diagonal_(math.inf).argmin(1)
agree = (label[nearest] == label).double().mean()
gaps = fit.gaps(images[:300], num_steps=300, num=200)
print(f"the nearest code is of the same digit for {agree:.0%}")
print(
    f"bound {gaps.encoder.mean():.2f}, best normal of each row {gaps.best.mean():.2f}, log p {gaps.log_prob.mean():.2f}"
)
print(f"nats lost on a digit: by the encoder {gaps.amortization:.2f}, by the normal {gaps.approximation:.2f}")
assert agree > 0.5
assert gaps.amortization > 0
assert gaps.approximation > 0

# %% [markdown]
# ## What to take away
#
# - EM and the VAE climb one bound. EM closes its gap at each E-step; the VAE has a network guess the posterior, and
#   leaves what is lost by that as a gap, which can be measured.
# - A draw $z = m + s \varepsilon$ has a slope, and that is why this learns fast. Where a latent is discrete there is no
#   such thing; the library sums those out, as EM does.
# - The loss is reconstruction plus divergence, in nats. When you are shown a reconstruction, ask for the other half.
# - If the network $f$ is linear all of this has a closed form to be held against: that is tutorial 11.
