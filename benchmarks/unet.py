"""The speed of the Improved DDPM U-Net, beside diffusers' `UNet2DModel` in PyTorch, set to the same
layers.

Command:   python benchmarks/unet.py [--network paper] [--seconds 4] [--rounds 5] [--json FILE]
           (needs `pip install -e .[benchmark]`)
Hardware:  any; ten minutes on two cores with --rounds 3 --seconds 3

A training step (ours with L_hybrid and a run's metrics, PyTorch's with the mean squared error and
Adam in one call; both with EMA and without clipping), an evaluation of the network, and a chain of
50 DDIM steps, of the U-Net for 32 x 32 images: 64 channels, multipliers 1, 2, 2, 2, two blocks a
level, attention of four heads at 16 and 8, learned variance; a batch of 32, in float32. --network
paper is that of `experiments/cosine.py`: 128 channels, three blocks, and, so that both libraries do
the same work, no dropout. The candidates take turns of some seconds each; PyTorch runs with its
default memory format and with channels last, and the faster counts; --channels-last leaves out the
former, which saves a compilation. Printed are medians, PyTorch's time over ours, and the
fraction of the limit: FLOPs of PyTorch's network, which are those of the layers as written down,
over the rate of the faster library's product of two large matrices. With --dtype bfloat16 PyTorch
computes under autocast; on a GPU it is compiled by torch.compile, on a CPU it runs eagerly. The
JSON is written anew after every turn, so that a run that is cut short leaves what it measured."""

import argparse
import importlib
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from diffusion_jax.devices import cpu, flops  # noqa: E402
from diffusion_jax.devices.parallel import Layout  # noqa: E402
from diffusion_jax.runs.build import Parts, build  # noqa: E402
from diffusion_jax.runs.config import (  # noqa: E402
    Config,
    Data,
    Diffusion,
    Sampling,
    Training,
    use,
)
from diffusion_jax.runs.draw import make_generate  # noqa: E402
from diffusion_jax.training.step import make_train_step  # noqa: E402
from experiments import cosine  # noqa: E402

STEPS = 50
CHAIN = f"{STEPS} DDIM steps"
WORKS = {"training step": 3, "evaluation": 1, CHAIN: STEPS}  # -> evaluations that it costs
NETWORKS = {  # what sets diffusers' `UNet2DModel` to the layers of `get_config`'s network
    "small": {
        "block_out_channels": (64, 128, 128, 128),
        "layers_per_block": 2,
        "attention_head_dim": 32,
    },
    "paper": {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 3,
        "attention_head_dim": 64,
    },
}


def get_config(batch: int, dtype: str, clip_norm: float = 0.0, network: str = "small") -> Config:
    if network == "paper":
        config = cosine.get_config()
        config.model.dropout, config.model.dtype = 0.0, dtype
        config.training.batch_size, config.training.clip_norm = batch, clip_norm
        config.sampling.sampler, config.sampling.steps = use("ddim"), str(STEPS)
        return config
    return Config(
        data=Data(source=use("tfds", name="cifar10"), shape=(32, 32, 3), num_classes=0),
        model=use(
            "unet",
            channels=64,
            channel_mult=(1, 2, 2, 2),
            blocks=2,
            attention_resolutions=(16, 8),
            heads=4,
            scale_shift=True,
            learned_variance=True,
            dtype=dtype,
        ),
        diffusion=Diffusion(schedule=use("cosine", num_steps=1000), loss="hybrid"),
        training=Training(batch_size=batch, clip_norm=clip_norm),
        sampling=Sampling(sampler="ddim", steps=str(STEPS)),
    )


def training_step(config: Config, parts: Parts, layout: Layout | None = None):
    """The step that `main.py train` takes; without a layout: on one device."""
    return make_train_step(
        parts.objective,
        parts.apply_fn,
        parts.optimizer,
        parts.ema,
        parts.learning_rate,
        accumulation=config.training.accumulation_steps,
        unroll=cpu.unroll(),
        **parts.step_options(),
        **(layout.options() if layout else {}),
    )


