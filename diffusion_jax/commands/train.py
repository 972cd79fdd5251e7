"""Trains a model, or goes on where its run stopped: the training loop, in the order of time.

python main.py [train] --workdir DIR --config experiments/NAME.py
"""

import contextlib
import pathlib
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import noise
from diffusion_jax.core.errors import Interrupted, UserError
from diffusion_jax.core.files import writing
from diffusion_jax.data import pipeline
from diffusion_jax.devices import cpu, parallel
from diffusion_jax.devices.processes import (
    agreed,
    preempted,
    primary,
    process,
    start,
    together,
    wait_for_all,
)
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import draw, folders, plots
from diffusion_jax.runs.buckets import check_buckets
from diffusion_jax.runs.build import (
    Parts,
    build,
    held_out_times,
    load_source,
    parameters,
    table_betas,
    with_range,
)
from diffusion_jax.runs.checks import check_attention, check_trains
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.latents import Encoded, before_step
from diffusion_jax.runs.open import first_params, weak_params
from diffusion_jax.runs.score import make_score
from diffusion_jax.runs.workdir import check_step, lock, open_workdir
from diffusion_jax.training import snapshots
from diffusion_jax.training.batches import Ahead
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.held_out import make_evaluate
from diffusion_jax.training.logging import RunLog, read_metrics
from diffusion_jax.training.profiling import Profile
from diffusion_jax.training.signals import Signals
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import make_train_step
from diffusion_jax.training.unread import NotFinite, Unread


def run(given: Given) -> str:
    """What `main.py train` does with its flags."""
    train(given.config, given.workdir)
    return ""


class Run(NamedTuple):
    """What stays the same from step to step."""

    config: Config
    workdir: pathlib.Path
    parts: Parts
    key: jax.Array
    batches: Ahead
    take_steps: Callable  # (state, key, batches) -> (state, metrics)
    evaluate: Callable  # (params, aux) -> held-out loss
    draw: parallel.Started  # (params, index) -> samples
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
        unread, pauses = Unread(settings.log_every), True
        while step < settings.num_steps:
            # Between pictures and checkpoints the host waits for the step before last, so that an
            # accelerator has one to do and one to come, and for the metrics of a step that is
            # logged, once the next one is begun (test_train_waits.py counts). A CPU tuned by
            # `cpu.tune` has done a step when its call returns.
            if pauses:
                run.log.restart_clock(step)
            with profile.begin(step, settings.steps_per_call):
                batches = run.batches.take()
                with run.log.in_step():
                    state, metrics = run.take_steps(state, run.key, batches)
            done = all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))
            if step == first:  # leaves compiling out of images/s, with the step where that is done
                run.log.restart_clock(step + done * settings.steps_per_call)
            step += settings.steps_per_call
            if profile.end(step, metrics):
                run.log.say(
                    f"profile: {run.workdir / 'profile'}, for XProf or TensorBoard's profile plugin"
                )
            if step < settings.num_steps and not signals.number:
                run.batches.prepare()
            if unread.due:
                record(run, unread, step - settings.steps_per_call)
            unread.add(step, metrics)
            with run.log.in_step():
                unread.wait()
            run.log.bar.update(settings.steps_per_call)

            last = step >= settings.num_steps
            intervals = (
                settings.eval_every,
                settings.sample_every,
                config.evaluation.every,
                settings.checkpoint_every,
                settings.snapshot_every * bool(settings.post_hoc_ema),
            )
            evaluates, draws, scores, saves, keeps = (
                every > 0 and (last or step % every == 0) for every in intervals
            )
            stops = signals.number or preempted(step) and signal.SIGTERM
            pauses = evaluates or draws or scores or saves or keeps or last or stops
            if pauses or (unread.due and done):
                record(run, unread, step)  # before saving: no checkpoint holds what is not finite
            if pauses:
                if evaluates:
                    evaluate(run, state)
                if draws or last:
                    draw_picture(run, state)
                if scores:
                    drawn_by = parameters(state, config.sampling.ema)
                    run.log.write(step, run.score(run.draw, drawn_by))
                if keeps:
                    keep_averages(run, state)
                if saves or stops:  # last: a run resumed from here lacks nothing of this step
                    save(run, state, wait=last or bool(stops))
                if stops:
                    run.log.say(
                        f"stopped and saved at step {step}; the same command goes on from here"
                    )
                    raise Interrupted(stops)
        return finish(run, state, drawn=first < settings.num_steps)


