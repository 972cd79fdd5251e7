"""What kept features, chosen levels and steps side by side do to the digits' DDIM.

Command:   python benchmarks/faster.py [--workdir runs/digits]
Hardware:  a laptop's CPU; two minutes

All on the trailing grid, RMSE of x0 in [-1, 1]. Kept features: the processor's seconds of 100
digits in 20 steps, and the RMSE to the same chain without. Levels chosen by the trajectories of
64 noises: the RMSE of 64 others to 100 steps, beside that of other grids. Picard iterations over a
window of 50 of 100 steps: the calls one after the other, and the RMSE of 8 digits to the serial
chain."""

import argparse
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.few_steps import Drawer  # noqa: E402
from diffusion_jax import samplers  # noqa: E402
from diffusion_jax.core.noise import fold_in, initial_noise  # noqa: E402
from diffusion_jax.core.types import Level  # noqa: E402
from diffusion_jax.runs.build import make_grid  # noqa: E402
from diffusion_jax.runs.draw import chain_of, make_examples, make_generate  # noqa: E402

LEVELS, PICARD, CACHED = 64, 8, 100  # digits


def rmse(a, b) -> float:
    return float(np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2)))


def kept_features(ddim: Drawer) -> None:
    index, plain = np.arange(CACHED), None
    for every, blocks in ((1, 0), (2, 0), (3, 0), (3, 1)):
        config = ddim.settings("20", 1)
        config.sampling.cache_every, config.sampling.cache_blocks = every, blocks
        parts = ddim.parts._replace(grid=make_grid(config, ddim.parts.schedule))
        generate = make_generate(config, parts)
        found = generate(ddim.params, index)
        plain = found if plain is None else plain
        start = time.process_time()
        for _ in range(3):
            generate(ddim.params, index)
        taken = (time.process_time() - start) / 3
        print(
            f"cache_every {every}, cache_blocks {blocks}: {rmse(found, plain):.4f}, {taken:.2f} s"
        )


def chosen_levels(ddim: Drawer) -> None:
    config = ddim.settings("100", 0)
    parts = ddim.parts._replace(grid=make_grid(config, ddim.parts.schedule))
    generate = make_generate(config, parts, trajectory=True)
    path = generate(ddim.params, np.arange(LEVELS))[1]
    x, x0 = (np.moveaxis(np.asarray(a), 1, 0) for a in (path.x, path.x0))
    cost, exact = samplers.local_errors(x[:-1], x0, parts.grid), ddim.draw("100", 1, LEVELS)
    for count in (4, 8, 16):
        chosen = np.asarray(parts.grid.t)[samplers.best_levels(cost, count)]
        words, found = ",".join(map(str, chosen)), {}
        for grid in ("explicit", "trailing", "uniform", "logsnr", "karras"):
            ddim.config.sampling.grid = grid
            steps = words if grid == "explicit" else str(count)
            found[grid] = f"{rmse(exact, ddim.draw(steps, 1, LEVELS)):.4f}"
        ddim.config.sampling.grid = "trailing"
        print(f"{count} levels, chosen {words}: {found}")


def side_by_side(ddim: Drawer) -> None:
    config = ddim.settings("100", 1)
    grid = Level(*map(jnp.asarray, make_grid(config, ddim.parts.schedule)))
    examples = make_examples(config, ddim.parts)(np.arange(PICARD))

    @jax.jit
    def run(params, tolerance):
        keys, denoiser, _ = chain_of(config, ddim.parts, (params, None), examples)
        first = Level(*(a[0] for a in grid))
        noise = initial_noise(fold_in(keys, 0), tuple(ddim.parts.codec.shape), first)
        return samplers.picard(denoiser, noise, grid, 50, tolerance)

    serial = run(ddim.params, 0.0).x0
    for tolerance in (0.1, 0.03, 0.01, 0.003):
        found = run(ddim.params, tolerance)
        print(f"tolerance {tolerance}: {int(found.iterations)} calls, {rmse(found.x0, serial):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The same model, faster.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    given = parser.parse_args()
    ddim = Drawer(given.workdir, {"sampling.sampler": "ddim", "sampling.grid": "trailing"})
    kept_features(ddim)
    chosen_levels(ddim)
    side_by_side(ddim)


if __name__ == "__main__":
    main()
