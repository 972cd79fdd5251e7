"""The settings of a run: dataclasses, their checks, and their JSON round trip.

An experiment file's `get_config()` returns a `Config`; the command line overrides its fields as
`--config.training.batch_size=64`; the resolved one is stored in the workdir as config.json.
"""

import dataclasses
import json
import pathlib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.runs import experiment_file


def setting(default: Any, doc: str) -> Any:
    """A documented field; `main.py list` prints the text."""
    return field(default=default, metadata={"doc": doc})


def group(cls: type) -> Any:
    return field(default_factory=cls)


@dataclass
class Data:
    source: str = setting("digits", "name of the data source")
    name: str = setting("", "of a tfds source: the data set, as in cifar10:3.0.2")
    folder: str = setting("", "folder: of the images; arrays: the file; tfds: of prepared data, or empty for TFDS_DATA_DIR")
    shape: tuple = setting((8, 8, 1), "height, width and channels of the images")
    num_classes: int = setting(10, "number of labels; 0 trains without labels")
    labels: str = setting("folders", "of a folder: its subfolders; prefix, file names up to _; none; or a CSV of file,label")
    resize: str = setting("center_crop", "of a folder: how images get data.shape; none where they have it")
    unreadable: str = setting("fail", "of a folder: whether files that cannot be read stop the program, or skip")
    cache: bool = setting(False, "of a folder: keep the decoded images in ~/.cache/diffusion_jax/data")
    train_split: str = setting("train", "the split to train on")
    eval_split: str = setting("test", "the held-out split")
    flip: bool = setting(False, "mirror half of the training images, at random")
    augment: float = setting(0.0, "EDM's augmentations, which the network is told of: the probability of each; 0 for none")


@dataclass
class Model:
    name: str = setting("unet", "the network")
    channels: int = setting(128, "channels of the first level")
    channel_mult: tuple = setting((1, 2, 2, 2), "a level's channels over the first's; one entry a level")
    blocks: int = setting(2, "residual blocks a level")
    attention_resolutions: tuple = setting((16,), "image heights, in pixels, at which there is attention")
    heads: int = setting(1, "attention heads")
    head_channels: int = setting(0, "channels of an attention head; 0 takes `heads` heads instead")
    scale_shift: bool = setting(True, "the embedding scales and shifts after the norm; False: it is added before")
    resample_blocks: bool = setting(False, "halve and double by residual blocks; False: by convolutions")
    learned_variance: bool = setting(False, "twice the output channels, the second half for the variance")
    time_scale: float = setting(
        1.0, "the network embeds time_scale * t: 1000 for a continuous t in [0, 1], 1000 / T for Improved DDPM's weights"
    )
    dropout: float = setting(0.0, "dropout rate in the residual blocks")
    dtype: str = setting("float32", "precision of the computation, float32 or bfloat16; parameters stay float32")
    remat: bool = setting(False, "compute each block again in the backward pass, to save memory; the results stay")


@dataclass
class Diffusion:
    schedule: str = setting("cosine", "the noise schedule, a table or in continuous time")
    num_steps: int = setting(1000, "T, the length of the schedule's table; continuous ones have none")
    prediction: str = setting("eps", "what the network predicts")
    variance: str = setting("fixed_small", "of the reverse process where the network does not learn it")
    loss: str = setting("denoising", "the training loss; hybrid needs model.learned_variance")
    norm: str = setting("l2", "of the denoising loss: l2 or l1")
    weighting: str = setting("none", "of the denoising loss by noise level; none weighs the error of what is predicted evenly")
    vlb_coefficient: float = setting(0.001, "of the variational bound in the hybrid loss")
    timesteps: str = setting("uniform", "the distribution of t in training")


