"""The command `train`: the training loop, in the order of time."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.commands import sample as generate
from diffusion_jax.commands.evaluate import make_score
from diffusion_jax.core import timesteps
from diffusion_jax.core.errors import Interrupted, UserError
from diffusion_jax.core.files import writing
from diffusion_jax.data import pipeline, sources
from diffusion_jax.devices.parallel import (
    KINDS,
    agreed,
    check_batch,
    initial,
    layout,
    make_take_steps,
    preempted,
    primary,
    process,
    start,
    together,
    wait_for_all,
)
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import plots
from diffusion_jax.runs.build import Parts, build, check_trains, make_step
from diffusion_jax.runs.config import Config, choose
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.workdir import check_step, lock, open_workdir
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.held_out import make_evaluate
from diffusion_jax.training.logging import RunLog, read_metrics
from diffusion_jax.training.profiling import Profile
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import make_loss_fn


class Run(NamedTuple):
    """What stays the same from step to step."""

    config: Config
    workdir: pathlib.Path
    parts: Parts
    key: jax.Array
    batches: Any  # grain's iterator
    take_steps: Callable  # (state, key, batches) -> (state, metrics)
    evaluate: Callable  # params -> held-out loss
    draw: Callable  # (params, index) -> samples
    score: Callable  # (draw, params) -> FID and its kin, by name
    checkpoints: Checkpoints
    log: RunLog


def train(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Trains to training.num_steps, from the newest checkpoint where there is one; returns the
    picture of the last samples.

    Raises UserError for bad input, where the loss or the gradient is no longer finite and where the
    workdir cannot be written, Interrupted after SIGTERM or Ctrl-C, all with the last checkpoint
    whole."""
    start()
    with together(), writing(workdir), lock(workdir):
        return take_all_steps(*begin(config, workdir))


def take_all_steps(run: Run, state: TrainState) -> pathlib.Path:
    """`train` from where `begin` left it."""
    config, settings = run.config, run.config.training
    with (
        contextlib.closing(run.log),
        contextlib.closing(run.checkpoints),
        Signals() as signals,
        contextlib.closing(
            Profile(settings.profile_steps if primary() else "", run.workdir / "profile")
        ) as profile,
    ):
        first = step = int(state.step)
        pending, pauses = None, True
        while step < settings.num_steps:
            # Between pictures and checkpoints the host waits for one thing, the metrics of the step
            # before, while an accelerator has this one to do (test_loop.py counts). A CPU tuned by
            # `cpu.tune` has done it by then.
            if pauses:
                run.log.restart_clock(step)
            with profile.begin(step, settings.steps_per_call):
                batches = [next(run.batches) for _ in range(settings.steps_per_call)]
                stacked = jax.tree.map(lambda *a: np.stack(a), *batches)
                with run.log.in_step():
                    state, metrics = run.take_steps(state, run.key, stacked)
            done = all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))
            if step == first:  # leaves compiling out of images/s, with the step where that is done
                run.log.restart_clock(step + done * settings.steps_per_call)
            step += settings.steps_per_call
            if profile.end(step, metrics):
                run.log.say(
                    f"profile: {run.workdir / 'profile'}, for XProf or TensorBoard's profile plugin"
                )
            if pending is not None:
                record(run, *pending)  # the step before
            pending = step, metrics
            run.log.bar.update(settings.steps_per_call)

            last = step >= settings.num_steps
            intervals = (
                settings.eval_every,
                settings.sample_every,
                config.evaluation.every,
                settings.checkpoint_every,
            )
            evaluates, draws, scores, saves = (
                every > 0 and (last or step % every == 0) for every in intervals
            )
            stops = signals.number or preempted(step) and signal.SIGTERM
            pauses = evaluates or draws or scores or saves or last or stops
            if done or pauses:
                record(run, *pending)  # before saving: no checkpoint holds what is not finite
                pending = None
            if pauses:
                if evaluates:
                    evaluate(run, state)
                if draws or last:
                    draw_picture(run, state)
                if scores:
                    run.log.write(
                        step,
                        run.score(
                            run.draw, state.ema_params if config.sampling.ema else state.params
                        ),
                    )
                if (
                    saves or stops
                ):  # last, so that a run resumed from here lacks nothing of this step
                    save(run, state, wait=last or bool(stops))
                if stops:
                    run.log.say(
                        f"stopped and saved at step {step}; the same command goes on from here"
                    )
                    raise Interrupted(stops)
        return finish(run, state)


