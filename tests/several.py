"""Processes of several devices, and runs of several processes, that tests start."""

import os
import socket
import subprocess

from tiny import environment

OUTPUT = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def devices(count: int, **more) -> dict:
    return environment(
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
        **more,
    )


def processes(arguments: list[list[str]], count: int = 2) -> list[subprocess.Popen]:
    """A run of one process an entry, of `count` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    known = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(arguments))}
    started = lambda i: subprocess.Popen(
        arguments[i], env=devices(count, **known, JAX_PROCESS_ID=str(i)), **OUTPUT
    )
    return [started(i) for i in range(len(arguments))]
