"""The training step, a pure function of state, key and batch. `parallel.py` puts it on devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.conditioning.augment import augment
from diffusion_jax.core.noise import example_keys, fold_in, normal
from diffusion_jax.core.types import ApplyFn, Loss, Schedule, Timesteps
from diffusion_jax.devices.cpu import unroll
from diffusion_jax.training.clipping import global_norm
from diffusion_jax.training.state import TrainState


def make_loss_fn(
    apply_fn: ApplyFn,
    schedule: Schedule,
    loss: Loss,
    label_dropout: float = 0.0,
    no_label: int = 0,
    augmentation: float = 0.0,
) -> Callable:
    """(params, keys [B], batch, t [B]) -> losses [B] of a batch {"image": uint8 [B, H, W, C],
    "label": int [B], optional}.

    apply_fn takes `dropout_key` besides: the key of the batch's dropout. With the probability
    `label_dropout` an example's label, which the batch must then have, becomes `no_label` (Ho &
    Salimans 2022, algorithm 1), by the example's own key. With an `augmentation` above 0 images are
    transformed by `augment.augment` with that probability, and apply_fn is given the conditioning
    as `augmentation`."""

    def loss_fn(params, keys, batch, t, dropout_key=None):
        x0, labels = to_float(batch["image"]), batch.get("label")
        if label_dropout > 0:
            drop = jax.vmap(lambda key: jax.random.bernoulli(key, label_dropout))(fold_in(keys, 1))
            labels = jnp.where(drop, no_label, batch["label"])
        told = {}
        if augmentation > 0:
            x0, told["augmentation"] = augment(fold_in(keys, 2), x0, augmentation)
        network = lambda x, t, cond: apply_fn(params, x, t, cond, dropout_key=dropout_key, **told)
        return loss(network, x0, normal(fold_in(keys, 0), x0.shape[1:]), schedule.level(t), labels)

    return loss_fn


def to_float(images):
    """uint8 0 ... 255 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def make_train_step(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    ema: Callable,
    timesteps: Timesteps,
    t_range: tuple[float, float],
    *,
    axis_name: str | None = None,
    accumulation: int = 1,
    spread: Callable = lambda tree: tree,
) -> Callable:
    """step(state, key, batch) -> (state, metrics): one optimizer step and one EMA step on a batch.

    loss_fn: (params, keys [b], batch, t [b], dropout_key) -> losses [b]. ema: step -> decay.
    t_range: the least and the largest t, for the loss by quartile of t. accumulation: gradients of
    that many equal parts of the batch are summed one after the other, with the result of the whole
    batch. Under pmap, axis_name names the axis and the batch is this device's share. spread: of a
    mesh, puts arrays [accumulation, b, ...] of an accumulated batch on all devices again.

    Example number i of the whole batch meets the same t and the same noise, those of state.step and
    i, on any number of devices and in any number of parts; dropout alone depends on these. Metrics
    are float32 scalars; a quartile that no example fell into is NaN."""
    devices = lambda: jax.lax.axis_size(axis_name) if axis_name else 1
    mean = lambda tree: jax.lax.pmean(tree, axis_name) if axis_name else tree
    gather = lambda a: jax.lax.all_gather(a, axis_name, tiled=True) if axis_name else a

    def step(state: TrainState, key, batch):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % accumulation:
            raise ValueError(
                f"a batch of {size} a device is not divisible into {accumulation} accumulated parts"
            )
        key = jax.random.fold_in(key, state.step)
        first = jax.lax.axis_index(axis_name) * size if axis_name else 0
        index = first + jnp.arange(size)
        t, weights = timesteps.sample(
            state.timesteps, jax.random.fold_in(key, 0), index, size * devices()
        )
        keys = example_keys(jax.random.fold_in(key, 1), index)
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), first)

        def weighted_loss(params, keys, batch, t, weights, dropout_key):
            losses = loss_fn(params, keys, batch, t, dropout_key)
            return jnp.mean(weights * losses), losses

        def accumulate(total, part):
            (_, losses), gradients = gradient(state.params, *part)
            return jax.tree.map(jnp.add, total, gradients), losses

        gradient = jax.value_and_grad(weighted_loss, has_aux=True)
        if accumulation == 1:
            (_, losses), gradients = gradient(state.params, keys, batch, t, weights, dropout_key)
        else:
            split = lambda a: spread(a.reshape((accumulation, size // accumulation) + a.shape[1:]))
            parts = (
                *jax.tree.map(split, (keys, batch, t, weights)),
                jax.random.split(dropout_key, accumulation),
            )
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            total, losses = jax.lax.scan(accumulate, zeros, parts, unroll=unroll(accumulation))
            gradients, losses = (
                jax.tree.map(lambda g: g / accumulation, total),
                losses.reshape(size),
            )

        gradients = mean(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - ema(state.step))
        t, losses, weights = gather(t), gather(losses), gather(weights)
        state = TrainState(
            state.step + 1,
            params,
            ema_params,
            opt_state,
            timesteps.update(state.timesteps, t, losses),
        )
        metrics = {
            "loss": jnp.mean(weights * losses),
            **loss_by_quartile(t, losses, t_range),
            "grad_norm": global_norm(gradients),
            "param_norm": global_norm(params),
        }
        return state, metrics

    return step


def loss_by_quartile(t, losses, t_range: tuple[float, float]) -> dict:
    """Mean loss of the examples in each quarter of the range of t, `loss_q0` the cleanest."""
    low, high = t_range
    quarter = jnp.clip(jnp.floor(4.0 * (t - low) / max(high - low, 1e-12)), 0, 3)
    inside = quarter[None] == jnp.arange(4)[:, None]
    means = jnp.sum(jnp.where(inside, losses, 0.0), axis=1) / jnp.sum(inside, axis=1)
    return {f"loss_q{i}": means[i] for i in range(4)}
