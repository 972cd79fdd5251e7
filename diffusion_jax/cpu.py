"""What a process on the CPU should set before JAX's first use of a device. `main.py` and the benchmarks do."""

import ctypes
import os
import platform

import jax

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h


def tune() -> None:
    """Keeps freed memory and chooses XLA's libraries; docs/performance.md says what each is worth. Results change in rounding.

    Every call of a compiled function takes its memory anew, a training step a gigabyte of it: the C library of Linux fetches
    that from the system each time, page by page, unless told to keep it. Of XLA's two libraries for convolutions and products
    on the CPU, the newer one, which JAX 0.10 takes, leaves all cores but one idle where there are few channels; it keeps the
    reductions. A setting of the same name in XLA_FLAGS is left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26), (M_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__[:2] == (0, 10) and "ynn_fusion_type" not in flags:  # XLA ends a process for a flag unknown to it
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_experimental_ynn_fusion_type=reduce".strip()
