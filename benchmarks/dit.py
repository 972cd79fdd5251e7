"""The speed of DiT-S/2 on 32 x 32 images, beside a plain PyTorch DiT of the same layers.

Command:   python benchmarks/dit.py [--batch 64] [--seconds 4] [--rounds 3] [--json FILE]
           (needs `pip install -e .[benchmark]`)
Hardware:  any; a quarter of an hour on a core of a CPU

A training step (mean squared error, Adam, EMA; ours with a run's metrics) and an evaluation of the
network, class-conditional, in float32: 384 features, 12 blocks, 6 heads, 256 tokens. PyTorch's
attention is `scaled_dot_product_attention`, and on a GPU its network is compiled by torch.compile.
The candidates take turns of some seconds each; printed are medians and PyTorch's time over ours."""

import argparse
import importlib
import json
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.unet import times, training_step  # noqa: E402
from diffusion_jax.devices import cpu  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.config import Config, Data, Diffusion, Training, use  # noqa: E402

WIDTH, DEPTH, HEADS, PATCH, CLASSES = 384, 12, 6, 2, 10  # S/2


def get_config(batch: int) -> Config:
    return Config(
        data=Data(source=use("tfds", name="cifar10"), shape=(32, 32, 3), num_classes=CLASSES),
        model=use("dit", size="S", patch=PATCH),
        diffusion=Diffusion(schedule=use("cosine", num_steps=1000)),
        training=Training(batch_size=batch, clip_norm=0.0),
    )


def ours(batch: int) -> dict:
    """name -> a function that does the work once."""
    config = get_config(batch)
    parts, rng = build(config), np.random.default_rng(0)
    state = [jax.jit(parts.init_state, compiler_options=cpu.once())(jax.random.key(0))]
    labels, key = jnp.asarray(rng.integers(0, CLASSES, batch)), jax.random.key(0)
    images = {"image": jnp.asarray(rng.integers(0, 256, (batch, 32, 32, 3), np.uint8))}
    x, t = jnp.asarray(rng.standard_normal((batch, 32, 32, 3), np.float32)), jnp.full(batch, 500.0)
    step = jax.jit(training_step(config, parts), donate_argnums=0)
    told = lambda params, x, t: parts.apply_fn(params, x, t, {"label": labels})
    evaluate = jax.jit(told, compiler_options=cpu.evaluating())

    def train():
        state[0], metrics = step(state[0], key, images | {"label": labels})
        jax.block_until_ready((state[0], metrics))

    return {
        "training step": train,
        "evaluation": lambda: jax.block_until_ready(evaluate(state[0].params, x, t)),
    }


def network(torch):
    """A DiT-S/2 in PyTorch, as the paper writes it."""
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
            self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            gelu = nn.GELU(approximate="tanh")
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), gelu, nn.Linear(4 * WIDTH, WIDTH))
            self.modulation = nn.Linear(WIDTH, 6 * WIDTH)

        def forward(self, x, embedding):
            told = self.modulation(functional.silu(embedding))[:, None].chunk(6, dim=-1)
            shift1, scale1, gate1, shift2, scale2, gate2 = told
            b, n, c = x.shape
            a = self.norm1(x) * (1 + scale1) + shift1
            q, k, v = self.qkv(a).view(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
            a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
            x = x + gate1 * self.out(a)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.time = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
            self.label = nn.Embedding(CLASSES, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
            self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
            self.linear = nn.Linear(WIDTH, PATCH**2 * 3)
            self.register_buffer("places", torch.randn(1, (32 // PATCH) ** 2, WIDTH))
            self.register_buffer("frequencies", 10000.0 ** (-torch.arange(128) / 128))

        def forward(self, x, t, label):
            angles = t.float()[:, None] * self.frequencies
            embedding = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1))
            embedding = embedding + self.label(label)
            h = self.patch(x).flatten(2).transpose(1, 2) + self.places
            for block in self.blocks:
                h = block(h, embedding)
            shift, scale = self.modulation(functional.silu(embedding))[:, None].chunk(2, dim=-1)
            h, n = self.linear(self.norm(h) * (1 + scale) + shift), 32 // PATCH
            h = h.view(len(x), n, n, PATCH, PATCH, 3).permute(0, 5, 1, 3, 2, 4)
            return h.reshape(x.shape)

    return Network()


def pytorch(batch: int) -> tuple[dict, int]:
    """The same in PyTorch, and its number of parameters."""
    torch = importlib.import_module("torch")
    where = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(torch).to(where)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    ema = [parameter.detach().clone() for parameter in model.parameters()]
    compiled = torch.compile(model) if where == "cuda" else model
    x = torch.randn(batch, 3, 32, 32, device=where)
    label = torch.randint(0, CLASSES, (batch,), device=where)
    t = torch.full((batch,), 500, device=where)
    finish = torch.cuda.synchronize if where == "cuda" else lambda: None

    def train():
        noise, times = torch.randn_like(x), torch.randint(0, 1000, (batch,), device=where)
        alpha = torch.cos(times / 1000 * torch.pi / 2)[:, None, None, None]
        out = compiled(alpha * x + (1 - alpha**2).sqrt() * noise, times, label)
        optimizer.zero_grad()
        torch.mean((out - noise) ** 2).backward()
        optimizer.step()
        torch._foreach_lerp_(ema, list(model.parameters()), 1e-4)
        finish()

    @torch.no_grad()
    def evaluate():
        compiled(x, t, label)
        finish()

    count = sum(parameter.numel() for parameter in model.parameters())
    return {"training step": train, "evaluation": evaluate}, count


def main() -> int:
    parser = argparse.ArgumentParser(description="DiT-S/2's speed beside PyTorch's.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    cpu.tune()
    try:
        theirs, count = pytorch(options.batch)
    except ImportError as error:
        print(f"error: {error}; pip install -e .[benchmark]", file=sys.stderr)
        return 2
    candidates = {"diffusion_jax": ours(options.batch), "PyTorch": theirs}
    parts = build(get_config(options.batch))
    shapes = jax.tree.leaves(jax.eval_shape(parts.init_params, jax.random.key(0)))
    print(f"parameters: ours {sum(a.size for a in shapes):,}, PyTorch's {count:,}", flush=True)
    report: dict = {"batch": options.batch, "work": {}}
    for work in ("training step", "evaluation"):
        taken: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(options.rounds):
            for name, works in candidates.items():
                taken[name] += times(works[work], options.seconds)
        medians = {name: statistics.median(values) for name, values in taken.items()}
        ratio = medians["PyTorch"] / medians["diffusion_jax"]
        runs = {name: len(values) for name, values in taken.items()}
        report["work"][work] = {"median_s": medians, "runs": runs, "ratio": ratio}
        print(f"{work}: {ratio:.2f} x PyTorch; seconds {medians}, runs {runs}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
