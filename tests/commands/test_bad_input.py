"""What the program says to bad input: one line with the nearest right one, no trace of a run."""

import pytest
from tiny import experiment_file, main_run, run_command

from diffusion_jax.core.errors import UserError

NEW = ("--workdir", "{new}", "--config", "{experiment}")
TRAIN, DATA, FIGURES = (("train", *NEW), ("data", *NEW), ("figures", *NEW))
RUN = ("--workdir", "{run}")
SAMPLE, NLL = ("sample", *RUN), ("nll", *RUN)
IMPORT = ("import", "--workdir", "{new}")


def settings(*pairs):
    return tuple(f"--config.{pair}" for pair in pairs)


WORDS = [
    (("trian", *NEW), "unknown command 'trian'; did you mean 'train'?"),
    (("train",), "--workdir is missing"),
    (("train", "--workdir", "{new}"), "holds no run; start one with --config"),
    (("train", "--workdir", "{new}", "--config", "experiments/digit.py"), "did you mean"),
    (("train", "--workdir", "--config", "{experiment}"), "--workdir needs a value"),
    ((*TRAIN, "--confg=3"), "unknown flag --confg; did you mean 'config'?"),
    ((*TRAIN, "extra"), "unexpected 'extra'"),
    ((*TRAIN, "--device=H100"), "unknown flag --device"),
    (("list", "--workdir", "{new}"), "unknown flag --workdir"),
    (("plan", "--config", "{experiment}", "--devices=3"), "batch_size=16 is not divisible by 3"),
    (("plan", "--config", "{experiment}", "--devices=two"), "--devices must be a whole number"),
    (("train", *RUN, "--config", "{experiment}", "--config.seed=3"),
     "holds a run with other settings (seed: 0 -> 3)"),
    (("sample", "--workdir", "{new}"), "holds no run"),
    (IMPORT + ("--weights", "a.pt"), "--config is missing"),
    (IMPORT + ("--config", "{experiment}"), "--weights is missing"),
    (IMPORT + ("--config", "{experiment}", "--weights", "no.safetensors"), "no file"),
    (("export-weights", *RUN, "--weights", "a.bin"), "must end in .safetensors"),
    (("export-weights", *RUN), "--weights is missing"),
    (("figures", *RUN, "--config.seed=5"), "holds a run with other settings"),
    (("data", *RUN, "--config.data.flip=false"), "holds a run with other settings (data.flip"),
]  # fmt: skip

OF_TRAIN = [
    ("training.batch_sise=3", "did you mean 'training.batch_size'?"),
    ("batch_size=3", "did you mean"),
    ("training.batch_size=many", "config.training.batch_size must be a whole number, not 'many'"),
    ("training.learning_rate=fast", "must be a number, not 'fast'"),
    ("data.flip=perhaps", "must be true or false, not 'perhaps'"),
    ("model.channel_mult=1,x", "must be whole numbers such as 1,2,2"),
    ("diffusion.schedule=cosinus", "did you mean 'cosine'?"),
    ("diffusion.schedule=linear diffusion.schedule.num_steps=5", "at least 20"),
    ("sampling.sampler=dimm", "did you mean 'ddim'?"),
    ("data.source=digit", "did you mean 'digits'?"),
    ("data.shape=32,32,3", "images of shape (8, 8, 1), but config.data.shape is (32, 32, 3)"),
    ("data.shape=8,8", "config.data.shape: images have a height, a width and channels, not (8, 8)"),
    ("data.eval_split=validation", "splits train and test"),
    ("data.source=tfds", "config.data.source.name is empty; it is the data set"),
    ("training.accumulation_steps=3", "training.batch_size=16 is not divisible"),
    ("training.steps_per_call=3", "must be a multiple of steps_per_call=3"),
    ("training.num_steps=0", "must be at least 1"),
    ("training.ema_decay=1", "below 1"),
    ("training.profile_steps=5", "the first and the last step, as in \"10:15\", not '5'"),
    ("training.init=runs/none", "config.training.init must be the workdir of a run, but runs/none"),
    ("training.freeze=no_such", "config.training.freeze: 'no_such' names none of the parameters"),
    ("training.freeze=.", "config.training.freeze: '.' names all of the parameters"),
    ("training.freeze=(", "config.training.freeze: '(' is no regular expression: "),
    ("model.channel_mult=1,1,1,1,1", "cannot be halved 4 times"),
    ("model.attention_resolutions=8 model.heads=3", "3"),
    ("model.attention_resolutions=5", "the levels have heights [8]"),
    ("model.dtype=float16", "use bfloat16, which has float32's range"),
    ("diffusion.loss.norm=l3", "config.diffusion.loss.norm has no 'l3'; did you mean 'l2'?"),
    ("diffusion.loss=hybrid", "set model.learned_variance=true"),
    ("model.learned_variance=true", "is trained by config.diffusion.loss=hybrid or vlb"),
    ("diffusion.loss=vlb diffusion.weighting=p2", "not of vlb"),
    ("diffusion.weighting=minsnr", "did you mean 'min_snr'?"),
    ("diffusion.weighting=p2 diffusion.loss.norm=l1", "needs the l2 norm"),
    ("seed=4294967296", "below 2**32"),
    ("sampling.guide=autoguidance sampling.guidance=1 sampling.guide.weak=runs/none",
     "runs/none holds none"),
    ("conditioning.label.dropout=1", "below 1"),
    ("data.num_classes=0 conditioning.label.dropout=0.1", "needs labels"),
    ("conditioning=label,augmentation", "set data.flip=false"),
    ("conditioning=given data.flip=false", "the data have no entry 'text'; they have image, label"),
    ("diffusion.schedule=vp", "this distribution of t needs a table schedule"),
    ("diffusion.schedule=vp diffusion.timesteps=uniform diffusion.loss=vlb",
     "the variational bound of steps needs a table schedule"),
    ("diffusion.schedule=vp diffusion.prediction=mean",
     "the mean prediction needs a table schedule"),
    ("diffusion.schedule=linear diffusion.schedule.num_steps=20 diffusion.prediction=edm",
     "edm cannot be decoded at alpha = 0"),
    ("data.source=folder data.source.folder=no/photos", "folder=no/photos is no folder"),
    ("data.source=arrays data.source.folder=no.npz", "holds no arrays: No such file"),
    ("data.source=folder data.source.resize=crop",
     "config.data.source.resize has no 'crop'; did you mean 'center_crop'?"),
    ("data.source.resize=crop", "digits has no argument 'resize'"),
]  # fmt: skip

