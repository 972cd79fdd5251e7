"""The command line: what it writes, and what it says to bad input."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import ROOT, experiment_file, pixels, run_command, tiny_config

import main
from diffusion_jax.commands import train as loop
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.workdir import open_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "run"
    loop.train(tiny_config(num_steps=4), folder)
    return folder


def run(*arguments):
    main.run(["main.py", *map(str, arguments)])


def newest(workdir):
    return max(
        (path for path in (workdir / "samples").iterdir() if path.is_dir()),
        key=lambda path: path.stat().st_mtime_ns,
    )


def test_sample_writes_grid_pictures_array_gif_and_strip(workdir, capsys):
    run(
        "sample", "--workdir", workdir, "--config.sampling.gif=true", "--config.sampling.strip=true"
    )
    folder = newest(workdir)
    assert capsys.readouterr().out == f"samples: {folder}\n"
    arrays = tiny.arrays(folder / "samples.npz")
    assert arrays["images"].shape == (20, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"], np.arange(20) % 10)
    np.testing.assert_array_equal(pixels(folder / "00013.png"), arrays["images"][13, :, :, 0])
    with Image.open(folder / "chain.gif") as gif:
        assert gif.n_frames == 6  # five levels, and the result
    assert pixels(folder / "chain.png").shape[1] > 100
    grid = pixels(folder / "grid.png")
    times = grid.shape[0] // (10 * 9 + 1)
    np.testing.assert_array_equal(
        grid[::times, ::times][1 + 3 * 9 : 9 + 3 * 9, 10:18], arrays["images"][13, :, :, 0]
    )


def test_a_sample_depends_on_seed_and_number_alone(workdir):
    def images(*settings):
        run(
            "sample",
            "--workdir",
            workdir,
            *(f"--config.sampling.{setting}" for setting in settings),
        )
        return tiny.arrays(newest(workdir) / "samples.npz")["images"].astype(int)

    twenty = images("num=20")
    assert abs(twenty - images("num=20", "batch_size=7")).max() <= 1  # a grey level of rounding
    assert abs(twenty[:3] - images("num=3")).max() <= 1
    assert abs(twenty - images("num=20", "seed=1")).max() > 10
    assert abs(twenty - images("num=20", "ema=false")).max() > 1


def test_a_class_can_be_asked_for_and_a_sampler_chosen(workdir):
    run(
        "sample",
        "--workdir",
        workdir,
        "--config.sampling.label=7",
        "--config.sampling.sampler=ddim",
        "--config.sampling.num=4",
    )
    folder = newest(workdir)
    assert "ddim-5" in folder.name
    np.testing.assert_array_equal(tiny.arrays(folder / "samples.npz")["labels"], [7] * 4)


def test_samples_are_guided_by_the_label_or_by_a_weaker_run(workdir, improved):
    def images(workdir, *settings):
        run(
            "sample",
            "--workdir",
            workdir,
            *(f"--config.sampling.{setting}" for setting in settings),
        )
        return tiny.arrays(newest(workdir) / "samples.npz")["images"].astype(int)

    images(improved, "guidance=3")
    assert "-guidance3-" in newest(improved).name
    itself = images(
        workdir, "guidance=2", f"weak={workdir}"
    )  # leads nowhere, since it is no weaker
    assert abs(itself - images(workdir)).max() <= 1
    with pytest.raises(
        UserError, match=r"a run of another network \(.*model.learned_variance.*label_dropout"
    ):
        run(
            "sample",
            "--workdir",
            workdir,
            "--config.sampling.guidance=2",
            f"--config.sampling.weak={improved}",
        )


def test_list_names_experiments_registries_and_settings(capsys):
    run("list")
    text = capsys.readouterr().out
    for word in (
        "experiments/digits.py",
        "cosine",
        "ancestral",
        "ddim",
        "--config.training.batch_size=128",
        "images a step",
    ):
        assert word in text


@pytest.fixture(scope="module")
def improved(tmp_path_factory):
    """A run with learned variance, the hybrid loss, importance-sampled t and labels dropped."""
    folder = tmp_path_factory.mktemp("improved") / "run"
    config = tiny_config(num_steps=4, eval_every=0)
    config.model.learned_variance = True
    config.diffusion.prediction, config.diffusion.loss, config.diffusion.timesteps = (
        "eps",
        "hybrid",
        "second_moment",
    )
    config.training.label_dropout = 0.2
    loop.train(config, folder)
    return folder


def test_nll_reports_the_bound_term_by_term_with_a_plot_and_the_best_steps(improved, capsys):
    run(
        "nll",
        "--workdir",
        improved,
        "--config.likelihood.examples=24",
        "--config.likelihood.budget=5",
    )
    path = improved / "nll" / "step4-test-20-examples24.json"
    report = json.loads(path.read_text())
    bits = f"{report['bits_per_dim']:.3f} bits/dim +- {report['standard_error']:.3f}"
    assert capsys.readouterr().out == f"{bits}\n{path}\n"
    assert report["examples"] == 24
    assert report["variance"] == "learned_range"
    assert len(report["terms"]) == len(report["x0_mse"]) == len(report["eps_mse"]) == 20
    assert report["bits_per_dim"] == pytest.approx(report["prior"] + sum(report["terms"]), rel=1e-5)
    assert report["standard_error"] > 0
    assert pixels(path.with_suffix(".png")).shape[1] > 300
    steps = [int(t) for t in report["best_steps"].split(",")]
    assert len(steps) == 5
    assert (steps[0], steps[-1]) == (0, 19)
    run(
        "sample",
        "--workdir",
        improved,
        "--config.sampling.grid=explicit",
        f"--config.sampling.steps={report['best_steps']}",
    )

    run(
        "nll",
        "--workdir",
        improved,
        "--config.likelihood.examples=24",
        "--config.likelihood.monte_carlo=40",
    )
    estimate = json.loads(
        (improved / "nll" / "step4-test-20-examples24-monte-carlo40.json").read_text()
    )
    error = np.hypot(estimate["standard_error"], report["standard_error"])
    assert abs(estimate["bits_per_dim"] - report["bits_per_dim"]) < 4 * error


def test_nll_of_one_example_has_no_standard_error(improved):
    run(
        "nll",
        "--workdir",
        improved,
        "--config.likelihood.examples=1",
        "--config.likelihood.steps=2",
    )
    report = json.loads((improved / "nll" / "step4-test-2-examples1.json").read_text())
    assert report["standard_error"] is None


def test_attention_can_be_taken_away(tmp_path):
    from diffusion_jax.runs.command_line import parse

    flag = "--config.model.attention_resolutions="
    given = parse(
        ["main.py", "--workdir", "new", "--config", str(ROOT / "experiments" / "digits.py"), flag],
        "train",
    )
    assert given.config.model.attention_resolutions == ()


def test_figures_of_a_config_alone_and_of_a_run(improved, tmp_path):
    run("figures", "--workdir", tmp_path / "new", "--config", experiment_file(tmp_path))
    alone = {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    open_workdir(
        tmp_path / "new", tiny_config()
    )  # training enters the folder that the figures made
    assert alone == {"beta_ratio.png", "alphas_cumprod.png", "forward.png"}
    run("figures", "--workdir", improved)
    folder = improved / "figures"
    assert {path.name for path in folder.iterdir()} == alone | {
        "skipping.png",
        "gradient_noise.png",
        "figures.json",
    }
    numbers = json.loads((folder / "figures.json").read_text())
    assert set(numbers["gradient_noise"]) == {"L_vlb", "L_vlb, importance-sampled", "L_hybrid"}
    assert all(scale > 0 for scale in numbers["gradient_noise"].values())
    run("nll", "--workdir", improved)
    report = json.loads((improved / "nll" / "step4-test-20.json").read_text())
    assert numbers["skipping"]["bits_per_dim"][0] == pytest.approx(
        report["bits_per_dim"], rel=1e-4
    )  # nothing skipped


def test_weights_go_out_and_come_back_bit_for_bit(improved, tmp_path, capsys):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    run("export-weights", "--workdir", improved, "--weights", out)
    assert capsys.readouterr().out == f"weights: {out}\n"
    run(
        "import",
        "--workdir",
        tmp_path / "run",
        "--config",
        improved / "config.json",
        "--weights",
        out,
    )
    assert "taken on trust: heads=1" in capsys.readouterr().out
    run("export-weights", "--workdir", tmp_path / "run", "--weights", again)
    assert again.read_bytes() == out.read_bytes()
    run("sample", "--workdir", tmp_path / "run", "--config.sampling.num=3")
    run("train", "--workdir", tmp_path / "run", "--config.training.num_steps=2")
    assert (tmp_path / "run" / "samples" / "step_0000002.png").exists()


def test_a_run_in_continuous_time_trains_and_samples_but_has_no_bound_of_steps(tmp_path):
    config = tiny_config(num_steps=2, eval_every=0)
    config.diffusion.schedule, config.diffusion.prediction = "rectified_flow", "flow"
    config.diffusion.timesteps, config.sampling.grid = "logit_normal", "uniform"
    loop.train(config, tmp_path)
    for name in ("plots/schedule.png", "samples/step_0000002.png"):
        assert max(pixels(tmp_path / name).shape) > 100
    with pytest.raises(UserError, match="the bound and the figures need a table of steps"):
        run("nll", "--workdir", tmp_path)


TRAIN = ("--workdir", "{new}", "--config", "{experiment}")
VP, LINEAR = "--config.diffusion.schedule=vp", "--config.diffusion.schedule=linear"
BAD_INPUT = [
    (("trian", *TRAIN), "unknown command 'trian'; did you mean 'train'?"),
    (("train",), "--workdir is missing"),
    (("train", "--workdir", "{new}"), "holds no run; start one with --config"),
    (("train", "--workdir", "{new}", "--config", "experiments/digit.py"), "did you mean"),
    (("train", *TRAIN, "--confg=3"), "unknown flag --confg"),
    (("train", *TRAIN, "extra"), "unexpected 'extra'"),
    (("train", *TRAIN, "--config.training.batch_sise=3"), "did you mean 'training.batch_size'?"),
    (("train", *TRAIN, "--config.batch_size=3"), "did you mean"),
    (
        ("train", *TRAIN, "--config.training.batch_size=many"),
        "config.training.batch_size must be a whole number, not 'many'",
    ),
    (("train", *TRAIN, "--config.training.learning_rate=fast"), "must be a number, not 'fast'"),
    (("train", *TRAIN, "--config.data.flip=perhaps"), "must be true or false, not 'perhaps'"),
    (("train", *TRAIN, "--config.model.channel_mult=1,x"), "must be whole numbers such as 1,2,2"),
    (("train", *TRAIN, "--config.diffusion.schedule=cosinus"), "did you mean 'cosine'?"),
    (
        ("train", *TRAIN, "--config.diffusion.num_steps=5", "--config.diffusion.schedule=linear"),
        "use at least 20 steps",
    ),
    (("train", *TRAIN, "--config.sampling.sampler=dimm"), "did you mean 'ddim'?"),
    (("train", *TRAIN, "--config.data.source=digit"), "did you mean 'digits'?"),
    (
        ("train", *TRAIN, "--config.data.shape=32,32,3"),
        "images of shape (8, 8, 1), but data.shape is (32, 32, 3)",
    ),
    (("train", *TRAIN, "--config.data.eval_split=validation"), "splits train and test"),
    (
        ("train", *TRAIN, "--config.training.accumulation_steps=3"),
        "training.batch_size=16 is not divisible",
    ),
    (
        ("train", *TRAIN, "--config.training.steps_per_call=3"),
        "must be a multiple of steps_per_call=3",
    ),
    (("train", *TRAIN, "--config.training.num_steps=0"), "must be above 0"),
    (("train", *TRAIN, "--config.training.ema_decay=1"), "below 1"),
    (("train", *TRAIN, "--config.model.channel_mult=1,1,1,1,1"), "cannot be halved 4 times"),
    (("train", *TRAIN, "--config.model.attention_resolutions=8", "--config.model.heads=3"), "3"),
    (("train", *TRAIN, "--config.model.attention_resolutions=5"), "the levels have heights [8]"),
    (("train", *TRAIN, "--config.model.dtype=float16"), "use bfloat16, which has float32's range"),
    (
        ("train", *TRAIN, "--config.training.profile_steps=5"),
        "the first and the last step, as in \"10:15\", not '5'",
    ),
    (("plan", "--config", "{experiment}", "--devices=3"), "batch_size=16 is not divisible by 3"),
    (("train", *TRAIN, "--device=H100"), "unknown flag --device"),
    (("train", *TRAIN, "--config.diffusion.norm=l3"), "config.diffusion.norm"),
    (
        ("train", "--workdir", "{run}", "--config", "{experiment}", "--config.seed=3"),
        "holds a run with other settings (seed: 0 -> 3)",
    ),
    (("sample", "--workdir", "{new}"), "holds no run"),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.steps=ddim9"),
        "nearest that exist: ddim7 and ddim10",
    ),
    (("sample", "--workdir", "{run}", "--config.sampling.steps=21"), "at most 20"),
    (("sample", "--workdir", "{run}", "--config.sampling.label=10"), "0 to 9"),
    (("sample", "--workdir", "{run}", "--config.sampling.num=0"), "above 0"),
    (("sample", "--workdir", "{run}", "--config.model.channels=32"), "sampling takes only"),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.variance=learned_range"),
        "no learned variance",
    ),
    (("train", *TRAIN, "--config.diffusion.loss=hybrid"), "set model.learned_variance=true"),
    (
        ("train", *TRAIN, "--config.model.learned_variance=true"),
        "is trained by config.diffusion.loss=hybrid or vlb",
    ),
    (
        ("train", *TRAIN, "--config.diffusion.loss=vlb", "--config.diffusion.weighting=p2"),
        "not of vlb",
    ),
    (("train", *TRAIN, "--config.seed=4294967296"), "below 2**32"),
    (("figures", *TRAIN, "--config.data.train_split=valid"), "splits train and test"),
    (("train", *TRAIN, "--config.diffusion.weighting=minsnr"), "did you mean 'min_snr'?"),
    (
        ("train", *TRAIN, "--config.diffusion.weighting=p2", "--config.diffusion.norm=l1"),
        "needs the l2 norm",
    ),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.guidance=2"),
        "training.label_dropout above 0, or a weaker one",
    ),
    (("sample", "--workdir", "{run}", "--config.sampling.guidance=nan"), "must be finite"),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.guidance_interval=3"),
        "0 <= low < high, as in 0.3,3, not '3'",
    ),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.guidance_interval=3,1"),
        "0 <= low < high",
    ),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.guidance_interval=low,3"),
        "0 <= low < high",
    ),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.guidance_rescale=1.5"),
        "must lie in [0, 1]",
    ),
    (("sample", "--workdir", "{run}", "--config.sampling.guidance_every=0"), "above 0"),
    (("sample", "--workdir", "{run}", "--config.sampling.threshold=1"), "below 1"),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.weak=runs/weak"),
        "config.sampling.guidance, which is 0",
    ),
    (
        ("train", *TRAIN, "--config.sampling.guidance=1", "--config.sampling.weak=runs/none"),
        "runs/none holds none",
    ),
    (("train", *TRAIN, "--config.training.label_dropout=1"), "below 1"),
    (
        ("train", *TRAIN, "--config.data.num_classes=0", "--config.training.label_dropout=0.1"),
        "needs labels",
    ),
    (("nll", "--workdir", "{run}", "--config.likelihood.budget=30"), "between 2 and 20"),
    (("nll", "--workdir", "{run}", "--config.likelihood.split=valid"), "splits train and test"),
    (("nll", "--workdir", "{run}", "--config.likelihood.method=odes"), "did you mean 'ode'?"),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.snr=nan"),
        "config.sampling.snr must be finite, not nan",
    ),
    (
        ("sample", "--workdir", "{run}", "--config.sampling.tolerance=0.1"),
        "ancestral draws anew in every step",
    ),
    (
        (
            "sample",
            "--workdir",
            "{run}",
            "--config.sampling.grid=explicit",
            "--config.sampling.steps=3,20",
        ),
        "between 0 and 19",
    ),
    (("train", *TRAIN, VP), "this distribution of t needs a table schedule"),
    (
        ("train", *TRAIN, VP, "--config.diffusion.loss=vlb"),
        "the variational bound of steps needs a table schedule",
    ),
    (
        ("train", *TRAIN, VP, "--config.diffusion.prediction=mean"),
        "the mean prediction needs a table schedule",
    ),
    (
        (
            "train",
            *TRAIN,
            LINEAR,
            "--config.diffusion.num_steps=20",
            "--config.diffusion.prediction=edm",
        ),
        "edm cannot be decoded at alpha = 0",
    ),
    (
        (
            "figures",
            *TRAIN,
            VP,
            "--config.diffusion.timesteps=uniform",
            "--config.sampling.grid=uniform",
        ),
        "need a table of steps (linear, cosine, sigmoid); vp has config.likelihood.method=ode",
    ),
    (
        ("train", *TRAIN, "--config.data.source=folder", "--config.data.folder=no/photos"),
        "data.folder=no/photos is no folder",
    ),
    (
        ("train", *TRAIN, "--config.data.source=arrays", "--config.data.folder=no.npz"),
        "holds no arrays: No such file",
    ),
    (
        ("train", *TRAIN, "--config.data.resize=crop"),
        "config.data.resize has no 'crop'; did you mean 'center_crop'?",
    ),
    (
        ("data", *TRAIN, "--config.data.unreadable=ignore"),
        "config.data.unreadable has no 'ignore'; known: fail, skip",
    ),
    (
        ("data", *TRAIN, "--config.data.source=folder", "--config.data.folder=no/photos"),
        "data.folder=no/photos is no folder",
    ),
    (
        ("data", "--workdir", "{run}", "--config.data.flip=false"),
        "holds a run with other settings (data.flip",
    ),
    (("import", "--workdir", "{new}", "--weights", "a.pt"), "--config is missing"),
    (("import", "--workdir", "{new}", "--config", "{experiment}"), "--weights is missing"),
    (
        ("import", "--workdir", "{new}", "--config", "{experiment}", "--weights", "no.safetensors"),
        "no file",
    ),
    (("export-weights", "--workdir", "{run}", "--weights", "a.bin"), "must end in .safetensors"),
    (("figures", "--workdir", "{run}", "--config.seed=5"), "holds a run with other settings"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_INPUT, ids=[" ".join(a[0:1] + a[-1:]) for a, _ in BAD_INPUT]
)
def test_bad_input_is_named_in_a_line_and_leaves_no_trace(workdir, tmp_path, arguments, message):
    names = {"new": tmp_path / "new", "run": workdir, "experiment": experiment_file(tmp_path)}
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError) as error:
        run(*(argument.format(**names) for argument in arguments))
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


def test_help_is_the_page_of_commands():
    done = run_command("--help")
    assert done.returncode == 0
    assert "main.py sample" in done.stdout


def test_every_experiment_builds():
    from diffusion_jax.runs.build import build
    from diffusion_jax.runs.config import from_dict
    from diffusion_jax.runs.settings import load, to_json

    for path in (ROOT / "experiments").glob("*.py"):
        config = load(path)
        assert from_dict(json.loads(to_json(config))) == config
        build(config)
