"""What must hold between the settings of a run, in one line where it does not."""

import re

import jax

from diffusion_jax.codecs import Codec
from diffusion_jax.conditioning import guidance_weight
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.latents import Latents
from diffusion_jax.core.types import PyTree, Schedule, Variance
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registry import make, use
from diffusion_jax.training.power_ema import exponent
from diffusion_jax.training.profiling import parse_steps
from diffusion_jax.training.state import split


def check_together(config: Config) -> None:
    """Raises UserError for settings that do not go together and that no library function would
    find."""
    training, sampling, data = config.training, config.sampling, config.data
    conditions = [one.entry for one in config.conditioning]
    if len(data.shape) < 1 or min(data.shape) < 1:
        raise UserError(f"config.data.shape must be sizes of at least 1, not {data.shape}")
    try:
        make(data.modality, {}).check(tuple(data.shape))
    except ValueError as error:
        raise UserError(f"config.data.shape: {error}") from None
    classes = data.num_classes if "label" in conditions else 0
    if sampling.label >= 0 and not classes:
        raise UserError(f"config.sampling.label={sampling.label}, but this run has no classes")
    if not -1 <= sampling.label < max(classes, 1):
        raise UserError(
            f"config.sampling.label must be -1, for all, or 0 to {classes - 1}, "
            f"not {sampling.label}"
        )
    if config.diffusion.loss.entry == "autoencoding":
        check_reconstructs(config)
    if guidance_weight.NAME in conditions:
        check_told_weight(config)
    elif sampling.guidance:
        check_can_guide(config)
    elif sampling.negative:
        raise UserError("config.sampling.negative needs guidance: config.sampling.guidance is 0")
    elif sampling.guide.entry == "autoguidance":
        raise UserError("config.sampling.guide=autoguidance guides by the weight "
                        "config.sampling.guidance, which is 0")  # fmt: skip
    if "augmentation" in conditions and data.modality.entry != "images":
        raise UserError(
            f"config.conditioning: augmentation is of images, not of {data.modality.entry}"
        )
    if "augmentation" in conditions and data.flip:
        raise UserError(
            "the augmentation mirrors half of the images and tells the network which: "
            "set data.flip=false"
        )
    if "image" in conditions and (data.flip or "augmentation" in conditions):
        raise UserError(
            "config.conditioning: an image that is told is neither mirrored nor transformed with "
            "the example; set data.flip=false and leave out augmentation"
        )
    if "low" in conditions and data.modality.entry != "images":
        raise UserError(f"config.conditioning: low is of images, not of {data.modality.entry}")
    if "low" in conditions and "augmentation" in conditions[conditions.index("low") :]:
        raise UserError(
            "config.conditioning: low is of the transformed image: name it after augmentation"
        )
    if config.codec.entry == "autoencoder":
        for name in {"augmentation", "low"} & set(conditions):
            raise UserError(f"config.conditioning: {name} is of pixels, which latents are not")
    if sampling.half_until is not None:
        for name, there in (("low", "low" in conditions), ("sampling.gif", sampling.gif),
                            ("sampling.strip", sampling.strip)):  # fmt: skip
            if there:
                raise UserError(f"config.sampling.half_until does not go with {name}, which is of "
                                "one size")  # fmt: skip
    if sampling.negative and not sampling.prompts:
        raise UserError("config.sampling.negative needs a prompt: config.sampling.prompts is empty")
    if not sampling.ema and (sampling.ema_length or config.evaluation.ema_lengths):
        raise UserError("an average's length is asked for, but config.sampling.ema is false")
    try:
        for length in (sampling.ema_length, *config.evaluation.ema_lengths):
            _ = exponent(length) if length else 0
    except ValueError as error:
        raise UserError(f"config.sampling.ema_length or evaluation.ema_lengths: {error}") from None
    if config.evaluation.replicates == 1:
        raise UserError("config.evaluation.replicates must be 0 or at least 2: one has no spread")
    parse_steps(training.profile_steps)
    if len(set(training.post_hoc_ema)) < len(training.post_hoc_ema):
        raise UserError(f"config.training.post_hoc_ema has a length twice: {training.post_hoc_ema}")
    each = training.steps_per_call
    if config.evaluation.every % each:
        raise UserError(f"config.evaluation.every must be a multiple of steps_per_call={each}")
    due = ["num_steps", "log_every", "eval_every", "sample_every", "checkpoint_every"]
    for name in due + ["snapshot_every"] * bool(training.post_hoc_ema):
        if getattr(training, name) % each:
            raise UserError(f"config.training.{name} must be a multiple of steps_per_call={each}")
    if training.keep_every % training.checkpoint_every:
        raise UserError(
            f"config.training.keep_every={training.keep_every} must be a multiple of "
            f"checkpoint_every={training.checkpoint_every}: no other step is saved"
        )


def check_latents(config: Config, latents: Latents | None) -> None:
    """Raises UserError where autoencoding is not of an autoencoder, or an autoencoder would learn
    to denoise. latents: those of the network, None where it is no autoencoder."""
    loss, model = config.diffusion.loss.entry, config.model.entry
    if loss == "autoencoding" and latents is None:
        raise UserError(
            "config.diffusion.loss=autoencoding trains an autoencoder, as config.model=autoencoder,"
            f" not {model}"
        )
    if loss != "autoencoding" and latents is not None:
        raise UserError(
            f"config.model={model} is no denoiser: it is trained by "
            f"config.diffusion.loss=autoencoding, not by {loss}"
        )