def begin(config: Config, workdir: pathlib.Path) -> tuple[Run, TrainState]:
    """What a run needs, in a workdir made or entered again, and its state, new or restored. Bad
    input leaves no trace."""
    settings, parts = config.training, build(config)
    check_trains(config)
    lay = layout(choose(KINDS, settings.parallel, "training.parallel"), settings.fsdp)
    check_batch(settings.batch_size, settings.accumulation_steps)
    data = config.data
    source = sources.load(data, data.train_split)
    number, processes = process()
    batches = pipeline.training_batches(
        source, settings.batch_size, config.seed, data.flip, number, processes
    )
    loss_fn = make_loss_fn(parts.apply_fn, parts.schedule, parts.loss)
    if settings.eval_every:  # with all labels, and the images as they are
        held_out = sources.load(data, data.eval_split)
        # the same for all runs of an objective: uniform, unless the distribution of t is part of
        # the objective
        own = config.diffusion.timesteps in timesteps.OBJECTIVES
        distribution = parts.timesteps if own else timesteps.uniform(parts.schedule)
        evaluate = make_evaluate(
            loss_fn,
            distribution,
            held_out,
            settings.eval_examples,
            settings.batch_size,
            config.seed,
        )
    else:
        evaluate = lambda params: float("nan")
    step_fn = make_step(config, parts, lay)
    draw = make_generate(config, parts, weak=generate.weak_params(config))
    score = make_score(config) if config.evaluation.every else lambda draw, params: {}

    if primary():
        open_workdir(workdir, config)
    wait_for_all("workdir")
    checkpoints = Checkpoints(workdir, settings.keep_checkpoints, settings.keep_every)
    with contextlib.ExitStack() as opened:
        opened.callback(checkpoints.close)
        init_key, key = jax.random.split(jax.random.key(config.seed))
        where = lay.state(jax.eval_shape(parts.init_state, init_key))
        if agreed(checkpoints.latest() is None):
            state = initial(parts.init_state, init_key, where)
        else:
            state, extra = checkpoints.restore(where)
            check_step(
                workdir, int(state.step), config
            )  # which is not the newest one's where that is damaged
            key = jax.random.wrap_key_data(jnp.asarray(extra["key"], jnp.uint32))
            if "data" in extra:  # a run made of imported weights has read none yet
                batches.set_state(extra["data"])
        step = int(state.step)
        log = RunLog(workdir, step, settings.num_steps, settings.batch_size, silent=not primary())
        opened.callback(log.close)
        if primary():
            for folder in ("samples", "plots"):
                (workdir / folder).mkdir(exist_ok=True)
            plots.schedule(
                workdir / "plots" / "schedule.png",
                parts.schedule,
                parts.betas,
                config.diffusion.schedule,
            )
        parameters = sum(a.size for a in jax.tree.leaves(state.params))
        log.say(
            f"{workdir}: {f'resuming at step {step}' if step else 'starting'}, {parameters:,} parameters, {lay}"
        )
        for note in (*checkpoints.notes, *getattr(source, "notes", ())):
            log.say(f"note: {note}")
        take_steps = make_take_steps(lay, step_fn, where, settings.steps_per_call)
        opened.pop_all()  # from here on take_all_steps closes them
        return Run(
            config,
            workdir,
            parts,
            key,
            batches,
            take_steps,
            evaluate,
            draw,
            score,
            checkpoints,
            log,
        ), state


def record(run: Run, step: int, metrics) -> None:
    """Checks and logs the metrics, arrays [steps_per_call], of the steps up to `step`."""
    with run.log.in_step():
        metrics = jax.device_get(metrics)
    for name in ("loss", "grad_norm"):
        finite = np.isfinite(metrics[name])
        if not finite.all():
            first = step - len(finite) + 1 + int(np.argmin(finite))
            good = run.checkpoints.latest()
            kept = (
                f"the last good checkpoint is that of step {good}"
                if good is not None
                else "there is no checkpoint yet"
            )
            raise UserError(
                f"step {first}: {name} is {metrics[name][np.argmin(finite)]}; {kept}. "
                "A lower learning_rate, a longer warmup_steps, a clip_norm or float32 may help"
            )
    if step % run.config.training.log_every == 0:
        last = {name: float(values[-1]) for name, values in metrics.items()}
        rate = last.pop("learning_rate")
        run.log.write_training(step, last, rate)


def evaluate(run: Run, state: TrainState) -> None:
    """Logs the held-out loss of the averaged parameters; UserError where it is not finite."""
    loss = run.evaluate(state.ema_params)
    if not np.isfinite(loss):
        raise UserError(
            f"step {int(state.step)}: the held-out loss of the averaged parameters is {loss}"
        )
    run.log.write(int(state.step), {"eval_loss": loss})


def save(run: Run, state: TrainState, wait: bool) -> None:
    run.log.flush()
    extra = {"key": jax.random.key_data(run.key).tolist(), "data": run.batches.get_state()}
    run.checkpoints.save(state, extra, wait)


def picture_path(run: Run, state: TrainState) -> pathlib.Path:
    return run.workdir / "samples" / f"step_{int(state.step):07d}.png"


def draw_picture(run: Run, state: TrainState) -> None:
    """A grid of samples from the EMA, or raw, parameters, and the curves so far."""
    count = min(run.config.sampling.num, 100)
    params = state.ema_params if run.config.sampling.ema else state.params
    images = generate.draw(run.draw, params, count, run.config.sampling.batch_size)
    if not primary():
        return
    picture = generate.grid(run.config, images)
    pictures.save(picture_path(run, state), picture)
    run.log.picture("samples", picture, int(state.step))
    plots.losses(run.workdir / "plots" / "losses.png", read_metrics(run.workdir))


def finish(run: Run, state: TrainState) -> pathlib.Path:
    wait_for_all("finish")
    if not agreed(
        picture_path(run, state).exists()
    ):  # the run was complete, but stopped before its picture
        draw_picture(run, state)
    run.log.bar.close()
    run.log.say(f"trained to step {int(state.step)}; samples: {picture_path(run, state)}")
    return picture_path(run, state)


class Signals:
    """Within it, SIGTERM and Ctrl-C set `number` instead of ending the program; a second one ends
    it."""

    number = 0

    def __enter__(self):
        alone = (
            process()[1] == 1
        )  # else JAX listens to SIGTERM, and `preempted` tells all processes alike

        def handler(number, frame):
            if alone:
                self.number = number
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            signal.signal(number, self.before[number])

        numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
        self.before = {number: signal.signal(number, handler) for number in numbers}
        return self

    def __exit__(self, *exception):
        for number, before in self.before.items():
            signal.signal(number, before)
