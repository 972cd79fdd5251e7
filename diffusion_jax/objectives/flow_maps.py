"""Flow maps: networks that are told where a step ends, and learn to take it in one call.

On the straight path x = (1 - t) x0 + t eps the flow's velocity v is the mean of eps - x0, and its
average from r to t is u, by which the map goes from t to r: x_r = x - (t - r) u. The network's
x0 and eps, told r, say u = eps - x0, whatever it predicts: with the prediction x0 that is
(x - x0) / t, pixel MeanFlow's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditioning.dropping import part_of
from diffusion_jax.core import second_time
from diffusion_jax.core.components import component
from diffusion_jax.core.noise import fold_in, threefry
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Cond, PyTree, Schedule, expand
from diffusion_jax.objectives.objective import (
    Context,
    Objective,
    Problem,
    denoiser,
    noised,
    with_times,
)

MOVES, OTHER, WIDTH, PLACE = map(part_of, ("moves", "other time", "width", "place"))


@component
def mean_flow(
    problem: Problem,
    improved: bool = False,
    moving: float = 0.25,
    power: float = 1.0,
    constant: float = 1e-3,
    omega: float = 1.0,
    kappa: float = 0.0,
    interval: tuple[float, ...] = (),
) -> Objective:
    """MeanFlow: the average velocity u from r to t by its identity with the velocity v, u + (t - r)
    du/dt = v (Geng et al. 2025a), or improved MeanFlow's form of it (Geng et al. 2025b).

    t and r are the larger and the smaller of two draws of diffusion.timesteps, and r = t for most
    examples. du/dt is a derivative along v, MeanFlow's eps - x0 or, improved, what the network
    itself says of v, and has no gradient. The squared error e, summed over an example, is divided
    by (e + constant)^power, so that the loss looks flat while samples become better; `v_loss` is
    the mean square of eps - x0 less u at r = t, unweighted, as reported of those examples alone.

    Args:
      improved: whether the derivative is along the network's own v, one more call.
      moving: share of the examples with r < t, at least 0, below 1; the papers' are 0.25 to 0.5.
      power: p of the weight, at least 0; 0 is no weight, which may end in NaN.
      constant: c of the weight, above 0.
      omega: of guidance in the field that is learned: v is omega v + kappa u(t, t) + (1 - omega -
        kappa) u(t, t, told nothing), and guides as a weight omega / (1 - kappa) does; 1 is none.
      kappa: share of the network's own guided v in it, at least 0 and below 1.
      interval: t between which guidance acts, low and high, as 0.1,0.9; empty for all.
    """
    check(problem, "mean_flow")
    at_least(0, moving=moving, power=power, kappa=kappa, omega=omega)
    above(0, constant=constant)
    for name, share in (("moving", moving), ("kappa", kappa)):
        if share >= 1.0:
            raise ValueError(f"{name} must be below 1, not {share}")
    guides = omega != 1.0 or kappa != 0.0
    if guides and problem.conditioner.null is None:
        raise ValueError(
            "omega and kappa guide away from the network that is told nothing: set a "
            "condition's dropout above 0, as config.conditioning.label.dropout=0.1"
        )
    if interval and not (len(interval) == 2 and 0.0 <= interval[0] < interval[1]):
        raise ValueError(f"interval must be 0 <= low < high, as in 0.1,0.9, not {interval}")

    def field(params, context, v, x, cond):
        """The velocity that is learned."""
        if not guides:
            return v
        assert problem.conditioner.null is not None
        nothing = {**cond, **problem.conditioner.null(cond)}
        at = lambda cond: velocity(problem, params, context, cond)(x, context.t, context.t)
        guided = omega * v + (1.0 - omega - kappa) * at(nothing)
        guided = guided + kappa * at(cond) if kappa else guided
        low, high = interval or (0.0, np.inf)
        acts = told_something(cond, nothing) & (low <= context.t) & (context.t <= high)
        return jnp.where(expand(acts, x.ndim), guided, v)

    def on_batch(params, aux, context, batch):
        t, r = two_times(problem, aux, context, moving)
        context = context._replace(t=t)
        x0, eps, level, cond = noised(problem, context, batch)
        x, stopped = q_sample(x0, eps, level), jax.lax.stop_gradient(params)
        v = field(stopped, context, eps - x0, x, cond)
        along = velocity(problem, stopped, context, cond)(x, t, t) if improved else v
        u = velocity(problem, params, context, cond)
        tangents = (along, jnp.ones_like(t), jnp.zeros_like(r))
        value, change = jax.jvp(u, (x, t, r), tangents)
        way = expand(t - r, x.ndim)
        error = squares(value + way * jax.lax.stop_gradient(change) - v)
        loss = error / jax.lax.stop_gradient((error + constant) ** power)
        if improved:
            v_loss = squares(along - (eps - x0))
        else:
            v_loss = jnp.where(t == r, squares(value - (eps - x0)), 0.0) / (1.0 - moving)
        return loss, {"logsnr": level.logsnr, "v_loss": v_loss / x0[0].size}

    return with_times(problem.timesteps, on_batch)


@component
def shortcut(
    problem: Problem, steps: int = 128, share: float = 0.25, guidance: float = 0.0
) -> Objective:
    """Shortcut models: a step is two steps of half its length, in the averaged network's eyes, and
    the shortest follow the flow (Frans et al. 2024).

    For a share of the examples t and r are neighbours on a grid of 1, 2, 4, ... steps / 2 equal
    parts, and what the network says of the way between them is compared with two halves of it; the
    others, at r = t, are compared with eps - x0. Halves of 1 / steps are told r = t, too. `v_loss`
    is the mean square error of the others, `self_loss` that of the share.

    Args:
      steps: of the finest grid, a power of 2, at least 2.
      share: of the examples with r < t, above 0, below 1.
      guidance: weight w of the shortest steps in the targets, which all others inherit, at least 0.
    """
    check(problem, "shortcut")
    at_least(2, steps=steps)
    at_least(0, guidance=guidance)
    if steps & (steps - 1):
        raise ValueError(f"steps must be a power of 2, not {steps}")
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, not {share}")
    if guidance and problem.conditioner.null is None:
        raise ValueError("guidance needs a condition whose dropout is above 0")
    lengths, schedule = steps.bit_length() - 1, problem.schedule

    def halves(context, x, t, r, shortest, cond):
        """The mean velocity of two steps of half the way."""
        teacher = jax.lax.stop_gradient(context.ema_params)
        middle = 0.5 * (t + r)
        ends = ((t, jnp.where(shortest, t, middle)), (middle, jnp.where(shortest, middle, r)))
        found = []
        for start, end in ends:
            u = velocity(problem, teacher, context, cond)(x, start, end)
            if guidance:
                assert problem.conditioner.null is not None
                nothing = {**cond, **problem.conditioner.null(cond)}
                other = velocity(problem, teacher, context, nothing)(x, start, end)
                w = expand(jnp.where(shortest, guidance, 0.0), x.ndim)
                u = u + w * (u - other)
            found.append(u)
            x = x - expand(0.5 * (t - r), x.ndim) * u
        return jax.lax.stop_gradient(0.5 * (found[0] + found[1]))

    def on_batch(params, aux, context, batch):
        longer, t, r, shortest = of_a_grid(context, share, lengths, schedule)
        context = context._replace(t=t)
        x0, eps, level, cond = noised(problem, context, batch)
        x, v = q_sample(x0, eps, level), eps - x0
        target = halves(context, x, t, r, shortest, cond)
        target = jnp.where(expand(longer, x.ndim), target, v)
        loss = squares(velocity(problem, params, context, cond)(x, t, r) - target) / x0[0].size
        report = {
            "logsnr": level.logsnr,
            "v_loss": jnp.where(longer, 0.0, loss) / (1.0 - share),
            "self_loss": jnp.where(longer, loss, 0.0) / share,
        }
        return loss, report

    return with_times(problem.timesteps, on_batch)


def check(problem: Problem, name: str) -> None:
    """ValueError where a problem is none of flow maps on straight paths."""
    if second_time.NAME not in problem.conditioner.kinds:
        raise ValueError(f"{name} tells the network where a step ends: add second_time to "
                         "config.conditioning, as label,second_time")  # fmt: skip
    if not straight(problem.schedule):
        raise ValueError(f"{name} is of straight paths: set config.diffusion.schedule="
                         "rectified_flow")  # fmt: skip
    if problem.weighting is not None:
        raise ValueError(
            f"diffusion.weighting is of the denoising and hybrid losses, not of {name}"
        )
    if problem.variance == "learned_range":
        raise ValueError(f"{name} trains no learned variance: set config.model.learned_variance="
                         "false")  # fmt: skip


def straight(schedule: Schedule) -> bool:
    """Whether alpha = 1 - t and sigma = t."""
    if schedule.num_steps is not None:
        return False
    t = np.linspace(schedule.t_min, schedule.t_max, 9)
    with jax.ensure_compile_time_eval():
        level = schedule.level(t)
        return bool(np.allclose(level.alpha, 1.0 - t, atol=1e-6) and np.allclose(level.sigma, t))


def velocity(problem: Problem, params: PyTree, context: Context, cond: Cond) -> Callable:
    """(x [B, ...], t [B], r [B]) -> u [B, ...], what the network says of the average velocity."""
    network = denoiser(problem, params, context, cond)

    def u(x, t, r):
        going = network._replace(to=problem.schedule.level(r))
        found = going(x, problem.schedule.level(t))
        return found.eps - found.x0

    return u


def two_times(problem: Problem, aux, context: Context, moving: float):
    """(t, r), each [B]: of two draws of t the larger and, for the share `moving`, the smaller; for
    the others r = t. All by the examples' own keys."""

    def draw(key):
        return problem.timesteps.sample(aux["timesteps"], key, jnp.arange(1), 1)[0][0]

    other = jax.vmap(draw)(fold_in(context.keys, OTHER))
    t, r = jnp.maximum(context.t, other), jnp.minimum(context.t, other)
    return t, jnp.where(chosen(context.keys, moving), r, t)


