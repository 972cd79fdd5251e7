"""The training step, a pure function of state, key and batch. `devices.parallel` puts it on
devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import ApplyFn, PyTree
from diffusion_jax.objectives import Context, Objective
from diffusion_jax.training.clipping import global_norm
from diffusion_jax.training.power_ema import share
from diffusion_jax.training.state import TrainState, whole


def _same(tree):
    return tree


def make_train_step(
    objective: Objective,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    ema: Callable,
    learning_rate: Callable | None = None,
    *,
    axis_name: str | None = None,
    accumulation: int = 1,
    gathered: Callable = _same,
    spread: Callable = _same,
    unroll: bool = False,
    cast: Callable = _same,
    constrain: Callable | None = None,
    exponents: tuple[float, ...] = (),
) -> Callable:
    """step(state, key, batch) -> (state, metrics): one optimizer step and one EMA step on a batch.

    ema: step -> decay. learning_rate: step -> that of the optimizer, to be logged: computed on the
    host's call, it would queue up behind the step that is running. accumulation: gradients of that
    many equal parts of the batch are summed one after the other, with the result of the whole
    batch; unroll: without a loop. Under pmap, axis_name names the axis and the batch is this
    device's share. Of a mesh, gathered: parameters
    -> the same, all on every device; spread: puts arrays [accumulation, b, ...] of an accumulated
    batch on all devices again. cast: parameters -> the copy of them
    that the network computes with; gradients are those of the copy. constrain: parameters -> what
    is kept of them after the optimizer's step, for networks whose weights lie on a sphere.
    exponents: those of the state's `averages` by powers of time.

    Example number i of the whole batch meets the same t and the same noise, those of state.step and
    i, on any number of devices and in any number of parts; dropout alone depends on these. Metrics
    are float32 scalars: the loss, its mean in each quartile of the log-SNR, q0 the cleanest, the
    objective's own, the norms of gradient and parameters.
    """

    def devices():
        return jax.lax.axis_size(axis_name) if axis_name else 1

    def mean(tree):
        return jax.lax.pmean(tree, axis_name) if axis_name else tree

    def gather(tree):
        collect = lambda a: jax.lax.all_gather(a, axis_name, tiled=True)
        return jax.tree.map(collect, tree) if axis_name else tree

    def step(state: TrainState, key, batch):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % accumulation:
            raise ValueError(
                f"a batch of {size} a device is not divisible into {accumulation} accumulated parts"
            )
        key = jax.random.fold_in(key, state.step)
        first = jax.lax.axis_index(axis_name) * size if axis_name else 0
        index = first + jnp.arange(size)
        times_key = jax.random.fold_in(key, 0)
        t, weights = objective.sample(state.aux, times_key, index, size * devices())
        keys = example_keys(jax.random.fold_in(key, 1), index)
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), first)

        def weighted_loss(params, keys, batch, t, weights, dropout_key):
            ema_params = whole(state.ema_params, state.frozen)
            context = Context(apply_fn, ema_params, state.step, keys, t, weights, dropout_key)
            params = whole(gathered(params), gathered(cast(state.frozen)))
            losses, report = objective.loss(params, state.aux, context, batch)
            return jnp.mean(weights * losses), (losses, report)

        params = cast(state.params)

        def gradient(*part):
            (_, found), gradients = differentiate(params, *part)
            return apart(gradients, state.params), found

        def accumulate(total, part):
            gradients, found = gradient(*part)
            return jax.tree.map(jnp.add, total, gradients), found

        differentiate = jax.value_and_grad(weighted_loss, has_aux=True)
        if accumulation == 1:
            gradients, (losses, report) = gradient(keys, batch, t, weights, dropout_key)
        else:
            cut = lambda a: spread(a.reshape((accumulation, size // accumulation) + a.shape[1:]))
            own = jax.random.split(dropout_key, accumulation)
            parts = (*jax.tree.map(cut, (keys, batch, t, weights)), own)
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            times = accumulation if unroll else 1
            total, found = jax.lax.scan(accumulate, zeros, parts, unroll=times)
            gradients = jax.tree.map(lambda g: g / accumulation, total)
            losses, report = jax.tree.map(lambda a: a.reshape((size,) + a.shape[2:]), found)

        gradients = mean(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = constrain(params) if constrain else params
        report = gather({**report, "t": t, "losses": losses, "weights": weights})
        params = objective.after(params, state.aux, report) if objective.after else params
        decay = ema(state.step)
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        by_powers = tuple(
            optax.incremental_update(params, average, share(exponent, state.step + 1))
            for average, exponent in zip(state.averages, exponents, strict=True)
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            averages=by_powers,
        )
        state = state.replace(aux=objective.update(state.aux, state, report))
        metrics = {
            "loss": jnp.mean(report["weights"] * report["losses"]),
            **averages(report),
            "grad_norm": global_norm(gradients),
            "param_norm": global_norm(params),
        }
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step - 1), jnp.float32)
        return state, metrics

    return step


def apart(gradients: PyTree, params: PyTree) -> PyTree:
    """Gradients in the precision of the parameters, whole in memory before anything reads them.

    Else XLA's GPU compiler lets the optimizer work in the order of the axes that a convolution's
    gradient comes in, and turns each of its moments there and back."""
    flat = jax.lax.optimization_barrier(jax.tree.map(jnp.ravel, gradients))
    return jax.tree.map(lambda g, p: g.reshape(p.shape).astype(p.dtype), flat, params)


def averages(report: dict) -> dict:
    """What a report says beside the loss: quartiles of the loss by log-SNR, and means of the
    rest, where they are numbers of examples."""
    own = report.keys() - {"t", "losses", "weights", "logsnr"}
    found = {name: jnp.mean(report[name]) for name in sorted(own) if report[name].ndim == 1}
    if "logsnr" in report:
        found |= loss_by_quartile(report["logsnr"], report["losses"])
    return found


def loss_by_quartile(logsnr, losses) -> dict:
    """Mean loss of each quarter of the examples by their log-SNR, `loss_q0` the cleanest.

    logsnr: [B] or, with levels of their own for parts of an example, [B, ...], which count by their
    mean; losses: [B]. Quarters are as equal as B allows; NaN where B is below 4 and one has none.
    """
    count = losses.shape[0]
    order = jnp.argsort(-jnp.mean(logsnr.reshape(count, -1), axis=1), stable=True)
    ends = [round(count * i / 4) for i in range(5)]
    return {f"loss_q{i}": jnp.mean(losses[order[ends[i] : ends[i + 1]]]) for i in range(4)}
