"""The nouns of the library: noise levels, schedules, predictions, samplers. No logic beyond log-SNR
and broadcasting."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, NewType

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

Array = jax.Array | np.ndarray
PyTree = Any
Batch = Mapping[str, Any]
"""What a source yields, stacked: {"image": uint8 [B, H, W, C], "label": int32 [B], ...}."""

Cond = Mapping[str, PyTree]
"""What a network is told beside x and t, by name: {"label": int32 [B], ...}; {} for nothing."""

Variance = Literal["fixed_small", "fixed_large", "learned_range"]
"""Of the reverse process: see `process.reverse_log_variance`."""

Shape = NewType("Shape", tuple)
"""The shape of one example of x0, without the batch's axis."""


class Kind(NamedTuple):
    """How a condition can enter a network, whatever it means.

    how: "index", a row of a table; "vector"; "sequence", of vectors, with a mask; "bags", a
    sequence of sets of a table's rows, with a mask; "image"; "given", an entry of the data with a
    mask, of which the network knows what it means. size: the rows of the table, the length of the
    vector, of the sequence's vectors or of the entry's last axis, the channels of the image.
    """

    how: str
    size: int


class Kinds(dict):
    """Name of a condition -> its `Kind`. Not to be changed: it can be hashed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


def expand(a: Any, ndim: int) -> jax.Array:
    """[B] -> [B, 1, ..., 1] with `ndim` axes, to broadcast against data; scalars stay scalars."""
    a = jnp.asarray(a)
    return a if a.ndim == 0 else a.reshape(a.shape + (1,) * (ndim - a.ndim))


class Level(NamedTuple):
    """A noise level: x = alpha * x0 + sigma * eps.

    A pytree of arrays that share one shape: scalars, one level per example [B], or a whole sampling
    grid [N]. `alpha` is the signal's scale. In DDPM's symbols it is sqrt(alpha-bar), the square
    root of `alphas_cumprod`; it is NOT DDPM's alpha_t = 1 - beta_t. `t` rides along only because
    networks embed it."""

    t: Any
    alpha: Any
    sigma: Any

    @property
    def logsnr(self) -> jax.Array:
        """lambda = log(alpha^2 / sigma^2) (Kingma et al. 2021, eq. 2); +inf where sigma = 0."""
        return 2.0 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def with_signal(self) -> "Level":
        """The level with alpha at least 1e-10 sigma, by which formulas divide; itself elsewhere."""
        least = 1e-10 * jnp.asarray(self.sigma)
        return Level(self.t, jnp.maximum(self.alpha, least), self.sigma)

    def expand(self, ndim: int) -> "Level":
        """[B] -> [B, 1, ..., 1] with `ndim` axes, to broadcast against data; scalars stay
        scalars."""
        return Level(*(expand(a, ndim) for a in self))


def is_known_zero(a: Any) -> bool:
    """Whether any of the numbers is 0, where they are known on the host: traced ones are not."""
    return not isinstance(a, core.Tracer) and bool(np.any(np.asarray(a) == 0.0))


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)
"""The level of the data itself, the s of DDPM's first index. `t` = -1 is never embedded."""


class Schedule(NamedTuple):
    """A noise schedule, what a factory such as `schedules.cosine(num_steps=4000)` returns."""

    level: Callable[[Any], Level]  # t, any shape -> Level of that shape
    inverse: Callable[[Any], jax.Array]  # logsnr -> t
    t_min: float  # the cleanest t the network sees; 0 for tables
    t_max: float  # the noisiest; num_steps - 1 for tables
    num_steps: int | None  # T of a table; None for continuous time


class Prediction(NamedTuple):
    """What a denoiser knows about x: its clean image and its noise, consistent with x = alpha x0 +
    sigma eps.

    `aux` is the learned-variance fraction v in [0, 1] (Nichol & Dhariwal 2021, eq. 15), or None.
    """

    x0: jax.Array
    eps: jax.Array
    aux: jax.Array | None = None


class Parameterization(NamedTuple):
    """What the network's output means."""

    inputs: Callable[
        [Any, Level], tuple[Any, Any]
    ]  # (x, level) -> (x_in, t_in), what the network is fed
    target: Callable[
        [Any, Any, Level], Any
    ]  # (x0, eps, level) -> the output that a perfect network would give
    x0: Callable[
        [Any, Any, Level], Any
    ]  # (output, x, level) -> the clean image that this output stands for


Denoiser = Callable[[Any, Level], Prediction]
"""(x [B, ...], level, scalar or [B]) -> Prediction."""

ApplyFn = Callable[..., jax.Array]
"""(params, x_in [B, ...], t_in [B], cond) -> output [B, ...], a network's forward pass."""

Weighting = Callable[[Level], Any]
"""level -> the weight of ||x0 - predicted x0||^2, of the level's shape."""

Loss = Callable[..., jax.Array]
"""(network, x0 [B, ...], eps [B, ...], level [B], cond) -> losses [B]; network is (x_in, t_in,
cond) -> output."""


class Sampler(NamedTuple):
    """One step of a reverse process as a pair of pure functions."""

    init: Callable[[Any, Level], PyTree]  # (x, level) -> state: any pytree, () if none
    step: Callable[
        ..., tuple[Any, PyTree]
    ]  # (keys [B], denoiser, x, state, t, s) -> (x, state); s is the cleaner level
    draws_noise: bool = False  # whether `step` draws noise, and so needs keys
    last: Callable[[Any], Any] | None = None  # denoiser -> that of the last hop; None for itself


class Timesteps(NamedTuple):
    """A training-time distribution of t, with the state that an adaptive one keeps."""

    init: Callable[[], PyTree]  # () -> state: any pytree of arrays, () if none
    sample: Callable[
        ..., tuple[jax.Array, jax.Array]
    ]  # (state, key, index [B], total) -> (t [B], weights [B])
    update: Callable[..., PyTree]  # (state, t [total], losses [total]) -> state
