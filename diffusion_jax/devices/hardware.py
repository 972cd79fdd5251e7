"""Devices that a run may be planned for: memory, peak rates and bandwidth, from their vendors' data
sheets."""

from typing import NamedTuple

from diffusion_jax.core.errors import UserError, nearest


class Device(NamedTuple):
    """One chip. Rates are dense: a data sheet's "with sparsity" is halved.

    float32: at JAX's default precision of matrix products, which is TF32 on NVIDIA's tensor cores
    from Ampere on and one pass in bfloat16 on TPUs."""

    memory: float  # bytes
    bfloat16: float  # FLOP/s
    float32: float  # FLOP/s
    bandwidth: float  # bytes/s, of its memory
    source: str

    def peak(self, dtype: str) -> float:
        return self.bfloat16 if dtype == "bfloat16" else self.float32


HOPPER, AMPERE = (
    "NVIDIA %s Tensor Core GPU data sheet (SXM), as of 2024",
    "NVIDIA A100 Tensor Core GPU data sheet (%s), 2021",
)
TPU = "Google Cloud TPU documentation, system architecture of %s, as of 2025"

DEVICES = {
    "H100": Device(80e9, 989e12, 494e12, 3350e9, HOPPER % "H100"),
    "H200": Device(141e9, 989e12, 494e12, 4800e9, HOPPER % "H200"),
    "A100-40GB": Device(40e9, 312e12, 156e12, 1555e9, AMPERE % "40 GB"),
    "A100-80GB": Device(80e9, 312e12, 156e12, 2039e9, AMPERE % "80 GB SXM"),
    "L4": Device(24e9, 121e12, 60e12, 300e9, "NVIDIA L4 Tensor Core GPU data sheet, 2023"),
    "T4": Device(
        16e9, 8.1e12, 8.1e12, 320e9, "NVIDIA T4 data sheet, 2019; it computes bfloat16 as float32"
    ),
    "TPU-v4": Device(32e9, 275e12, 275e12, 1228e9, TPU % "v4"),
    "TPU-v5e": Device(16e9, 197e12, 197e12, 819e9, TPU % "v5e"),
    "TPU-v5p": Device(95e9, 459e12, 459e12, 2765e9, TPU % "v5p"),
    "TPU-v6e": Device(32e9, 918e12, 918e12, 1638e9, TPU % "v6e"),
}


def find(name: str) -> tuple[str, Device]:
    """The device of a name, in any case, `TPU-` optional; UserError with the nearest for an unknown
    one."""
    names = {known.lower(): known for known in DEVICES} | {
        known.lower().removeprefix("tpu-"): known for known in DEVICES
    }
    asked = name.lower().replace(" ", "-").replace("_", "-")
    if asked not in names:
        begins = [known for known in DEVICES if known.lower().startswith(asked)]
        upper = asked.upper().replace("TPU-V", "TPU-v")
        hint = (
            f"did you mean {' or '.join(begins)}?" if asked and begins else nearest(upper, DEVICES)
        )
        raise UserError(f"--device has no {name!r}; {hint}")
    return names[asked], DEVICES[names[asked]]
