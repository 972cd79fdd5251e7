"""Devices. Nothing else in the package mentions them."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.training.step import unroll

AXIS = "batch"


def check_batch(batch_size: int, parts: int = 1) -> None:
    """Raises UserError where a batch cannot be shared out evenly among the devices, and each share cut into `parts`."""
    if jax.process_count() > 1:
        raise UserError("training on several processes is not supported yet; start one process for all local devices")
    share = jax.device_count() * parts
    if batch_size < 1 or batch_size % share:
        whose = f"{jax.device_count()} device(s)" + (f" times training.accumulation_steps={parts}" if parts > 1 else "")
        lower, upper = max(batch_size // share, 1) * share, (batch_size // share + 1) * share
        near = f"{lower}" if lower == upper else f"{lower} or {upper}"
        raise UserError(f"training.batch_size={batch_size} is not divisible by {whose}; use {near}")


def place(tree):
    """The arrays on every local device, in the very form in which the pmapped step returns them: it compiles only once."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def replicated_step(step: Callable, steps_per_call: int = 1) -> Callable:
    """run(state, key, batch) -> (state, metrics): `step` pmapped over the local devices, the state, from `place`, donated.

    step: made with `axis_name=AXIS`. batch: arrays [steps_per_call, B, ...]; the devices share out B. metrics: arrays
    [steps_per_call].
    """

    def several(state, key, batches):
        body = lambda state, batch: step(state, key, batch)
        if steps_per_call == 1:
            state, metrics = body(state, jax.tree.map(lambda a: a[0], batches))
            return state, jax.tree.map(lambda a: a[None], metrics)
        return jax.lax.scan(body, state, batches, unroll=unroll(steps_per_call))

    # The batch's second axis is shared out: [K, D, B/D, ...] with the pmapped axis in the middle.
    mapped = jax.pmap(several, AXIS, in_axes=(None, None, 1), out_axes=(None, None), donate_argnums=0)

    def run(state, key, batches):
        count = jax.local_device_count()
        shared = lambda a: a.reshape((a.shape[0], count, a.shape[1] // count) + a.shape[2:])
        after = mapped(state, key, jax.tree.map(shared, batches))
        if count > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(after)  # virtual CPU devices wait for each other for ever when steps queue up
        return after

    return run


def equal_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(numbers [size] of 0 ... count - 1, how many of them are new) of batches of one size, so that a program compiles once.

    The last batch is filled up with copies of the last number.
    """
    for start in range(0, count, size):
        yield np.minimum(start + np.arange(size), count - 1), min(size, count - start)


def map_examples(function: Callable) -> Callable:
    """run(params, *batches) -> outputs: `function` on examples shared out among the local devices.

    function: (params, *batches [b, ...]) -> pytree of [b, ...], example by example. A count that the devices don't divide
    is padded with copies of the last example, which are dropped again. The result is NumPy arrays.
    """
    mapped: dict[int, Callable] = {}

    def run(params, *batches):
        count, size = jax.local_device_count(), len(jax.tree.leaves(batches)[0])
        padded = -(-size // count) * count
        index = np.minimum(np.arange(padded), size - 1).reshape(count, -1)
        if len(batches) not in mapped:
            mapped[len(batches)] = jax.pmap(function, AXIS, in_axes=(None,) + (0,) * len(batches))
        outputs = mapped[len(batches)](params, *jax.tree.map(lambda a: a[index], batches))
        return jax.tree.map(lambda a: np.asarray(a).reshape((padded,) + a.shape[2:])[:size], outputs)

    return run