@dataclass
class Training:
    num_steps: int = setting(100_000, "optimizer steps")
    batch_size: int = setting(128, "images a step, over all devices")
    optimizer: str = setting("adam", "adam or adamw")
    learning_rate: float = setting(1e-4, "peak learning rate")
    warmup_steps: int = setting(1000, "steps over which the learning rate rises from 0")
    decay: str = setting("constant", "the learning rate after warm-up: constant, or cosine to 0 at the last step")
    b1: float = setting(0.9, "Adam's decay of the gradient's mean")
    b2: float = setting(0.999, "Adam's decay of the gradient's square")
    weight_decay: float = setting(0.0, "of adamw")
    clip_norm: float = setting(1.0, "largest global norm of the gradient; 0 does not clip")
    label_dropout: float = setting(0.0, "share of training examples without their label, for guidance")
    ema_decay: float = setting(0.9999, "decay of the parameters' moving average, after its warm-up")
    accumulation_steps: int = setting(1, "parts that a batch is cut into, one after the other, to save memory")
    parallel: str = setting("auto", "how a step is put on devices: pmap, of one process; mesh, of any; auto takes what can be")
    fsdp: int = setting(1, "devices that share one copy of parameters, averages and moments, in place of one copy each")
    steps_per_call: int = setting(1, "optimizer steps a dispatch; 1 is best on the CPU, 10 or more on fast devices")
    log_every: int = setting(50, "steps between two lines of metrics")
    eval_every: int = setting(1000, "steps between two evaluations of the held-out loss; 0 for none")
    eval_examples: int = setting(1024, "examples of the held-out loss, each with a fixed t and noise")
    sample_every: int = setting(1000, "steps between two pictures of samples; 0 for none but the last")
    checkpoint_every: int = setting(1000, "steps between two checkpoints")
    keep_checkpoints: int = setting(2, "newest checkpoints to keep")
    keep_every: int = setting(0, "also keep the checkpoints of this many steps and its multiples, for ever; 0 for none")
    profile_steps: str = setting("", 'steps to profile into workdir/profile, first and last, as in "10:15"; empty for none')


@dataclass
class Sampling:
    sampler: str = setting("ancestral", "the sampler")
    variance: str = setting("model", "of ancestral: fixed_small, fixed_large or learned_range; model takes the model's own")
    eta: float = setting(0.0, "of ddim: 0 is deterministic, 1 as noisy as ancestral")
    churn: float = setting(40.0, "of edm_churn: S_churn, the noise added over all steps")
    snr: float = setting(0.16, "of predictor_corrector: the signal-to-noise ratio of a Langevin step")
    ode_tolerance: float = setting(1e-4, "of adaptive_ode: relative and absolute")
    grid: str = setting("respaced", "how the steps are spread")
    steps: str = setting("250", '"250", "10,15,20", "ddim50" where respaced; values of t where explicit; a number elsewhere')
    rho: float = setting(7.0, "of the karras grid: how much finer it is where it is clean")
    quantize: bool = setting(False, "move the grid to whole t, for networks that know no other")
    tolerance: float = setting(0.0, "double the steps until samples change by less, root mean square; 0 takes them as given")
    clip_x0: bool = setting(True, "clip the predicted image to the data's range in every step")
    threshold: float = setting(0.0, "dynamic thresholding's percentile, as 0.995; 0 clips as clip_x0 says")
    guidance: float = setting(0.0, "weight w of guidance, eps = (1 + w) eps_c - w eps_u; 0 is none")
    guidance_interval: str = setting("", 'sigma/alpha between which guidance acts, as in "0.3,3"; empty for all')
    guidance_rescale: float = setting(0.0, "share in which a guided image's contrast is brought back to the unguided one's")
    guidance_every: int = setting(1, "steps between two evaluations of the unconditional, or weaker, network")
    weak: str = setting("", "autoguidance: the workdir of a weaker run of the same network; empty guides by the label")
    num: int = setting(100, "number of samples")
    batch_size: int = setting(500, "samples at a time; the samples do not depend on it")
    seed: int = setting(0, "sample i depends on this and on i alone")
    ema: bool = setting(True, "sample with the averaged parameters; False: with the raw ones")
    label: int = setting(-1, "the class to draw; -1 for all in turn")
    gif: bool = setting(False, "write the reverse process of the first samples as a GIF, too")
    predicted: bool = setting(False, "in the GIF and the strip show the x0 predicted at every level in place of x")
    strip: bool = setting(False, "write the reverse process of the first samples as a strip of pictures, too")