OF_SAMPLE = [
    ("sampling.steps=ddim9", "nearest that exist: ddim7 and ddim10"),
    ("sampling.steps=21", "at most 20"),
    ("sampling.label=10", "0 to 9"),
    ("sampling.num=0", "at least 1"),
    ("model.channels=32", "sampling takes only"),
    ("sampling.sampler.variance=learned_range", "no learned variance"),
    ("sampling.sampler.variance=learned", "did you mean 'learned_range'?"),
    ("sampling.guidance=2", "trained with a condition whose dropout is above 0, as"),
    ("sampling.guidance=nan", "must be finite"),
    ("sampling.guide.interval=3", "0 <= low < high, as in 0.3,3, not (3.0,)"),
    ("sampling.guide.interval=3,1", "0 <= low < high"),
    ("sampling.guide.interval=low,3", "must be numbers such as 0.3,3, not 'low,3'"),
    ("sampling.guide.rescale=1.5", "rescale must lie in [0, 1], not 1.5"),
    ("sampling.guide.every=0", "every must be at least 1, not 0"),
    ("sampling.threshold=1", "below 1"),
    ("sampling.guide=autoguidance", "weight config.sampling.guidance, which is 0"),
    ("sampling.guide=autoguidance sampling.guidance=1", "weak must be the workdir of a weaker run"),
    ("sampling.sampler=predictor_corrector sampling.sampler.snr=nan",
     "config.sampling.sampler.snr must be finite, not nan"),
    ("sampling.tolerance=0.1", "ancestral draws anew in every step"),
    ("sampling.grid=explicit sampling.steps=3,20", "between 0 and 19"),
    ("sampling.grid=karras sampling.steps=ddim5", "must be a number for the karras grid"),
]  # fmt: skip

OTHERS = [
    (NLL, "likelihood.budget=30", "between 2 and 20"),
    (NLL, "likelihood.split=valid", "splits train and test"),
    (NLL, "likelihood.method=odes", "did you mean 'ode'?"),
    (("plan", "--config", "{experiment}"), "model.learned_variance=true",
     "is trained by config.diffusion.loss=hybrid or vlb"),
    (FIGURES, "data.train_split=valid", "splits train and test"),
    (FIGURES, "diffusion.schedule=vp diffusion.timesteps=uniform sampling.grid=uniform",
     "need a table of steps (linear, cosine, sigmoid); vp has config.likelihood.method=ode"),
    (DATA, "data.source=folder data.source.unreadable=ignore",
     "config.data.source.unreadable has no 'ignore'; known: fail, skip"),
    (DATA, "data.source=folder data.source.folder=no/photos", "folder=no/photos is no folder"),
]  # fmt: skip

BAD_INPUT = WORDS + [
    ((*start, *settings(*pairs.split())), message)
    for start, pairs, message in (
        *((TRAIN, *case) for case in OF_TRAIN),
        *((SAMPLE, *case) for case in OF_SAMPLE),
        *OTHERS,
    )
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_INPUT, ids=[" ".join(a[0:1] + a[-1:]) for a, _ in BAD_INPUT]
)
def test_bad_input_is_named_in_a_line_and_leaves_no_trace(workdir, tmp_path, arguments, message):
    names = {"new": tmp_path / "new", "run": workdir, "experiment": experiment_file(tmp_path)}
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError) as error:
        main_run(*(argument.format(**names) for argument in arguments))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_the_program_says_it_in_one_line_and_exits_with_2(tmp_path):
    done = run_command(
        "--workdir", tmp_path / "new", "--config", experiment_file(tmp_path), "--config.seed=-1"
    )
    assert done.returncode == 2
    assert done.stderr == "error: config.seed must be at least 0 and below 2**32, not -1\n"
    assert done.stdout == ""
