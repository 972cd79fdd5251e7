"""Levels chosen from the model itself: those along which DDIM's local errors add up to least."""

import numpy as np

from diffusion_jax.core.types import Array, Level


def local_errors(x: Array, x0: Array, grid: Level) -> np.ndarray:
    """[N, N + 1]: of DDIM's step from level i to level j > i of a grid, the distance of what it
    arrives at from a fine chain's own x there; infinite for j <= i.

    x, x0: what the chain had at every level and predicted there, [N, B, ...] each, such as
    `Path.x[:-1]` and `Path.x0` of `sample(..., trajectory=True)`. Column N is the last hop, whose
    end is the chain's result, the last x0. Distances are root mean squares over all examples, in
    units of the deviation of x at j, sqrt(alpha^2 + sigma^2): of data that are normal with unit
    variance, that is how much of an error reaches the result (the local error of Chen et al. 2024,
    "On the Trajectory Regularity of ODE-based Diffusion Sampling", section 4, in other units)."""
    count = len(grid.t)
    x, x0 = (np.asarray(a, np.float64).reshape(count, -1) for a in (x, x0))
    alpha, sigma = (np.append(np.asarray(a, np.float64), end)
                    for a, end in ((grid.alpha, 1.0), (grid.sigma, 0.0)))  # fmt: skip
    ends = np.concatenate([x, x0[-1:]])
    cost = np.full((count, count + 1), np.inf)
    for i in range(count):
        kept = sigma[i + 1 :] / sigma[i]
        reached = kept[:, None] * x[i] + (alpha[i + 1 :] - alpha[i] * kept)[:, None] * x0[i]
        error = np.sqrt(np.mean(np.square(reached - ends[i + 1 :]), axis=1))
        cost[i, i + 1 :] = error / np.sqrt(alpha[i + 1 :] ** 2 + sigma[i + 1 :] ** 2)
    return cost


def best_levels(cost: Array, num_steps: int) -> np.ndarray:
    """The `num_steps` levels, ascending, of the path from level 0 to the end whose costs, such as
    `local_errors`, add up to least: by dynamic programming. Raises ValueError for more than there
    are."""
    cost = np.asarray(cost, np.float64)
    count = len(cost)
    if not 1 <= num_steps <= count:
        raise ValueError(f"{num_steps} levels chosen of {count}: take 1 to {count}")
    best, back = np.full(count, np.inf), []
    best[0] = 0.0
    for _ in range(num_steps - 1):
        through = best[:, None] + cost[:, :-1]
        back.append(np.argmin(through, axis=0))
        best = through.min(axis=0)
    path = [int(np.argmin(best + cost[:, -1]))]
    for earlier in reversed(back):
        path.append(int(earlier[path[-1]]))
    return np.array(path[::-1])
