"""Bits/dim of a trained run's examples, by the variational bound or by the probability-flow ODE."""

import numpy as np
import tqdm

from diffusion_jax.core import grids, noise, schedules
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import example_keys, fold_in
from diffusion_jax.core.types import Denoiser, Level
from diffusion_jax.data import pipeline
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.devices.parallel import equal_batches, map_examples, precision
from diffusion_jax.likelihood import ode, variational
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config


def check_bins(parts: Parts) -> None:
    """Raises UserError where there are no bits/dim: of an autoencoder, of a network for few steps,
    of latents, or of data that are not 8-bit values."""
    if parts.objective.reconstruct:
        raise UserError(
            "bits/dim are of a diffusion model; this run's is an autoencoder, which has no "
            "likelihood (evaluate leaves them out with config.evaluation.bits_per_dim=0)"
        )
    if not parts.objective.mean:
        raise UserError(
            "bits/dim are of a network whose x0 is the data's mean, which this run's loss, for few "
            "steps, does not make it (evaluate leaves them out with "
            "config.evaluation.bits_per_dim=0)"
        )
    if parts.codec.moments:
        raise UserError(
            "bits/dim are of 8-bit values, which latents have none of "
            "(evaluate leaves them out with config.evaluation.bits_per_dim=0)"
        )
    if parts.codec.range != (-1.0, 1.0) or parts.codec.bins != 256:
        raise UserError(
            "bits/dim are of 8-bit data as they are, in [-1, 1], which this run's x0 is not "
            "(evaluate leaves them out with config.evaluation.bits_per_dim=0)"
        )


def chain(config: Config, parts: Parts) -> Level:
    """The levels whose terms make up the bound; UserError for settings that don't go together."""
    settings = config.likelihood
    check_bins(parts)
    check_table(config, parts)
    if settings.budget and (settings.steps or settings.monte_carlo):
        raise UserError(
            "config.likelihood.budget needs all terms of the whole table: no steps and no "
            "monte_carlo"
        )
    if settings.budget and not 2 <= settings.budget <= (parts.schedule.num_steps or 0):
        raise UserError(
            f"config.likelihood.budget must lie between 2 and {parts.schedule.num_steps}"
        )
    try:
        if settings.steps:
            return grids.respaced(parts.schedule, settings.steps)
        return grids.uniform(parts.schedule)
    except ValueError as error:
        raise UserError(f"config.likelihood.steps: {error}") from None


def check_table(config: Config, parts: Parts) -> None:
    """Raises UserError where the schedule is no table, whose steps' terms make up the bound."""
    if parts.schedule.num_steps is None:
        tables, name = ", ".join(schedules.BETAS), config.diffusion.schedule.entry
        raise UserError(
            f"the bound and the figures need a table of steps ({tables}); "
            f"{name} has config.likelihood.method=ode"
        )


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None, JSON's null, for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def measure(
    config: Config, parts: Parts, params, grid: Level | None, source
) -> dict[str, np.ndarray]:
    """`total`, bits/dim of every example, and for the whole bound all fields of `likelihood.Bound`,
    the examples first.

    grid: the levels of the bound's terms; None measures by the ODE.
    """
    settings, key = config.likelihood, noise.key(config.likelihood.seed)
    variance = parts.variance

    def one_batch(params, index, batch):
        keys = example_keys(key, index)
        batch, cond = parts.conditioner.train(None, batch)
        x0 = parts.codec.encode(parts.codec.params, None, batch[parts.modality.entry])
        denoiser = make_denoiser(parts.apply_fn, params, parts.parameterization, cond)
        if grid is None:
            return {"total": by_flow(config, parts, denoiser, keys, x0)}
        denoiser = clip_x0(denoiser)
        if settings.monte_carlo:
            total = variational.bound_monte_carlo(
                denoiser, keys, x0, grid, variance, settings.monte_carlo
            )
            return {"total": total}
        bound = variational.bound(denoiser, keys, x0, grid, variance)._asdict()
        return {name: values.T if values.ndim == 2 else values for name, values in bound.items()}

    mapped, count = map_examples(one_batch), min(settings.examples or len(source), len(source))
    size, results = min(settings.batch_size, count), []
    with tqdm.tqdm(total=count, unit="image") as bar:
        for index, kept in equal_batches(count, size):
            with precision(None):  # of the likelihood, whatever the network computes in
                values = mapped(params, index, pipeline.examples(source, index))
            results.append({name: array[:kept] for name, array in values.items()})
            bar.update(len(results[-1]["total"]))
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def by_flow(config: Config, parts: Parts, denoiser: Denoiser, keys, x0):
    """Bits/dim [B] by the probability-flow ODE, of images with uniform noise over their bins."""
    settings = config.likelihood
    log_prob = ode.log_likelihood(
        denoiser,
        ode.dequantized(fold_in(keys, 0), x0),
        parts.schedule,
        fold_in(keys, 1) if settings.probes else None,
        settings.probes,
        rtol=settings.ode_tolerance,
        atol=settings.ode_tolerance,
    )
    return ode.bits_per_dim(log_prob, x0[0].size)
