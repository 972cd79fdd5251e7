"""Used by test_parallel.py: trains the tiny run for five steps on the devices and processes that
there are, in given layouts.

    python layouts_program.py FOLDER NAME:PARALLEL:FSDP[+PARALLEL:FSDP] ...

A run with two layouts goes from the first to the second after its second step.

Writes FOLDER/NAME.npz: the parameters, and 16 samples drawn on all devices. Process 0 alone writes.
"""

import os
import pathlib
import sys

import jax
import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
from tiny import mlp_config, without_pictures  # noqa: E402

from diffusion_jax.commands import train as loop  # noqa: E402
from diffusion_jax.devices import parallel, processes  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.draw import make_generate  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402


def train(folder: pathlib.Path, words: str) -> None:
    """words: NAME:PARALLEL:FSDP, as above."""
    name, layouts = words.split(":", 1)
    several = [layout.split(":") for layout in layouts.split("+")]
    for num_steps, (kind, fsdp) in zip((2, 5)[-len(several) :], several, strict=True):
        config = mlp_config(
            num_steps=num_steps, eval_every=0, checkpoint_every=5, parallel=kind, fsdp=int(fsdp)
        )
        config.sampling.num = 16
        with without_pictures():  # 16 samples are drawn below
            loop.train(config, folder / name)
    parts = build(config)
    params, step = restore_params(config, parts, folder / name, ema=False)
    samples = make_generate(config, parts)(params, np.arange(16))
    lay = parallel.layout(kind, int(fsdp))
    state = parallel.initial(
        parts.init_state,
        jax.random.key(0),
        lay.state(jax.eval_shape(parts.init_state, jax.random.key(0))),
    )
    held = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))
    if processes.primary():
        leaves = {
            jax.tree_util.keystr(path): np.asarray(a)
            for path, a in jax.tree_util.tree_leaves_with_path(params)
        }
        np.savez(folder / f"{name}.npz", samples=samples, held=held, **leaves)


if __name__ == "__main__":
    processes.start()
    for words in sys.argv[2:]:
        train(pathlib.Path(sys.argv[1]), words)
    os._exit(0) if jax.process_count() == 1 else jax.distributed.shutdown()
