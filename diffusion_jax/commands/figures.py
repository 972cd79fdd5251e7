"""Draws the figures of the papers, of a config alone or of a trained run.

python main.py figures --workdir DIR [--config experiments/NAME.py]
"""

import json
import pathlib
from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from diffusion_jax.core import noise, schedules, timesteps
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.types import Level
from diffusion_jax.data import pipeline
from diffusion_jax.modalities import pictures
from diffusion_jax.objectives import Context, losses
from diffusion_jax.objectives.denoising import of_loss
from diffusion_jax.runs.bits import check_bins, check_table, measure
from diffusion_jax.runs.build import Parts, build, load_source
from diffusion_jax.runs.checks import check_attention
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import restore_params
from diffusion_jax.runs.workdir import lock, open_workdir


def run(given: Given) -> str:
    """What `main.py figures` does with its flags."""
    return f"figures: {figures(given.config, given.workdir)}"


def _axis(xlabel: str, ylabel: str):
    figure = matplotlib.figure.Figure(figsize=(5.5, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.grid(alpha=0.3)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return figure, ax


def beta_ratio(config: Config, folder: pathlib.Path) -> None:
    """beta-tilde / beta by t for three lengths of the config's schedule (Nichol & Dhariwal 2021,
    fig. 1)."""
    figure, ax = _axis("t / T", "posterior variance / beta")
    name, settings = config.diffusion.schedule.entry, config.diffusion.schedule.values()
    for num_steps in (100, 1000, 4000):
        betas = schedules.BETAS[name](**{**settings, "num_steps": num_steps})
        ratio = schedules.posterior_tables(betas)["posterior_variance"] / betas
        t = (np.arange(num_steps) + 1) / num_steps
        ax.semilogx(t, ratio, label=f"{name}, T = {num_steps}")
    ax.legend()
    figure.savefig(folder / "beta_ratio.png", dpi=110)


def alphas_cumprod(folder: pathlib.Path) -> None:
    """alphas_cumprod by t of every schedule (Nichol & Dhariwal 2021, fig. 5)."""
    figure, ax = _axis("t / T", "alphas_cumprod")
    for name, betas in schedules.BETAS.items():
        ax.plot(np.arange(1000) / 1000, np.cumprod(1 - betas(1000)), label=name)
    ax.legend()
    figure.savefig(folder / "alphas_cumprod.png", dpi=110)


def forward(config: Config, parts: Parts, folder: pathlib.Path, source) -> None:
    """An image of the data along the forward process, linear above and cosine below (Nichol &
    Dhariwal 2021, fig. 3)."""
    data = config.data
    x0 = jnp.broadcast_to(encoded(parts, pipeline.examples(source, [0])), (12, *data.shape))
    eps = jax.random.normal(noise.key(config.seed), x0.shape)
    t = np.linspace(0, 999, 12).round().astype(int)
    rows = [q_sample(x0, eps, make(1000).level(t)) for make in (schedules.linear, schedules.cosine)]
    interleaved = np.stack([np.asarray(row) for row in rows], axis=1).reshape(24, *data.shape)
    shown = pictures.tile(pictures.to_uint8(interleaved), 2)
    pictures.save(folder / "forward.png", pictures.enlarge(shown, 800))


def encoded(parts: Parts, batch: dict):
    """x0 of a batch, as the diffusion sees it."""
    return parts.codec.encode(parts.codec.params, None, batch[parts.modality.entry])


def skipping(config: Config, folder: pathlib.Path, parts: Parts, params, source) -> dict:
    """What the bound loses when the noisiest part of the reverse process is left out (Nichol &
    Dhariwal 2021, fig. 4).

    A chain that starts at index t from N(0, I) costs KL(q(x_t | x0) || N(0, I)) and the terms below
    t."""
    num_steps = parts.schedule.num_steps or 0
    level = parts.schedule.level(np.arange(num_steps))
    bound = measure(config, parts, params, Level(*(a[::-1] for a in level)), source)
    x0 = encoded(parts, pipeline.examples(source, range(len(bound["total"]))))
    second_moment = float(jnp.mean(x0**2))
    alpha, sigma = np.asarray(level.alpha, np.float64), np.asarray(level.sigma, np.float64)
    prior = 0.5 * (alpha**2 * second_moment + sigma**2 - 1 - 2 * np.log(sigma)) / np.log(2)
    bits = prior + np.cumsum(bound["terms"].mean(axis=0)[::-1])
    skipped = 1 - (np.arange(len(bits)) + 1) / len(bits)
    figure, ax = _axis("fraction of the reverse process skipped", "bits/dim")
    ax.semilogy(skipped, bits)
    ax.set_title(f"{config.diffusion.schedule.entry}, T = {num_steps}")
    figure.savefig(folder / "skipping.png", dpi=110)
    shown = np.linspace(0, len(bits) - 1, 11).round().astype(int)[::-1]
    return {"skipped": skipped[shown].tolist(), "bits_per_dim": bits[shown].tolist()}


def gradient_noise(config: Config, folder: pathlib.Path, parts: Parts, params, source) -> dict:
    """The gradient noise scale of L_vlb, L_hybrid and importance-sampled L_vlb (Nichol & Dhariwal
    2021, fig. 7).

    tr(covariance of an example's gradient) / |mean gradient|^2 (McCandlish et al. 2018, eq. 2.9),
    in examples, at the run's parameters."""
    loss = config.diffusion.loss
    coefficient = loss.coefficient if loss.entry == "hybrid" else 0.001
    variance, schedule = parts.variance, parts.schedule
    vlb = losses.vlb(parts.parameterization, schedule, variance, scaled=True)
    uniform, importance = timesteps.uniform(schedule), timesteps.second_moment(schedule)
    kinds = {"L_vlb": (vlb, uniform), "L_vlb, importance-sampled": (vlb, importance)}
    if variance == "learned_range":
        hybrid = losses.hybrid(parts.parameterization, schedule, coefficient)
        kinds["L_hybrid"] = (hybrid, uniform)
    scales = {
        name: noise_scale(config, parts, params, source, loss, distribution)
        for name, (loss, distribution) in kinds.items()
    }
    figure, ax = _axis("gradient noise scale, in examples", "")
    ax.barh(list(scales), list(scales.values()))
    ax.set_xscale("log")
    figure.savefig(folder / "gradient_noise.png", dpi=110)
    return scales


BATCHES = 128  # gradients from which a noise scale is estimated


def noise_scale(config: Config, parts: Parts, params, source, loss, distribution) -> float:
    """The noise scale of one loss from BATCHES gradients of config.training.batch_size examples
    each.

    At most the number of these examples, which then means "at least": more would be needed to see
    the mean gradient."""
    size, key = config.training.batch_size, noise.key(config.seed)
    rng = np.random.default_rng(config.seed)
    objective = of_loss(parts.problem._replace(timesteps=distribution), loss)

    def loss_fn(params, keys, batch, t):
        ones = jnp.ones_like(t, jnp.float32)
        context = Context(parts.apply_fn, params, 0, keys, t, ones, training=False)
        return objective.loss(params, (), context, batch)[0]

    state = filled(parts, params, source, loss_fn, distribution, rng, key, size)

    @jax.jit
    def gradient(params, state, key, batch):
        t, weights = distribution.sample(state, jax.random.fold_in(key, 0), jnp.arange(size), size)
        keys = example_keys(jax.random.fold_in(key, 1), jnp.arange(size))
        mean_loss = lambda params: jnp.mean(weights * loss_fn(params, keys, batch, t))
        return jax.flatten_util.ravel_pytree(jax.grad(mean_loss)(params))[0]

    total, squares, batches = 0.0, 0.0, BATCHES
    for i in range(batches):
        batch = pipeline.examples(source, rng.integers(0, len(source), size))
        g = np.asarray(gradient(params, state, jax.random.fold_in(key, i), batch), np.float64)
        total, squares = total + g, squares + np.sum(g**2)
    mean = total / batches
    trace = size * (squares - batches * np.sum(mean**2)) / (batches - 1)
    # |mean|^2 without its own noise; below 0 where that hides it
    signal = np.sum(mean**2) - trace / (size * batches)
    return float(trace / max(signal, trace / (size * batches)))


def filled(parts: Parts, params, source, loss_fn: Callable, distribution, rng, key, size: int):
    """The state of an adaptive distribution of t whose history is full: ten losses at every t."""
    state = distribution.init()
    if not jax.tree.leaves(state):
        return state
    num_steps = parts.schedule.num_steps or 0
    rounds = state["losses"].shape[1]
    t = np.tile(np.arange(num_steps), rounds)
    forward, update = jax.jit(loss_fn), jax.jit(distribution.update)
    for start in range(0, len(t), size):
        index = (start + np.arange(size)) % len(t)
        batch = pipeline.examples(source, rng.integers(0, len(source), size))
        some_t = jnp.asarray(t[index])
        state = update(state, some_t, forward(params, example_keys(key, index), batch, some_t))
    return state


def figures(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the figures to workdir/figures: those of a config alone, and with a trained run those
    of its parameters.

    Returns the folder. The numbers behind the latter lie in figures.json.
    """
    parts = build(config)
    check_table(config, parts)
    check_bins(parts)
    train = load_source(config, config.data.train_split)
    held_out = load_source(config, config.likelihood.split)
    with lock(workdir):
        open_workdir(workdir, config)
    folder = make_folder(workdir / "figures")
    if config.diffusion.schedule.entry in schedules.BETAS:
        beta_ratio(config, folder)
    alphas_cumprod(folder)
    forward(config, parts, folder, train)
    if (workdir / "checkpoints").is_dir():
        check_attention(config)
        params, step = restore_params(config, parts, workdir, config.likelihood.ema)
        numbers = {
            "skipping": skipping(config, folder, parts, params, held_out),
            "gradient_noise": gradient_noise(config, folder, parts, params, train),
        }
        write_text(folder / "figures.json", json.dumps({"step": step, **numbers}, indent=2) + "\n")
    return folder