def of_a_grid(context: Context, share: float, lengths: int, schedule: Schedule):
    """(whether r < t, t, r, whether the way is the shortest), each [B]: for the share, neighbours
    on the grid of 2^k equal parts of [0, 1], k below `lengths`; else t and r are context.t."""

    def draw(width_key, place_key):
        parts = 2 ** jax.random.randint(width_key, (), 0, lengths)
        return parts, jax.random.randint(place_key, (), 0, parts)

    keys = (threefry(fold_in(context.keys, part)) for part in (WIDTH, PLACE))
    parts, place = jax.vmap(draw)(*keys)
    longer = chosen(context.keys, share)
    t = jnp.where(longer, jnp.minimum((place + 1) / parts, schedule.t_max), context.t)
    r = jnp.where(longer, place / parts, t)
    return longer, t, r, parts == 2 ** (lengths - 1)


def chosen(keys: jax.Array, share: float) -> jax.Array:
    """bool [B], true for the share of examples, each by its own key."""
    draw = lambda key: jax.random.bernoulli(key, share)
    return jax.vmap(draw)(threefry(fold_in(keys, MOVES)))


def told_something(cond: Cond, nothing: Cond) -> jax.Array:
    """bool [B], false for examples of which a cond says no more than `nothing`."""
    pairs = zip(*map(jax.tree.leaves, (cond, nothing)), strict=True)
    differ = [jnp.any((a != b).reshape(len(a), -1), axis=1) for a, b in pairs]
    return jnp.any(jnp.stack(differ), axis=0)


def squares(error: jax.Array) -> jax.Array:
    """The sums of squares, [B, ...] -> [B]."""
    return jnp.square(error).reshape(len(error), -1).sum(axis=1)
