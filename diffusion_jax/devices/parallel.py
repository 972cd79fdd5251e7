"""Devices and processes. Nothing else in the package mentions them.

One host's step is pmapped. On several hosts, or with sharded parameters, it is jitted over a mesh
of all devices with the axes data and fsdp (Rajbhandari et al. 2020; Xu et al. 2021): XLA partitions
it. Both give the same numbers."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.devices import cpu

AXIS = "batch"  # of the pmapped step
AXES = ("data", "fsdp")  # of the mesh; a batch is cut along both
KINDS = ("auto", "pmap", "mesh")
# Arrays of fewer numbers, most of a network's, are joined before their norm is taken: XLA compiles
# several programs for each. `cut_axis` leaves them whole, so that no device asks another for its
# part.
SMALL = 1024


def cut_axis(shape: tuple[int, ...], fsdp: int) -> int | None:
    """The longest axis that fsdp divides, the last of several; None where there is none, or fewer
    than SMALL numbers."""
    axes = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(shape) < SMALL:
        return None
    return max(axes, key=lambda axis: (shape[axis], axis))


class Layout(NamedTuple):
    """How a run lies on the devices of all processes."""

    mesh: jax.sharding.Mesh  # [data, fsdp]
    pmapped: bool  # the step, which then has the axis AXIS

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device. pmap returns its results on a mesh of its own: what lies there
        compiles only once."""
        mesh = (
            jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,)) if self.pmapped else self.mesh
        )
        return NamedSharding(mesh, PartitionSpec())

    def __str__(self) -> str:
        devices, processes = self.mesh.devices.flat, jax.process_count()
        text = f"{len(devices)} x {devices[0].device_kind}" + (
            f" of {processes} processes" if processes > 1 else ""
        )
        return text + (
            f", each copy of the state on {fsdp}" if (fsdp := self.mesh.shape["fsdp"]) > 1 else ""
        )

    def examples(self, axis: int = 0) -> NamedSharding:
        """That axis is shared out among all devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, AXES))

    def cut(self, shape: tuple[int, ...]) -> NamedSharding:
        """Of an array of the state, cut along its `cut_axis`."""
        axis = cut_axis(shape, self.mesh.shape["fsdp"])
        return (
            self.whole
            if axis is None
            else NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "fsdp"))
        )

    def state(self, shapes: Any) -> Any:
        """`shapes` (of eval_shape) of a TrainState with the place of every array: parameters, their
        average and the optimizer's alike; `aux`, the objective's own, is whole on every device."""

        def placed(tree, place):
            one = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a.shape))
            return jax.tree.map(one, tree)

        return placed(shapes, self.cut).replace(aux=placed(shapes.aux, lambda shape: self.whole))

    def options(self) -> dict[str, Any]:
        """What the training step has to be told of its place, as keyword arguments."""
        axis_name = AXIS if self.pmapped else None
        return {"axis_name": axis_name, "gathered": self.gathered, "spread": self.spread}

    def gathered(self, params: PyTree) -> PyTree:
        """Parameters, on every device all of them, where they are used."""
        return params if self.pmapped else jax.lax.with_sharding_constraint(params, self.whole)

    def place_batches(self, batches: PyTree) -> PyTree:
        """This process's share of batches, arrays of NumPy [steps, b, ...], on its way to the
        devices, as `make_take_steps` takes them; arrays of JAX are there already.

        Of a pmapped step they are [steps, devices, b / devices, ...]."""

        if any(isinstance(a, jax.Array) for a in jax.tree.leaves(batches)):
            return batches
        if not self.pmapped:
            put = lambda a: jax.make_array_from_process_local_data(self.examples(1), a)
            return jax.tree.map(put, batches)
        count = jax.local_device_count()
        cut = lambda a: a.reshape((a.shape[0], count, a.shape[1] // count) + a.shape[2:])
        place = NamedSharding(self.whole.mesh, PartitionSpec(None, AXIS))
        return jax.device_put(jax.tree.map(cut, batches), place)

    def spread(self, parts: PyTree) -> PyTree:
        """The parts of an accumulated batch, arrays [parts, b, ...], each on all devices."""
        return parts if self.pmapped else jax.lax.with_sharding_constraint(parts, self.examples(1))


def layout(kind: str = "auto", fsdp: int = 1) -> Layout:
    """kind: config.training.parallel. fsdp: devices that share one copy of the state. Raises
    UserError."""
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )  # a process's lie together
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(
            f"config.training.fsdp={fsdp} must divide the number of devices, {len(devices)}"
        )
    if kind == "pmap" and (jax.process_count() > 1 or fsdp > 1):
        raise UserError("config.training.parallel=pmap is for one process and fsdp=1; use auto")
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.Mesh(np.array(devices).reshape(-1, fsdp), AXES, axis_types=auto)
    return Layout(mesh, kind != "mesh" and jax.process_count() == 1 and fsdp == 1)


def check_batch(batch_size: int, parts: int = 1) -> None:
    """Raises UserError where a batch cannot be shared out evenly among the devices, and each share
    cut into `parts`."""
    share = jax.device_count() * parts
    if batch_size < 1 or batch_size % share:
        whose = f"{jax.device_count()} device(s)" + (
            f" times training.accumulation_steps={parts}" if parts > 1 else ""
        )
        lower, upper = max(batch_size // share, 1) * share, (batch_size // share + 1) * share
        near = f"{lower}" if lower == upper else f"{lower} or {upper}"
        raise UserError(f"training.batch_size={batch_size} is not divisible by {whose}; use {near}")


def place(tree: PyTree) -> PyTree:
    """The arrays on every device."""
    tree = jax.tree.map(np.asarray, tree) if jax.process_count() > 1 else tree
    return jax.device_put(tree, layout().whole)


def on_host(tree: PyTree) -> PyTree:
    """The arrays as NumPy's, whole, on every process, all of which must ask."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def initial(init: Callable, key: Any, where: PyTree, *more: Any) -> PyTree:
    """init(key, *more), every array made in its place, none twice. where: from `Layout.state`."""
    places = jax.tree.map(lambda a: a.sharding, where)
    # a result that is an argument, or another result, would else be the same memory
    apart = lambda *given: jax.tree.map(jnp.copy, init(*given)) if more else init(*given)
    return jax.jit(apart, out_shardings=places, compiler_options=cpu.once())(key, *more)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection within: for a call that traces and compiles, of whose tracing it would
    be a quarter."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def make_take_steps(
    layout: Layout, step: Callable, where: PyTree, steps_per_call: int = 1
) -> Callable:
    """run(state, key, batch) -> (state, metrics): `step` on all devices, the state, which lies as
    in `where`, donated.

    step: made with `axis_name=AXIS` where the layout is pmapped. batch: arrays [steps_per_call, b,
    ...] of this process's share b of every batch, or what `Layout.place_batches` made of them.
    metrics: arrays [steps_per_call]."""

    def several(state, key, batches):
        body = lambda state, batch: step(state, key, batch)
        if steps_per_call == 1:
            state, metrics = body(state, jax.tree.map(lambda a: a[0], batches))
            return state, jax.tree.map(lambda a: a[None], metrics)
        return jax.lax.scan(body, state, batches, unroll=steps_per_call if cpu.unroll() else 1)

    if layout.pmapped:
        mapped = jax.pmap(
            several, AXIS, in_axes=(None, None, 1), out_axes=(None, None), donate_argnums=0
        )
    else:
        places = jax.tree.map(lambda a: a.sharding, where)
        mapped = jax.jit(several, out_shardings=(places, layout.whole), donate_argnums=0)

    first = True

    def run(state, key, batches):
        nonlocal first
        with no_collection() if first else contextlib.nullcontext():
            after = mapped(state, key, layout.place_batches(batches))
        first = False
        if jax.device_count() > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(
                after
            )  # virtual CPU devices wait for each other for ever when steps queue up
        return after

    return run