def check_diffuses(config: Config, what: str) -> None:
    """Raises UserError where a run has no diffusion model, which `what` is done with."""
    if config.diffusion.loss.entry == "autoencoding":
        raise UserError(f"{what} of a diffusion model; this run's is an autoencoder, "
                        "which reconstructs images and draws none")  # fmt: skip


def check_reconstructs(config: Config) -> None:
    """Raises UserError for settings of sampling that mean nothing where images are
    reconstructed."""
    sampling = config.sampling
    told = [one.entry for one in config.conditioning]
    if told:
        raise UserError(f"config.conditioning: an autoencoder is told nothing, not {told[0]}; "
                        "set config.conditioning=()")  # fmt: skip
    for name in ("guidance", "tolerance", "threshold", "gif", "strip"):
        if getattr(sampling, name):
            check_diffuses(config, f"config.sampling.{name} is")
    if sampling.half_until is not None:
        check_diffuses(config, "config.sampling.half_until is")


def check_told_weight(config: Config) -> None:
    """Raises UserError where a network that is told guidance's weight is asked for one that it has
    not learnt, or for guidance by two calls."""
    sampling, told = config.sampling, getattr(config.conditioning, guidance_weight.NAME)
    if sampling.guidance and not told.low <= sampling.guidance <= told.high:
        raise UserError(
            f"config.sampling.guidance must lie in [{told.low:g}, {told.high:g}], the weights that "
            f"this run is told, not {sampling.guidance:g}"
        )
    if sampling.negative or sampling.guide != use("classifier_free"):
        raise UserError(
            "config.sampling.guide and negative are of guidance by two calls; this run is told its "
            "weight, config.sampling.guidance"
        )


def check_can_guide(config: Config) -> None:
    """Raises UserError where a run has nothing to be guided away from."""
    drops = any(one.values().get("dropout") for one in config.conditioning)
    if config.sampling.guide.entry != "autoguidance" and not drops:
        raise UserError(
            "config.sampling.guidance needs a run trained with a condition whose dropout is above "
            "0, as config.conditioning.label.dropout=0.1, "
            "or a weaker one: config.sampling.guide=autoguidance with "
            "config.sampling.guide.weak=WORKDIR"
        )


def check_decodable(config: Config, schedule: Schedule) -> None:
    """Raises UserError where x0 cannot be had from the prediction at the schedule's noisy end."""
    name = config.diffusion.prediction.entry
    with jax.ensure_compile_time_eval():  # a run may be built inside a jitted function
        ends_at_noise = float(schedule.level(schedule.t_max).alpha) == 0.0
    if name in ("eps", "score", "edm") and ends_at_noise:
        raise UserError(
            f"{name} cannot be decoded at alpha = 0, where this schedule ends; use v or x0"
        )


def check_freeze(pattern: str, params: PyTree) -> None:
    """Raises UserError where training.freeze names no parameters, or all of them."""
    try:
        split(params, pattern)
    except ValueError as error:
        raise UserError(f"config.training.freeze: {error}") from None


def check_trains(config: Config, variance: Variance, teacher: bool = False) -> None:
    """Raises UserError where the network has a learned variance that the loss would leave as it is,
    or where the loss learns from a teacher and none is named.

    Of training alone: a run made of imported weights draws whatever its loss."""
    loss = config.diffusion.loss.entry
    if teacher and not config.training.init:
        raise UserError(
            f"config.diffusion.loss={loss} learns from a trained network: set "
            "config.training.init to the workdir of its run"
        )
    if variance == "learned_range" and (teacher or loss in ("denoising", "uncertainty")):
        raise UserError(
            "config.model.learned_variance is trained by config.diffusion.loss=hybrid or vlb, "
            f"not by {loss}"
        )


def check_attention(config: Config, on_mesh: bool = False) -> None:
    """Raises UserError for attention in bfloat16 on a GPU of before Ampere, which cuDNN's does not
    run on, and for Pallas's in a step that XLA is to partition."""
    values = config.model.values()
    if on_mesh and values.get("attention") == "pallas":
        raise UserError(
            "config.model.attention=pallas is for one process with fsdp=1 and a pmapped step; "
            "use auto or plain"
        )
    if values.get("dtype") != "bfloat16" or values.get("attention") != "auto":
        return
    for device in jax.local_devices():
        capability = str(getattr(device, "compute_capability", ""))
        if re.fullmatch(r"[0-9]+\.[0-9]+", capability) and float(capability) < 8.0:
            raise UserError(
                f"{device.device_kind} is too old for cuDNN's attention in bfloat16; use "
                "config.model.attention=plain, or train in float32, which is faster on it"
            )


def check_clippable(config: Config, codec: Codec) -> None:
    """Raises UserError where x0 would be thresholded but has no range."""
    if config.sampling.threshold and codec.range != (-1.0, 1.0):
        raise UserError(
            f"config.sampling.threshold is of x0 in [-1, 1], which that of the codec "
            f"{config.codec.entry} is not"
        )