def begin(config: Config, workdir: pathlib.Path) -> tuple[Run, TrainState]:
    """What a run needs, in a workdir made or entered again, and its state, new or restored. Bad
    input leaves no trace."""
    settings = config.training
    config, source = with_range(config, workdir)
    parts = build(config)
    check_trains(config, parts.variance, parts.objective.teacher)
    lay = parallel.layout(settings.parallel, settings.fsdp)
    check_attention(config, on_mesh=not lay.pmapped)
    check_buckets(config, parts, source)
    parallel.check_batch(settings.batch_size, settings.accumulation_steps)
    number, processes = process()
    flipped = parts.modality.entry if config.data.flip else ""
    read = (source, settings.batch_size, config.seed, flipped, number, processes)
    batches = Encoded(pipeline.training_batches(*read), before_step(parts.codec))
    step_fn = make_train_step(
        parts.objective,
        parts.apply_fn,
        parts.optimizer,
        parts.ema,
        parts.learning_rate,
        accumulation=settings.accumulation_steps,
        unroll=cpu.unroll(),
        **parts.step_options(),
        **lay.options(),
    )
    evaluate = held_out_loss(config, parts)
    generate = draw.make_generate(config, parts, weak=weak_params(config, parts), decoded=True)
    score = make_score(config, parts) if config.evaluation.every else lambda draw, params: {}
    config, first, changed = first_params(config, parts, workdir)
    if primary():
        open_workdir(workdir, config)
    wait_for_all("workdir")
    checkpoints = Checkpoints(workdir, settings.keep_checkpoints, settings.keep_every)
    with contextlib.ExitStack() as opened:
        opened.callback(checkpoints.close)
        init_key, key = jax.random.split(noise.key(config.seed))
        where = lay.state(jax.eval_shape(parts.init_state, init_key))
        if agreed(checkpoints.latest() is None):
            state = start_state(parts, init_key, where, first)
        else:
            state, key = resumed(config, workdir, checkpoints, where, batches)
        step, silent = int(state.step), not primary()
        log = RunLog(workdir, step, settings.num_steps, settings.batch_size, silent=silent)
        opened.callback(log.close)
        if primary():
            for folder in ("samples", "plots"):
                (workdir / folder).mkdir(exist_ok=True)
            path, title = workdir / "plots" / "schedule.png", config.diffusion.schedule.entry
            plots.schedule(path, parts.schedule, table_betas(config), title)
        log.say(f"{workdir}: {size_of(state)}, {lay}")
        if first is not None:
            other = f", a run of other settings: {'; '.join(changed)}" if changed else ""
            log.say(f"note: it starts from the averaged parameters of {settings.init}{other}")
        for note in (*checkpoints.notes, *getattr(source, "notes", ())):
            log.say(f"note: {note}")
        take_steps = parallel.make_take_steps(lay, step_fn, where, settings.steps_per_call)
        ahead = Ahead(batches, lay.place_batches, settings.steps_per_call)
        opened.pop_all()  # from here on take_all_steps closes them
    made = (config, workdir, parts, key, ahead, take_steps, evaluate, generate, score)
    return Run(*made, checkpoints, log), state


def held_out_loss(config: Config, parts: Parts) -> Callable:
    """(params, aux) -> the loss on the held-out split."""
    if not config.training.eval_every:
        return lambda params, aux: float("nan")
    return make_evaluate(
        parts.objective,
        parts.apply_fn,
        held_out_times(config, parts),
        load_source(config, config.data.eval_split),
        config.training.eval_examples,
        config.training.batch_size,
        config.seed,
        before_step(parts.codec),
    )