def begun(batch: int, dtype: str, network: str = "small", wanted=tuple(WORKS)) -> dict:
    """name -> a function that begins the work, compiled and once done, and returns its arrays, for
    which nobody has waited yet; of a chain, they have come."""
    config = get_config(batch, dtype, network=network)
    parts = build(config)
    rng = np.random.default_rng(0)
    images = {"image": jnp.asarray(rng.integers(0, 256, (batch, 32, 32, 3), np.uint8))}
    x, t, key = (
        jnp.asarray(rng.standard_normal((batch, 32, 32, 3), np.float32)),
        jnp.full(batch, 500.0),
        jax.random.key(0),
    )
    # in one program: op by op a GPU would compile a hundred
    state = jax.jit(parts.init_state, compiler_options=cpu.once())(key)
    held, works = [jax.block_until_ready(state)], {}
    if "training step" in wanted:
        step = jax.jit(training_step(config, parts), donate_argnums=0)

        def train():
            held[0], metrics = step(held[0], key, images)
            return held[0], metrics

        works["training step"] = train
    if "evaluation" in wanted:
        evaluate = jax.jit(evaluation(parts), compiler_options=cpu.evaluating())
        works["evaluation"] = lambda: evaluate(held[0].params, x, t)
    if CHAIN in wanted:
        generate = make_generate(config, parts)
        works[CHAIN] = lambda: generate(held[0].ema_params, np.arange(batch))
    return works


def evaluation(parts: Parts):
    """(params, x, t) -> what the network says."""
    return lambda params, x, t: parts.apply_fn(params, x, t, None)


def ours(batch: int, dtype: str, network: str, wanted: tuple[str, ...]) -> tuple[dict, float, dict]:
    """(name -> a function that does the work once; FLOPs of an evaluation; name -> seconds of the
    first time, with tracing and compiling)."""
    parts = build(get_config(batch, dtype, network=network))
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, 32, 32, 3), (batch,)))
    works = {
        name: (lambda work=work: jax.block_until_ready(work()))
        for name, work in begun(batch, dtype, network, wanted).items()
    }
    first = {}
    for name, work in works.items():
        print(f"the first {name}", end="", flush=True)
        started = time.perf_counter()
        work()
        first[name] = time.perf_counter() - started
        print(f": {first[name]:.1f} s, with tracing and compiling", flush=True)
    return works, flops.count(jax.make_jaxpr(evaluation(parts))(params, x, t)).flops, first


def pytorch_network(network: str):
    """Diffusers' U-Net of the same layers."""
    levels = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    return importlib.import_module("diffusers").UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=6,
        down_block_types=levels,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in levels),
        resnet_time_scale_shift="scale_shift",
        **NETWORKS[network],
    )


def pytorch(batch: int, dtype: str, network: str, channels_last: bool) -> tuple[dict, float]:
    """The same of diffusers' U-Net, which is compiled where it first does a work."""
    torch, diffusers = importlib.import_module("torch"), importlib.import_module("diffusers")
    counting = importlib.import_module("torch.utils.flop_counter")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = pytorch_network(network).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=layout)
    ema = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model) if device == "cuda" else model
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    t = torch.full((batch,), 500, device=device)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train():
        noise, times = torch.randn_like(x), torch.randint(0, 1000, (batch,), device=device)
        with cast:
            out = compiled(scheduler.add_noise(x, noise, times), times).sample[:, :3]
        optimizer.zero_grad()
        torch.mean((out.float() - noise) ** 2).backward()
        optimizer.step()
        torch._foreach_lerp_(ema, list(model.parameters()), 1e-4)
        finish()

    @torch.no_grad()
    def evaluate():
        with cast:
            compiled(x, t)
        finish()

    @torch.no_grad()
    def chain():
        y = torch.randn_like(x)
        scheduler.set_timesteps(STEPS)
        for time_ in scheduler.timesteps:
            with cast:
                eps = compiled(y, time_.to(device)).sample[:, :3]
            y = scheduler.step(eps.float(), time_, y).prev_sample
        finish()

    with torch.no_grad(), counting.FlopCounterMode(display=False) as counter:
        model(x, t)
    return {
        "training step": train,
        "evaluation": evaluate,
        CHAIN: chain,
    }, counter.get_total_flops()