@dataclass
class Likelihood:
    method: str = setting("bound", "bound, the variational one of a table's steps, or ode, by the probability flow")
    split: str = setting("test", "the split whose bits/dim are measured")
    examples: int = setting(0, "its first so many examples; 0 for all")
    batch_size: int = setting(256, "examples at a time; the result does not depend on it")
    steps: str = setting("", 'the chain: empty for the whole table, or respaced, as in "250"')
    monte_carlo: int = setting(0, "terms drawn for each example; 0 sums up all of them")
    seed: int = setting(0, "of the noise")
    ema: bool = setting(True, "use the averaged parameters; False: the raw ones")
    budget: int = setting(0, "also choose this many steps by dynamic programming; 0 for none")
    probes: int = setting(1, "of ode: random vectors that estimate the divergence; 0 computes it, pixel by pixel")
    ode_tolerance: float = setting(1e-4, "of ode: relative and absolute")


@dataclass
class Editing:
    task: str = setting("inpaint", "what `edit` does to the images; how is said by config.sampling")
    images: str = setting("", "the images: .npz with `images` and `labels`, or a .png; empty for the split's first")
    split: str = setting("test", "the split that they are taken from where images is empty")
    num: int = setting(10, "how many images, at most; interpolate takes them in pairs")
    strength: float = setting(0.5, "of image_to_image: how far up the grid an image is noised; 1 forgets it")
    mask: str = setting("bottom", "of inpaint, what is removed: left, right, top, bottom, centre; or a .png, white where kept")
    resamples: int = setting(10, "of inpaint: how often each step is taken")
    label: int = setting(-1, "of translate: the class to arrive at; -1 for the one after the image's own")


@dataclass
class Evaluation:
    features: str = setting("inception", "what images are compared by: inception, digits, pixels or a .py file of your own")
    weights: str = setting("", "of inception: the file; empty for DIFFUSION_JAX_INCEPTION, or pytorch-fid's, which is fetched")
    num: int = setting(50_000, "samples; a greater number later makes only those that are missing")
    batch_size: int = setting(100, "images at a time; the result does not depend on it")
    replicates: int = setting(20, "of the bootstrap for FID's 95 % intervals; 0 leaves out these and FID-infinity")
    subsets: int = setting(100, "random subsets that KID is the mean of")
    bits_per_dim: int = setting(64, "held-out examples whose bits/dim are measured by both bounds; 0 for none")
    memorised: int = setting(500, "samples whose nearest training images are sought; 0 for none")
    every: int = setting(0, "steps of training between two evaluations of every_num samples; 0 for none")
    every_num: int = setting(1000, "samples of an evaluation during training")


@dataclass
class Config:
    seed: int = setting(0, "of the parameters, the data's order, t, noise and dropout")
    data: Data = group(Data)
    model: Model = group(Model)
    diffusion: Diffusion = group(Diffusion)
    training: Training = group(Training)
    sampling: Sampling = group(Sampling)
    likelihood: Likelihood = group(Likelihood)
    editing: Editing = group(Editing)
    evaluation: Evaluation = group(Evaluation)


# What may change between two starts in one workdir: how long, how often, what to draw. All else is
# the experiment.
FREE_FIELDS = {
    "data.folder",
    "data.cache",
    "model.remat",
    "training.num_steps",
    "training.log_every",
    "training.eval_every",
    "training.eval_examples",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.profile_steps",
    "training.steps_per_call",
    "training.parallel",
    "training.fsdp",
}


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted path, field, value) of every setting, in order."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, value