def start_state(parts: Parts, key: jax.Array, where: TrainState, params: Any = None) -> TrainState:
    """The state before the first step, in its place: of new parameters, or of given ones."""
    if params is None:
        return parallel.initial(parts.init_state, key, where)
    return parallel.initial(parts.state_of, params, where, key)


def resumed(
    config: Config, workdir: pathlib.Path, checkpoints: Checkpoints, where: TrainState, batches: Any
) -> tuple[TrainState, jax.Array]:
    """(the state of the newest checkpoint, the run's key); the batches go on from there."""
    state, extra = checkpoints.restore(where)
    check_step(workdir, int(state.step), config)  # not the newest one's where that is damaged
    words = jnp.asarray(extra["key"], jnp.uint32)
    if "data" in extra:  # a run made of imported weights has read none yet
        batches.set_state(extra["data"])
    return state, jax.random.wrap_key_data(words, impl=noise.IMPLEMENTATION)


def size_of(state: TrainState) -> str:
    """Where a run is, and how large it is, in words."""
    step = int(state.step)
    count, still = (sum(a.size for a in jax.tree.leaves(p)) for p in (state.params, state.frozen))
    frozen = f" and {still:,} frozen ones" if still else ""
    return f"{f'resuming at step {step}' if step else 'starting'}, {count:,} parameters{frozen}"


def record(run: Run, unread: Unread, step: int) -> None:
    """Checks the metrics of the steps up to `step`, and logs the last ones where they are due."""
    try:
        with run.log.in_step():
            metrics = unread.read()
    except NotFinite as error:
        good = run.checkpoints.latest()
        kept = (
            f"the last good checkpoint is that of step {good}"
            if good is not None
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"{error}; {kept}. "
            "A lower learning_rate, a longer warmup_steps, a clip_norm or float32 may help"
        ) from None
    if metrics:
        rate = metrics.pop("learning_rate")
        run.log.write_training(step, metrics, rate)


def evaluate(run: Run, state: TrainState) -> None:
    """Logs the held-out loss of the averaged parameters; UserError where it is not finite."""
    loss = run.evaluate(parameters(state, ema=True), state.aux)
    if not np.isfinite(loss):
        raise UserError(
            f"step {int(state.step)}: the held-out loss of the averaged parameters is {loss}"
        )
    run.log.write(int(state.step), {"eval_loss": loss})


def keep_averages(run: Run, state: TrainState) -> None:
    settings, averages = run.config.training, parallel.on_host(state.averages)
    if primary():
        where, dtype = run.workdir / "averages", settings.snapshot_dtype
        snapshots.write(where, int(state.step), averages, settings.post_hoc_ema, dtype)


def save(run: Run, state: TrainState, wait: bool) -> None:
    run.log.flush()
    extra = {"key": jax.random.key_data(run.key).tolist(), "data": run.batches.get_state()}
    run.checkpoints.save(state, extra, wait)


def picture_path(run: Run, state: TrainState) -> pathlib.Path:
    return run.workdir / "samples" / f"step_{int(state.step):07d}.png"


def draw_picture(run: Run, state: TrainState) -> None:
    """A picture of samples from the EMA, or raw, parameters, and the curves so far."""
    sampling = run.config.sampling
    count = min(sampling.num, 100)
    drawn = draw.draw(run.draw, parameters(state, sampling.ema), count, sampling.batch_size)
    if not primary():
        return
    picture = folders.preview(run.config, run.parts, drawn)
    if picture is not None:
        pictures.save(picture_path(run, state), picture)
        run.log.picture("samples", picture, int(state.step))
    plots.losses(run.workdir / "plots" / "losses.png", read_metrics(run.workdir))


def finish(run: Run, state: TrainState, drawn: bool) -> pathlib.Path:
    """Says that the run is complete. drawn: whether its last samples were, in this process."""
    path = picture_path(run, state)
    wait_for_all("finish")
    # complete before this process began, but perhaps stopped before its picture
    if not drawn and not agreed(path.exists()):
        draw_picture(run, state)
    run.log.bar.close()
    samples = f"; samples: {path}" if path.exists() else ""  # of some data there is no picture
    run.log.say(f"trained to step {int(state.step)}{samples}")
    return path
