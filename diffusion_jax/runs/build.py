"""From a Config, whose strings end here, to the functions of a run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.objectives import losses
from diffusion_jax.core import predictions, schedules, timesteps, weightings
from diffusion_jax.runs.config import Config, check_types, choose, fields
from diffusion_jax.data import folder, images
from diffusion_jax.core.errors import UserError
from diffusion_jax.models.unet import MODELS
from diffusion_jax.runs.draw import check_guidance, make_grid, make_sampler, model_variance
from diffusion_jax.conditioning.augment import CONDITIONING
from diffusion_jax.training.clipping import clip_by_global_norm
from diffusion_jax.devices.parallel import AXIS, Layout
from diffusion_jax.training.profiling import parse_steps
from diffusion_jax.training.state import TrainState, init_state, warmed_up_ema
from diffusion_jax.training.step import make_loss_fn, make_train_step
from diffusion_jax.core.types import ApplyFn, Level, Loss, Parameterization, Sampler, Schedule, Timesteps

OPTIMIZERS = ("adam", "adamw")
DECAYS = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")


class Parts(NamedTuple):
    """What a Config stands for."""

    schedule: Schedule
    betas: np.ndarray | None  # of a table; None in continuous time
    parameterization: Parameterization
    loss: Loss
    timesteps: Timesteps
    apply_fn: ApplyFn
    init_params: Callable  # key -> params
    learning_rate: Callable  # step -> learning rate
    optimizer: optax.GradientTransformation
    sampler: Sampler
    grid: Level

    def init_state(self, key: jax.Array) -> TrainState:
        return jax.jit(lambda key: init_state(self.init_params(key), self.optimizer, self.timesteps.init()))(key)


def build(config: Config) -> Parts:
    """All parts of a run. Raises UserError for settings that don't go together, before anything is
    computed."""
    check_types(config)
    check_ranges(config)
    diffusion = config.diffusion
    try:
        schedule, betas = make_schedule(config)
        parameterization = make_prediction(config, schedule)
        with jax.ensure_compile_time_eval():  # a run may be built inside a jitted function
            ends_at_noise = float(schedule.level(schedule.t_max).alpha) == 0.0
        if diffusion.prediction in ("eps", "score", "edm") and ends_at_noise:
            raise UserError(f"{diffusion.prediction} cannot be decoded at alpha = 0, where this schedule ends; use v or x0")
        loss = make_loss(config, parameterization, schedule)
        distribution = choose(timesteps.TIMESTEPS, diffusion.timesteps, "diffusion.timesteps")(schedule)
        grid = make_grid(config, schedule)
        apply_fn, init_params = network(config)
        learning_rate = learning_rate_schedule(config)
        return Parts(
            schedule,
            betas,
            parameterization,
            loss,
            distribution,
            apply_fn,
            init_params,
            learning_rate,
            make_optimizer(config, learning_rate),
            make_sampler(config, schedule, grid),
            grid,
        )
    except ValueError as error:  # the library's own checks
        raise UserError(str(error)) from None


POSITIVE = (
    "training.num_steps",
    "training.batch_size",
    "training.learning_rate",
    "training.accumulation_steps",
    "training.steps_per_call",
    "training.log_every",
    "training.eval_examples",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "model.channels",
    "model.blocks",
    "model.heads",
    "sampling.num",
    "sampling.batch_size",
    "sampling.guidance_every",
    "sampling.snr",
    "sampling.ode_tolerance",
    "sampling.rho",
    "likelihood.batch_size",
    "likelihood.ode_tolerance",
    "evaluation.batch_size",
    "evaluation.subsets",
    "model.time_scale",
)
NOT_NEGATIVE = (
    "data.num_classes",
    "model.head_channels",
    "training.warmup_steps",
    "training.weight_decay",
    "training.clip_norm",
    "training.eval_every",
    "training.sample_every",
    "training.keep_every",
    "likelihood.examples",
    "likelihood.monte_carlo",
    "likelihood.budget",
    "likelihood.probes",
    "diffusion.vlb_coefficient",
    "sampling.churn",
    "sampling.tolerance",
    "evaluation.replicates",
    "evaluation.bits_per_dim",
    "evaluation.memorised",
    "evaluation.every",
)
SEEDS = ("seed", "sampling.seed", "likelihood.seed")
BELOW_ONE = (
    "training.ema_decay",
    "training.b1",
    "training.b2",
    "model.dropout",
    "training.label_dropout",
    "sampling.threshold",
)


def check_ranges(config: Config) -> None:
    """Raises UserError for numbers out of range that no library function would catch."""
    training, sampling, data = config.training, config.sampling, config.data
    for path, _, value in fields(config):
        if isinstance(value, float) and not np.isfinite(value):
            raise UserError(f"config.{path} must be finite, not {value}")
        if path in POSITIVE and value <= 0:
            raise UserError(f"config.{path} must be above 0, not {value}")
        if path in NOT_NEGATIVE and value < 0:
            raise UserError(f"config.{path} must be at least 0, not {value}")
        if path in SEEDS and not 0 <= value < 2**32:
            raise UserError(f"config.{path} must be at least 0 and below 2**32, not {value}")
        if path in BELOW_ONE and not 0.0 <= value < 1.0:
            raise UserError(f"config.{path} must be at least 0 and below 1, not {value}")
    if not 0.0 <= sampling.eta <= 1.0:
        raise UserError(f"config.sampling.eta must lie in [0, 1], not {sampling.eta}")
    if sampling.label >= 0 and not data.num_classes:
        raise UserError(f"config.sampling.label={sampling.label}, but this run has no classes")
    if not -1 <= sampling.label < max(data.num_classes, 1):
        raise UserError(f"config.sampling.label must be -1, for all, or 0 to {data.num_classes - 1}, not {sampling.label}")
    if training.label_dropout and not data.num_classes:
        raise UserError("config.training.label_dropout needs labels: data.num_classes above 0")
    check_guidance(config)
    if len(data.shape) != 3 or min(data.shape) < 1:
        raise UserError(f"config.data.shape must be height, width and channels, not {data.shape}")
    if not 0.0 <= data.augment <= 1.0:
        raise UserError(f"config.data.augment must lie in [0, 1], not {data.augment}")
    if data.augment and data.flip:
        raise UserError("config.data.augment mirrors half of the images and tells the network which: set data.flip=false")
    choose(images.RESIZES, data.resize, "data.resize")
    choose(folder.UNREADABLE, data.unreadable, "data.unreadable")
    if len(config.model.channel_mult) < 1 or min(config.model.channel_mult) < 1:
        raise UserError(f"config.model.channel_mult needs one number of at least 1 a level, not {config.model.channel_mult}")
    if config.evaluation.replicates == 1:
        raise UserError("config.evaluation.replicates must be 0 or at least 2: one has no spread")
    for name in ("num", "every_num"):
        if getattr(config.evaluation, name) < 10:
            raise UserError(f"config.evaluation.{name} must be at least 10, not {getattr(config.evaluation, name)}")
    if config.evaluation.every % training.steps_per_call:
        raise UserError(f"config.evaluation.every must be a multiple of steps_per_call={training.steps_per_call}")
    parse_steps(training.profile_steps)
    for name in ("num_steps", "log_every", "eval_every", "sample_every", "checkpoint_every"):
        if getattr(training, name) % training.steps_per_call:
            raise UserError(f"config.training.{name} must be a multiple of steps_per_call={training.steps_per_call}")
    if training.keep_every % training.checkpoint_every:
        raise UserError(
            f"config.training.keep_every={training.keep_every} must be a multiple of checkpoint_every="
            f"{training.checkpoint_every}: no other step is saved"
        )


def network(config: Config) -> tuple[ApplyFn, Callable]:
    """(apply_fn, init_params) of the model. apply_fn trains, with dropout, where it is given a
    `dropout_key`.

    With data.augment it may be given the augmentations' conditioning [B, 9], too; without, images
    are as they are. """
    model, (height, width, channels) = config.model, config.data.shape
    if model.dtype == "float16":
        raise UserError(
            "config.model.dtype has no 'float16': its range, 6e-8 to 65,504, loses gradients unless the loss is scaled; "
            "use bfloat16, which has float32's range"
        )
    for resolution in model.attention_resolutions:
        levels = [height // 2**i for i in range(len(model.channel_mult))]
        if resolution not in levels:
            raise UserError(f"config.model.attention_resolutions has {resolution}, but the levels have heights {levels}")
    labels = config.data.num_classes + (config.training.label_dropout > 0)  # the last one means "none"
    module = choose(MODELS, model.name, "model.name")(
        out_channels=channels * (2 if model.learned_variance else 1),
        channels=model.channels,
        channel_mult=tuple(model.channel_mult),
        blocks=model.blocks,
        attention_factors=tuple(height // resolution for resolution in model.attention_resolutions),
        heads=model.heads,
        head_channels=model.head_channels or None,
        scale_shift=model.scale_shift,
        resample_blocks=model.resample_blocks,
        time_scale=model.time_scale,
        dropout=model.dropout,
        num_classes=labels or None,
        dtype=jnp.dtype(choose(DTYPES, model.dtype, "model.dtype")),
        remat=model.remat,
    )

    def apply_fn(params, x, t, cond=None, dropout_key=None, augmentation=None):
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        cond = cond if config.data.num_classes else None  # a source may have labels that the experiment leaves out
        return module.apply({"params": params}, x, t, cond, augmentation, train=dropout_key is not None, rngs=rngs)

    @jax.jit  # which traces it once: for the check below, for shapes, for the parameters (test_parallel.py)
    def init_params(key):
        labels = jnp.zeros((1,), jnp.int32) if config.data.num_classes else None
        augmentation = jnp.zeros((1, CONDITIONING)) if config.data.augment else None
        return module.init(key, jnp.zeros((1, height, width, channels)), jnp.zeros((1,)), labels, augmentation)["params"]

    jax.eval_shape(init_params, jax.random.key(0))  # the network's own checks, at no cost
    return apply_fn, init_params


def make_schedule(config: Config) -> tuple[Schedule, np.ndarray | None]:
    """The schedule, and its betas where it is a table, of diffusion.num_steps; None in continuous
    time."""
    name = config.diffusion.schedule
    factory = choose(schedules.SCHEDULES, name, "diffusion.schedule")
    if name not in schedules.BETAS:
        return factory(), None
    betas = schedules.BETAS[name](config.diffusion.num_steps)
    return schedules.from_betas(betas), betas


def make_prediction(config: Config, schedule: Schedule) -> Parameterization:
    factory = choose(predictions.PREDICTIONS, config.diffusion.prediction, "diffusion.prediction")
    return factory(schedule) if config.diffusion.prediction == "mean" else factory()


def make_loss(config: Config, parameterization: Parameterization, schedule: Schedule) -> Loss:
    diffusion = config.diffusion
    norm = choose(tuple(losses.NORMS), diffusion.norm, "diffusion.norm")
    weighting = None
    if diffusion.weighting != "none":
        weighting = choose(weightings.WEIGHTINGS, diffusion.weighting, "diffusion.weighting")()
    factory = choose(losses.LOSSES, diffusion.loss, "diffusion.loss")
    if diffusion.loss == "denoising":
        return factory(parameterization, norm, weighting)
    if diffusion.loss == "vlb":
        return factory(parameterization, schedule, model_variance(config), scaled=True)
    if not config.model.learned_variance:
        raise UserError("config.diffusion.loss=hybrid trains a learned variance: set model.learned_variance=true")
    return factory(parameterization, schedule, diffusion.vlb_coefficient, norm, weighting)


def check_trains(config: Config) -> None:
    """Raises UserError for settings of the loss that would be left out in silence."""
    diffusion = config.diffusion
    if config.model.learned_variance and diffusion.loss == "denoising":
        raise UserError("config.model.learned_variance is trained by config.diffusion.loss=hybrid or vlb, not by denoising")
    if diffusion.loss == "vlb" and (diffusion.weighting, diffusion.norm) != ("none", "l2"):
        raise UserError("config.diffusion.weighting and norm are of the denoising and hybrid losses, not of vlb")


def learning_rate_schedule(config: Config) -> Callable:
    training = config.training
    if choose(DECAYS, training.decay, "training.decay") == "constant":
        after = optax.constant_schedule(training.learning_rate)
    else:
        after = optax.cosine_decay_schedule(training.learning_rate, max(training.num_steps - training.warmup_steps, 1))
    if training.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, training.learning_rate, training.warmup_steps)
    return optax.join_schedules([warmup, after], [training.warmup_steps])


def make_optimizer(config: Config, learning_rate: Callable) -> optax.GradientTransformation:
    training = config.training
    if choose(OPTIMIZERS, training.optimizer, "training.optimizer") == "adamw":
        update = optax.adamw(learning_rate, training.b1, training.b2, weight_decay=training.weight_decay)
    else:
        if training.weight_decay:
            raise UserError("config.training.weight_decay needs training.optimizer=adamw")
        update = optax.adam(learning_rate, training.b1, training.b2)
    return optax.chain(clip_by_global_norm(training.clip_norm), update) if training.clip_norm else update


def make_step(config: Config, parts: Parts, layout: Layout | None = None) -> Callable:
    """The training step of `training.step.make_train_step`, as it is put on devices; None: on one.

    The learning rate is one of its metrics: computed on the host's call, it would queue up behind
    the step that is running. """
    data, training = config.data, config.training
    loss_fn = make_loss_fn(parts.apply_fn, parts.schedule, parts.loss, training.label_dropout, data.num_classes, data.augment)
    step = make_train_step(
        layout.gathered(loss_fn) if layout else loss_fn,
        parts.optimizer,
        warmed_up_ema(training.ema_decay),
        parts.timesteps,
        (parts.schedule.t_min, parts.schedule.t_max),
        axis_name=AXIS if layout and layout.pmapped else None,
        accumulation=training.accumulation_steps,
        spread=layout.spread if layout else lambda tree: tree,
    )

    def step_with_rate(state, key, batch):
        after, metrics = step(state, key, batch)
        return after, metrics | {"learning_rate": jnp.asarray(parts.learning_rate(state.step), jnp.float32)}

    return step_with_rate