def check_path(config: Config, path: str) -> None:
    """Raises UserError, naming the nearest field, where a dotted path is none of the config's
    settings."""
    paths = [known for known, _, _ in fields(config)]
    if path not in paths:
        last = path.rpartition(".")[2]
        same = [known for known in paths if known.rpartition(".")[2] == last]
        hint = f"did you mean {same[0]!r}?" if len(same) == 1 else nearest(path, paths)
        raise UserError(f"config has no field {path!r}; {hint}")


KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    tuple: "whole numbers such as 1,2,2",
}


def choose(registry: Mapping[str, Any] | tuple, name: str, field: str) -> Any:
    """The entry of a registry, or UserError with the nearest name."""
    if name not in registry:
        raise UserError(f"config.{field} has no {name!r}; {nearest(name, registry)}")
    return registry[name] if isinstance(registry, Mapping) else name


def kinds() -> dict[str, type]:
    """dotted path -> the type of that setting."""
    groups = {"": Config, "data.": Data, "model.": Model, "diffusion.": Diffusion, "training.": Training, "sampling.": Sampling}
    groups |= {"likelihood.": Likelihood, "editing.": Editing, "evaluation.": Evaluation}
    return {prefix + name: kind for prefix, cls in groups.items() for name, kind in typing.get_type_hints(cls).items()}


def check_types(config: Config) -> None:
    """Raises UserError for a value of the wrong type. Whole numbers count as numbers, lists as
    tuples."""
    wanted = kinds()
    for path, _, value in fields(config):
        kind = wanted[path]
        if kind is tuple:
            fits = isinstance(value, (tuple, list)) and all(type(v) is int for v in value)
        else:
            fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise UserError(f"config.{path} must be {KINDS[kind]}, not {value!r}")


def explain_value(message: str) -> str:
    """absl's message about a flag's value, made to say what would be right."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if not found or found[1] not in kinds():
        return message
    return f"config.{found[1]} must be {KINDS[kinds()[found[1]]]}, not {found[2]!r}"


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(values: dict) -> Config:
    """The Config of what `to_json` wrote; fields that it lacks take their defaults."""
    config = Config()

    def fill(target, values, prefix):
        for name, value in values.items():
            current = getattr(target, name, None)
            if dataclasses.is_dataclass(current) and isinstance(value, dict):
                fill(current, value, f"{prefix}{name}.")
            else:
                check_path(config, prefix + name)
                setattr(target, name, tuple(value) if isinstance(value, list) else value)

    fill(config, values, "")
    check_types(config)
    return config


def load(path: str | pathlib.Path) -> Config:
    """The Config of an experiment file (.py with a `get_config()`) or of a stored config.json."""
    path = pathlib.Path(path)
    if not path.is_file():
        directory = path.parent if path.parent.is_dir() else pathlib.Path("experiments")
        names = [str(p) for p in directory.glob("*.py") if p.name != "__init__.py"]
        raise UserError(f"no config file {str(path)!r}" + (f"; {nearest(str(path), names)}" if names else ""))
    if path.suffix == ".json":
        try:
            return from_dict(json.loads(path.read_text()))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is no stored config: {error}") from None
    config = experiment_file.read(path)
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a diffusion_jax.runs.config.Config, not {type(config).__name__}")
    return config


def differences(old: Config, new: Config) -> list[str]:
    """'path: old -> new' for every setting that makes two configs different experiments."""
    free = FREE_FIELDS if new.training.decay == "constant" else FREE_FIELDS - {"training.num_steps"}
    pairs = zip(fields(old), fields(new), strict=True)
    return [
        f"{path}: {was!r} -> {now!r}"
        for (path, _, was), (_, _, now) in pairs
        if was != now and path not in free and not path.startswith(("sampling.", "likelihood.", "editing.", "evaluation."))
    ]
