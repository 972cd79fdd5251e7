"""What a process on the CPU sets before the first use of a device, and compiles with.

`main.py` does, and of the benchmarks those of speed: unet, startup, growth.
"""

import ctypes
import os
import platform

import jax

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type=reduce,eltwise"


def tune() -> None:
    """Keeps freed memory and chooses XLA's libraries; docs/performance.md says what each is worth.
    Results change in rounding.

    Every call of a compiled function takes its memory anew, a training step a gigabyte of it: the C
    library of Linux fetches that from the system each time, page by page, unless told to keep it.
    It keeps that much for the main thread alone, which therefore runs itself what it calls; the
    other threads have stores of their own, for many smaller pieces. Of XLA's libraries for the CPU,
    YNNPACK gets the reductions and the elementwise work with what feeds it, Eigen the other
    convolutions and products; of JAX 0.10 alone, as XLA ends a process for a flag unknown to it. A
    setting of the same name in XLA_FLAGS is left alone. To be called before JAX's first use of a
    device, and for a whole process: no memory goes back."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**26)):
            libc.mallopt(parameter, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        jax.__version_info__[:2] == (0, 10) and "ynn_fusion_type" not in flags
    ):  # XLA ends a process for a flag unknown to it
        os.environ["XLA_FLAGS"] = f"{flags} {YNNPACK}".strip()


def evaluating() -> dict | None:
    """`compiler_options` of `jax.jit` for a function that evaluates a network and does not train
    it, where `tune` was called.

    Where nothing is kept for a gradient, XLA's own fusions of the elementwise work are faster than
    YNNPACK's."""
    return (
        {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"} if _tuned() else None
    )


def once() -> dict | None:
    """`compiler_options` of `jax.jit` for a function called once, where `tune` was called: compiles
    in half the time."""
    return (
        {"xla_backend_optimization_level": 0, "xla_cpu_experimental_ynn_fusion_type": ""}
        if _tuned()
        else None
    )


def _tuned() -> bool:
    return YNNPACK in os.environ.get("XLA_FLAGS", "") and jax.default_backend() == "cpu"


def unroll() -> bool:
    """Whether loops round gradients are written out: XLA's CPU runs a convolution's gradient 70
    times slower in a loop."""
    return jax.default_backend() == "cpu"
