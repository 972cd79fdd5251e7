"""The processes of a run: how they find each other, decide together and end together."""

import atexit
import contextlib
import importlib.util
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from diffusion_jax.core.errors import Interrupted, UserError


def start() -> None:
    """Joins the processes of a run, where the environment says that there are several.

    They are found by themselves on TPU pods, under SLURM and under Open MPI 4. Elsewhere
    JAX_COORDINATOR_ADDRESS, the host and port of process 0, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    say it. Must come before JAX's first use of a device."""
    if jax.distributed.is_initialized():
        return
    address, named = (
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    )
    found = {name: os.environ[name] for name in named if name in os.environ}
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if found and address:
        if len(found) < 2 or not all(value.isdecimal() for value in found.values()):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS needs {named[0]} and {named[1]}, whole numbers, beside it"
            )
        number, process = (int(found[name]) for name in named)
        if process >= number:
            raise UserError(f"JAX_PROCESS_ID={process} must be below JAX_NUM_PROCESSES={number}")
        jax.distributed.initialize(
            address, number, process, cluster_detection_method="deactivate"
        )  # all local devices
    elif any(size.isdecimal() and int(size) > 1 for size in sizes):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            names = ", ".join(("JAX_COORDINATOR_ADDRESS", *named))
            raise UserError(
                f"JAX does not find the other processes ({error}); set {names}"
            ) from None
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # there is the library, but no TPU
            jax.distributed.initialize()
    if jax.process_count() > 1:
        atexit.register(ENDED.set)
        threading.Thread(target=_end_with_the_others, daemon=True).start()


FAILURE = "diffusion_jax/failure"  # the key under which a process leaves its message
ENDED = threading.Event()  # this process ends


def _end_with_the_others() -> None:
    """Ends this process, with the same words, when another one fails."""
    client: Any = distributed.global_state.client
    while not ENDED.wait(1.0):
        try:
            message = client.key_value_try_get(FAILURE)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                return  # the service has ended, and JAX sees to the rest
            continue
        if not message.startswith(f"{jax.process_index()}:"):
            _exit(message)


def _exit(message: str) -> None:
    print(f"error: process {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if primary():
        time.sleep(3.0)  # it keeps the message: the others read it first
    os._exit(2)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, what one process fails of ends all processes, with its message and status 2;
    others would wait for ever."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, Interrupted):
            raise
        if not isinstance(error, UserError):
            traceback.print_exc()
        message = f"{jax.process_index()}: " + " ".join(str(error).split())
        client: Any = distributed.global_state.client
        try:
            client.key_value_set(FAILURE, message)
        except jax.errors.JaxRuntimeError:  # another one failed first, and this one of that
            message = client.key_value_try_get(FAILURE)
        _exit(message)


def primary() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def process() -> tuple[int, int]:
    """(number of this process, how many there are)"""
    return jax.process_index(), jax.process_count()


def agreed(value: int) -> int:
    """Process 0's value, on all processes."""
    return (
        int(multihost_utils.broadcast_one_to_all(np.int32(value)))
        if jax.process_count() > 1
        else value
    )


def wait_for_all(name: str) -> None:
    """Until every process has come to the place of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


ASKED = [0]  # the last step that `preempted` was asked after


def preempted(step: int) -> bool:
    """Whether, after this step, all processes stop, since one of them got SIGTERM; every process
    must ask after the same steps.

    JAX agrees on one step by its number, which may lie between those asked after: it is asked about
    these, too."""
    if jax.process_count() == 1:
        return False
    steps, ASKED[0] = range(min(ASKED[0], step - 1) + 1, step + 1), step
    return any([multihost_utils.reached_preemption_sync_point(number) for number in steps])
