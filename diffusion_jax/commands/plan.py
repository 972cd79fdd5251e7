"""Says what a run will need: memory and FLOPs of a step, compiled but not run.

python main.py plan --config experiments/NAME.py [--device H100] [--devices 8]
"""

from typing import NamedTuple

import jax

from diffusion_jax.core.errors import UserError
from diffusion_jax.devices import cpu, flops, hardware
from diffusion_jax.devices.parallel import cut_axis
from diffusion_jax.runs.build import batch_spec, build, ranged, with_range
from diffusion_jax.runs.checks import check_trains
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.latents import assumed
from diffusion_jax.training.step import make_train_step

MEMORY_FIRST: dict[str, str | bool] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
}  # as compilers for accelerators do
FLAGS = {
    "device": Flag("", "what a run is planned for, as in H100"),
    "devices": Flag(1, "how many of them share a batch"),
}
NEEDS = Needs(workdir=False)
# the share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
PREALLOCATED = 0.75


class Plan(NamedTuple):
    """What a training step needs. Bytes and FLOPs are a device's; a device takes `images` of the
    batch."""

    dtype: str
    devices: int
    images: int
    parameters: int
    state: dict[str, float]  # part -> bytes
    batch: int  # bytes
    temporary: int  # bytes
    flops: float  # matrix products and convolutions of the jaxpr
    xla_flops: float  # by XLA's cost analysis of the compiled program
    rolled: bool  # whether there are loops, whose bodies XLA counts once
    backend: str  # that compiled it

    @property
    def memory(self) -> float:
        return sum(self.state.values()) + self.batch + self.temporary

    def bound(self, device: hardware.Device) -> float:
        """images/s of all devices that no program can exceed: peak FLOP/s over FLOPs an image."""
        return self.devices * device.peak(self.dtype) / (self.flops / self.images)


def size(tree) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def held(tree, fsdp: int) -> float:
    """Bytes of a state on one of the devices that share a copy, as `parallel.Layout.cut` cuts it
    up."""
    return sum(
        size(a) / (1 if cut_axis(a.shape, fsdp) is None else fsdp) for a in jax.tree.leaves(tree)
    )


def make_plan(config: Config, devices: int = 1) -> Plan:
    """Compiles a step of one device's share of the batch; no array is made, no data read.

    With training.fsdp the parameters that a device gathers count as temporary, all of them at once,
    the worst that may be."""
    fsdp = config.training.fsdp
    config = with_range(config)[0] if ranged(config) else config
    config = assumed(config)
    parts, share = build(config), devices * config.training.accumulation_steps
    check_trains(config, parts.variance)
    if devices < 1:
        raise UserError(f"--devices must be at least 1, not {devices}")
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f"config.training.fsdp={fsdp} must divide the number of devices, --devices {devices}"
        )
    if config.training.batch_size % share:
        raise UserError(
            f"training.batch_size={config.training.batch_size} is not divisible by {share} "
            "(devices x accumulation)"
        )
    images = config.training.batch_size // devices
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parts.init_state, key)
    batch = batch_spec(config, parts, images)
    step = make_train_step(
        parts.objective,
        parts.apply_fn,
        parts.optimizer,
        parts.ema,
        parts.learning_rate,
        accumulation=config.training.accumulation_steps,
        unroll=cpu.unroll(),
        **parts.step_options(),
    )
    traced = jax.jit(step, donate_argnums=0).trace(state, key, batch)
    backend = jax.default_backend()
    compiled = traced.lower().compile(compiler_options=MEMORY_FIRST if backend == "cpu" else None)
    memory, costs, (counted, rolled) = (
        compiled.memory_analysis(),
        compiled.cost_analysis(),
        flops.count(traced.jaxpr),
    )
    if memory is None or costs is None:
        raise UserError(
            f"the compiler for {backend} does not tell what its programs need; plan on another, "
            "as JAX_PLATFORMS=cpu"
        )
    kinds = {
        "parameters": state.params,
        "EMA": (state.ema_params, state.averages),
        "optimizer": state.opt_state,
        "frozen": state.frozen,
    }
    sizes = {part: held(tree, fsdp) for part, tree in kinds.items()}
    gathered = size(jax.eval_shape(parts.cast, state.params))
    gathered += size(jax.eval_shape(parts.cast, state.frozen))
    sizes["the rest"] = size(state.aux) + size(state.step)  # on every device
    return Plan(
        dtype=config.model.values().get("dtype", "float32"),
        devices=devices,
        images=images,
        parameters=sum(a.size for a in jax.tree.leaves(state.params)),
        state=sizes,
        batch=size(batch) * config.training.steps_per_call,
        temporary=memory.temp_size_in_bytes + (gathered if fsdp > 1 else 0),
        flops=counted,
        xla_flops=costs["flops"],
        rolled=rolled,
        backend=backend,
    )


def report(plan: Plan, name: str = "") -> str:
    """The plan in lines, for a device of `hardware.DEVICES` where one is named."""
    held_parts = [(part, count) for part, count in plan.state.items() if count or part != "frozen"]
    state = ", ".join(f"{part} {megabytes(count)}" for part, count in held_parts)
    once = "; loops counted once" if plan.rolled else ""
    lines = [
        f"parameters       {plan.parameters:,}",
        f"FLOPs a step     {plan.flops:.4g} in matrix products and convolutions, "
        f"{plan.flops / plan.images:.4g} an image",
        f"                 {plan.xla_flops:.4g} by XLA's cost analysis of everything{once}",
        f"state            {megabytes(sum(plan.state.values()))}: {state}",
        f"batch            {megabytes(plan.batch)}, {plan.images} images",
        f"activations      {megabytes(plan.temporary)} with gradients, at their peak, as XLA for "
        f"{plan.backend} lays them out; "
        "another backend differs",
    ]
    if plan.devices > 1:
        lines.append(f"each of {plan.devices} devices needs and does this much")
    if not name:
        return "\n".join(
            [
                *lines,
                f"memory           {megabytes(plan.memory)}; --device says whether that fits: "
                f"{names()}",
            ]
        )
    name, device = hardware.find(name)
    share = plan.memory / device.memory
    verdict = "fits"
    if share > 1:
        verdict = (
            "does NOT fit: try model.remat=true, more training.accumulation_steps or a smaller "
            "batch"
        )
    if PREALLOCATED < share <= 1 and not name.startswith("TPU"):
        verdict += f", with XLA_PYTHON_CLIENT_MEM_FRACTION above {share:.2f}"
    moved = 2 * sum(plan.state.values()) / device.bandwidth
    bound, peak = plan.bound(device), f"{device.peak(plan.dtype) / 1e12:g} TFLOP/s in {plan.dtype}"
    lines += [
        f"memory           {megabytes(plan.memory)}, {share:.1%} of a {name}'s "
        f"{device.memory / 1e9:g} GB: {verdict}",
        f"upper bound      {bound:,.0f} images/s, {bound / plan.images / plan.devices:.4g} "
        f"steps/s: {peak} "
        "over the FLOPs of an image; real runs reach a part of it",
        f"                 and at least {1e3 * moved:.3g} ms a step to move the state at "
        f"{device.bandwidth / 1e9:g} GB/s",
        f"source           {device.source}; dense rates",
    ]
    return "\n".join(lines)


def names() -> str:
    return ", ".join(hardware.DEVICES)


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def run(given: Given) -> str:
    """What `main.py plan` does with its flags."""
    device = given.flags["device"]
    if device:
        hardware.find(device)  # before the compiler is kept busy
    return report(make_plan(given.config, given.flags["devices"]), device)