def precision(dtype: str | None) -> contextlib.AbstractContextManager:
    """Within it, products of float32 are products of float32, where that is what a network computes
    in. Accelerators take TF32, or passes in bfloat16, for them otherwise, and the same example
    comes out differently in another batch or on other devices."""
    if dtype not in (None, "float32"):
        return contextlib.nullcontext()
    return jax.default_matmul_precision("float32")


def equal_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(numbers [size] of 0 ... count - 1, how many of them are new) of batches of one size, so that
    a program compiles once.

    The last batch is filled up with copies of the last number.
    """
    for start in range(0, count, size):
        yield np.minimum(start + np.arange(size), count - 1), min(size, count - start)


class Started:
    """A function whose call is begun, on the devices, before its result is asked for.

    start: (arguments) -> a function without any, which waits for the result and returns it."""

    def __init__(self, start: Callable[..., Callable[[], Any]]):
        self.start = start

    def __call__(self, *arguments, **named) -> Any:
        return self.start(*arguments, **named)()


def share_out(batches: PyTree) -> tuple[PyTree, int]:
    """(arrays of NumPy [n, ...] shared out among the devices of all processes, n), padded with
    copies of the last example where the devices don't divide n."""
    count, shared = jax.device_count(), layout().examples()
    size = len(jax.tree.leaves(batches)[0])
    index = np.minimum(np.arange(-(-size // count) * count), size - 1)

    def one(a):
        padded = np.asarray(a)[index]
        return jax.make_array_from_callback(padded.shape, shared, lambda part: padded[part])

    return jax.tree.map(one, batches), size


def map_pieces(function: Callable) -> Callable:
    """run(whole, shared) -> outputs, which stay on the devices: `function` of what every device
    has and of examples that `share_out` shared out.

    Arrays of `shared` and of the outputs have an axis of examples first, but for single numbers,
    which every device has. Compiled once for the structures of both and their shapes."""
    mapped: dict[Any, Callable] = {}

    def run(whole, shared):
        structure = jax.tree.structure((whole, shared))
        if structure not in mapped:
            everything = layout()
            of = lambda a: everything.examples().spec if jnp.ndim(a) else PartitionSpec()
            one = jax.shard_map(
                function,
                mesh=everything.mesh,
                in_specs=(PartitionSpec(), jax.tree.map(of, shared)),
                out_specs=jax.tree.map(of, jax.eval_shape(function, whole, shared)),
                check_vma=False,
            )
            mapped[structure] = jax.jit(one, compiler_options=cpu.evaluating())
        return mapped[structure](whole, shared)

    return run


def map_examples(function: Callable) -> Started:
    """run(params, *batches) -> outputs: `function` on examples shared out among the devices of all
    processes.

    function: (params, *batches [b, ...]) -> pytree of [b, ...], example by example. All processes
    give the same arguments. A count that the devices don't divide is padded with copies of the last
    example, which are dropped again. The result is NumPy arrays, on every process."""
    mapped: dict[int, Callable] = {}

    def start(params, *batches):
        everything = layout()
        if len(batches) not in mapped:
            spec = everything.examples().spec
            one = jax.shard_map(
                function,
                mesh=everything.mesh,
                in_specs=(PartitionSpec(),) + (spec,) * len(batches),
                out_specs=spec,
                check_vma=False,
            )
            mapped[len(batches)] = jax.jit(one, compiler_options=cpu.evaluating())
        placed, size = share_out(batches)
        outputs = mapped[len(batches)](params, *placed)

        def finish():
            done = outputs
            if jax.process_count() > 1:
                done = multihost_utils.process_allgather(outputs, tiled=True)
            return jax.tree.map(lambda a: np.asarray(a)[:size], done)

        return finish

    return Started(start)