def matrix_rate(dtype: str) -> dict:
    """FLOP/s of a product of two large matrices, by the median of a second's runs, of each
    library."""
    torch = importlib.import_module("torch")
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    a, product = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    b = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))

    def torch_product():
        torch.matmul(b, b)
        if device == "cuda":
            torch.cuda.synchronize()

    works = {"JAX": lambda: jax.block_until_ready(product(a, a)), "PyTorch": torch_product}
    return {name: 2 * size**3 / statistics.median(times(work, 1.0)) for name, work in works.items()}


def times(work, seconds: float) -> list[float]:
    """Of as many runs as fit, at least one, after one that warms up."""
    work()
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description="The U-Net's speed beside PyTorch's.")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=tuple(WORKS))
    parser.add_argument("--channels-last", action="store_true", help="of PyTorch's formats, alone")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    cpu.tune()
    wanted = (options.only,) if options.only else tuple(WORKS)
    setting, candidates = (options.batch, options.dtype, options.network), {}
    try:
        for name, last in {"PyTorch": False, "PyTorch, channels last": True}.items():
            if last or not options.channels_last:
                candidates[name] = pytorch(*setting, channels_last=last)
    except ImportError as error:
        print(f"error: {error}; pip install -e .[benchmark]", file=sys.stderr)
        return 2
    works, count, first = ours(*setting, wanted)
    candidates = {"diffusion_jax": (works, count), **candidates}
    rates = matrix_rate(options.dtype)
    report: dict = {
        "network": options.network,
        "batch": options.batch,
        "dtype": options.dtype,
        "devices": str(jax.devices()),
        "first_s": first,
        "flops": {name: count for name, (_, count) in candidates.items()},
        "matrix_rate": rates,
        "work": {},
    }
    print(
        f"batch {options.batch}, {options.dtype}; products of matrices: "
        + ", ".join(f"{n} {r / 1e9:.0f} GFLOP/s" for n, r in rates.items())
    )
    for name, count in report["flops"].items():
        print(f"{name}: {count / 1e9:.1f} GFLOP an evaluation", flush=True)
    write(report, options.json)
    taken: dict = {}
    for _ in range(options.rounds):
        for work in wanted:
            for name, (works, _) in candidates.items():
                by_name = taken.setdefault(work, {})
                by_name.setdefault(name, []).extend(times(works[work], options.seconds))
                medians = {name: statistics.median(values) for name, values in by_name.items()}
                report["work"][work] = {
                    "median_s": medians,
                    "runs": {n: len(v) for n, v in by_name.items()},
                }
                write(report, options.json)
    counts = report["flops"]
    for work, found in report["work"].items():
        medians = found["median_s"]
        best = min(value for name, value in medians.items() if name != "diffusion_jax")
        found["ratio"] = best / medians["diffusion_jax"]
        least = WORKS[work] * counts[next(reversed(counts))] / max(rates.values())
        found["of_the_limit"] = {name: least / median for name, median in medians.items()}
        print(f"{work}: {found['ratio']:.2f} x PyTorch")
        for name, median in medians.items():
            print(
                f"    {name:24} {median:7.3f} s   {least / median:4.0%} of the limit, "
                f"{found['runs'][name]} runs"
            )
    write(report, options.json)
    return 0


def write(report: dict, path: pathlib.Path | None) -> None:
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
