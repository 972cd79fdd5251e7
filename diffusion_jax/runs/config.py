"""The settings of a run: dataclasses, their checks, and their JSON round trip.

An experiment file's `get_config()` returns a `Config`; the command line overrides its fields as
`--config.training.batch_size=64`; the resolved one is stored in the workdir as config.json. A field
that names an entry of a registry holds a `Component`: `--config.diffusion.schedule=edm` names one,
`--config.diffusion.schedule.sigma_max=40` sets an argument of it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from diffusion_jax.runs.fields import Group, entries, entry, group, setting
from diffusion_jax.runs.registry import Component, use

__all__ = ["Component", "Config", "use"]


@dataclass
class Data(Group):
    source: Any = entry("data.source", "digits", "the data source")
    modality: Any = entry("data.modality", "images", "what an example is")
    shape: tuple[int, ...] = setting((8, 8, 1), "of an example: height, width and channels")
    num_classes: int = setting(10, "number of labels; 0 trains without labels", least=0)
    train_split: str = setting("train", "the split to train on")
    eval_split: str = setting("test", "the held-out split")
    flip: bool = setting(False, "mirror half of the training images, at random")


@dataclass
class Diffusion(Group):
    schedule: Any = entry(
        "diffusion.schedule", "cosine", "the noise schedule, a table or in continuous time"
    )
    prediction: Any = entry("diffusion.prediction", "eps", "what the network predicts")
    variance: Literal["fixed_small", "fixed_large"] = setting(
        "fixed_small", "of the reverse process where the network does not learn it"
    )
    loss: Any = entry("diffusion.loss", "denoising", "the objective, what training minimises")
    weighting: Any = entry(
        "diffusion.weighting",
        "none",
        "of the squared error by noise level; none weighs what is predicted evenly",
    )
    timesteps: Any = entry("diffusion.timesteps", "uniform", "the distribution of t in training")


def _ends_anywhere(config: Any) -> bool:
    """The last step may change, unless the learning rate depends on it."""
    return config.training.decay not in ("cosine", "linear")


@dataclass
class Training(Group):
    num_steps: int = setting(100_000, "optimizer steps", free=_ends_anywhere, least=1)
    batch_size: int = setting(128, "examples a step, over all devices", least=1)
    init: str = setting("", "workdir of a run from whose averaged parameters this one starts")
    init_sha256: str = setting(
        "", "SHA-256 of those parameters, which a run records when it begins; empty takes any"
    )
    optimizer: Any = entry("training.optimizer", "adam", "the optimizer")
    learning_rate: float = setting(1e-4, "peak learning rate", above=0)
    warmup_steps: int = setting(1000, "steps over which the learning rate rises from 0", least=0)
    decay: Literal["constant", "cosine", "linear", "inverse_sqrt"] = setting(
        "constant",
        "the learning rate after warm-up: constant, cosine or linear to 0 at the last step, or "
        "inverse_sqrt of the step",
    )
    decay_after: int = setting(70_000, "of inverse_sqrt: the step at which it begins", least=1)
    clip_norm: float = setting(1.0, "largest global norm of the gradient; 0 does not clip", least=0)
    freeze: str = setting("", "a regular expression: parameters of such names are not trained")
    ema_decay: float = setting(
        0.9999, "decay of the parameters' moving average, after its warm-up", least=0, below=1
    )
    post_hoc_ema: tuple[float, ...] = setting(
        (), "lengths of averages by powers of time, as 0.05,0.1, of which any other is made later"
    )
    snapshot_every: int = setting(
        1000, "steps between two snapshots of these averages", free=True, least=1
    )
    snapshot_dtype: Literal["float32", "float16"] = setting(
        "float32", "precision of the snapshots", free=True
    )
    accumulation_steps: int = setting(
        1, "parts that a batch is cut into, one after the other, to save memory", least=1
    )
    parallel: Literal["auto", "pmap", "mesh"] = setting(
        "auto",
        "how a step is put on devices: pmap, of one process; mesh, of any; auto takes what can be",
        free=True,
    )
    fsdp: int = setting(
        1, "devices that share one copy of parameters, averages and moments", free=True, least=1
    )
    steps_per_call: int = setting(
        1, "optimizer steps a dispatch; 1 is best on the CPU, 10 or more on fast devices",
        free=True, least=1,
    )  # fmt: skip
    log_every: int = setting(50, "steps between two lines of metrics", free=True, least=1)
    eval_every: int = setting(
        1000, "steps between two evaluations of the held-out loss; 0 for none", free=True, least=0
    )
    eval_examples: int = setting(
        1024, "examples of the held-out loss, each with a fixed t and noise", free=True, least=1
    )
    sample_every: int = setting(
        1000, "steps between two pictures of samples; 0 for none but the last", free=True, least=0
    )
    checkpoint_every: int = setting(1000, "steps between two checkpoints", free=True, least=1)
    keep_checkpoints: int = setting(2, "newest checkpoints to keep", free=True, least=1)
    keep_every: int = setting(
        0, "also keep the checkpoints of this many steps and its multiples; 0 for none",
        free=True, least=0,
    )  # fmt: skip
    profile_steps: str = setting(
        "", 'steps to profile into workdir/profile, first and last, as in "10:15"', free=True
    )


@dataclass
class Sampling(Group):
    sampler: Any = entry("sampling.sampler", "ancestral", "the sampler")
    grid: Any = entry("sampling.grid", "respaced", "how the steps are spread")
    steps: str = setting(
        "250",
        '"250", "10,15,20", "ddim50" where respaced; values of t where explicit; else a number',
    )
    quantize: bool = setting(False, "move the grid to whole t, for networks that know no other")
    tolerance: float = setting(
        0.0, "double the steps until samples change by less, root mean square; 0 for as given",
        least=0,
    )  # fmt: skip
    half_until: float | None = setting(
        None, "the log-SNR up to which images are drawn at half the height and width; none for "
        "nowhere",
    )  # fmt: skip
    clip_x0: bool = setting(True, "clip the predicted x0 to the data's range in every step")
    threshold: float = setting(
        0.0, "dynamic thresholding's percentile, as 0.995; 0 clips as clip_x0 says",
        least=0, below=1,
    )  # fmt: skip
    guidance: float = setting(0.0, "weight w of guidance, eps = (1 + w) eps_c - w eps_u; 0 is none")
    guide: Any = entry("sampling.guide", "classifier_free", "what guidance leads away from")
    cache_every: int = setting(
        1, "steps between two computations of the network's deep features; 1 keeps none", least=1
    )
    cache_blocks: int = setting(
        0, "of a network with kept features: blocks from each end that are computed in every step",
        least=0,
    )  # fmt: skip
    num: int = setting(100, "number of samples", least=1)
    batch_size: int = setting(500, "samples at a time; the samples do not depend on it", least=1)
    seed: int = setting(0, "sample i depends on this and on i alone", least=0, below=2**32)
    ema: bool = setting(True, "sample with the averaged parameters; False: with the raw ones")
    ema_length: float = setting(
        0.0,
        "of the average, as 0.1, made of the snapshots of training.post_hoc_ema; 0 for the EMA",
        least=0,
    )
    label: int = setting(-1, "the class to draw; -1 for all in turn")
    prompts: tuple[str, ...] = setting(
        (), "texts that samples are asked for, in turn; empty takes the held-out examples'"
    )
    negative: str = setting("", "the text that guidance leads away from; empty for no text")
    gif: bool = setting(False, "write the reverse process of the first samples as a GIF, too")
    predicted: bool = setting(
        False, "in the GIF and the strip show the x0 predicted at every level in place of x"
    )
    strip: bool = setting(
        False, "write the reverse process of the first samples as a strip of pictures, too"
    )


@dataclass
class Likelihood(Group):
    method: Literal["bound", "ode"] = setting(
        "bound", "the variational bound of a table's steps, or the probability-flow ODE"
    )
    split: str = setting("test", "the split whose bits/dim are measured")
    examples: int = setting(0, "its first so many examples; 0 for all", least=0)
    batch_size: int = setting(256, "examples at a time; the result does not depend on it", least=1)
    steps: str = setting("", 'the chain: empty for the whole table, or respaced, as in "250"')
    monte_carlo: int = setting(0, "terms drawn for each example; 0 sums up all of them", least=0)
    seed: int = setting(0, "of the noise", least=0, below=2**32)
    ema: bool = setting(True, "use the averaged parameters; False: the raw ones")
    budget: int = setting(
        0, "also choose this many steps by dynamic programming; 0 for none", least=0
    )
    probes: int = setting(
        1, "of ode: random vectors that estimate the divergence; 0 computes it exactly", least=0
    )
    ode_tolerance: float = setting(1e-4, "of ode: relative and absolute", above=0)


@dataclass
class Editing(Group):
    task: str = setting("inpaint", "what `edit` does to the images; how is said by config.sampling")
    images: str = setting(
        "", "the images: .npz with `images` and `labels`, or a .png; empty for the split's first"
    )
    split: str = setting("test", "the split that they are taken from where images is empty")
    num: int = setting(10, "how many images, at most; interpolate takes them in pairs", least=1)
    strength: float = setting(
        0.5, "of image_to_image: how far up the grid an image is noised; 1 forgets it",
        above=0, most=1,
    )  # fmt: skip
    mask: str = setting(
        "bottom",
        "of inpaint, what is removed: left, right, top, bottom, centre; or a .png, white where "
        "kept",
    )
    resamples: int = setting(10, "of inpaint: how often each step is taken", least=1)
    label: int = setting(
        -1, "of translate: the class to arrive at; -1 for the one after the image's own"
    )


@dataclass
class Evaluation(Group):
    features: str = setting(
        "inception", "what images are compared by: inception, digits, pixels or a .py file"
    )
    weights: str = setting(
        "", "of inception: the file; empty for DIFFUSION_JAX_INCEPTION, or pytorch-fid's, fetched"
    )
    num: int = setting(
        50_000, "samples; a greater number later makes only those that are missing", least=10
    )
    batch_size: int = setting(100, "images at a time; the result does not depend on it", least=1)
    replicates: int = setting(
        20, "of the bootstrap for FID's 95 % intervals; 0 leaves out these and FID-infinity",
        least=0,
    )  # fmt: skip
    subsets: int = setting(100, "random subsets that KID is the mean of", least=1)
    bits_per_dim: int = setting(
        64, "held-out examples whose bits/dim are measured by both bounds; 0 for none", least=0
    )
    memorised: int = setting(
        500, "samples whose nearest training images are sought; 0 for none", least=0
    )
    ema_lengths: tuple[float, ...] = setting(
        (), "score the averages of these lengths, each as sampling.ema_length"
    )
    every: int = setting(
        0, "steps of training between two evaluations of every_num samples; 0 for none", least=0
    )
    every_num: int = setting(1000, "samples of an evaluation during training", least=10)


@dataclass
class Config(Group):
    seed: int = setting(
        0, "of the parameters, the data's order, t, noise and dropout", least=0, below=2**32
    )
    data: Data = group(Data)
    codec: Any = entry("codec", "pixels", "between the data and what the diffusion sees")
    conditioning: Any = entries("conditioning", ("label",), "what the network is told, by name")
    model: Any = entry("model", "unet", "the network")
    diffusion: Diffusion = group(Diffusion)
    training: Training = group(Training)
    sampling: Sampling = group(Sampling, free=True)
    likelihood: Likelihood = group(Likelihood, free=True)
    editing: Editing = group(Editing, free=True)
    evaluation: Evaluation = group(Evaluation, free=True)
