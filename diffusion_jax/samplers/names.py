"""The names by which other programs know samplers and grids, and ours for them.

k-diffusion's functions, diffusers' schedulers, and what A1111's WebUI and ComfyUI show. Case,
spaces, hyphens and underscores do not matter, nor what a program puts around a name: `sample_` and
`k_` before it, `_gpu` and `Scheduler` behind. A grid's name may follow: "DPM++ 2M Karras"."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from diffusion_jax.core.errors import nearest


class Known(NamedTuple):
    """A sampler of ours, its arguments, and what others call it."""

    entry: str
    given: dict[str, Any]
    k_diffusion: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()
    web: tuple[str, ...] = ()  # A1111's and ComfyUI's


class Named(NamedTuple):
    """What a name stands for. beside: the grid that it names, too: {"grid": one of ours}, or {}."""

    entry: str
    given: dict[str, Any]
    beside: dict[str, str]


KNOWN = (
    Known("ancestral", {}, (), ("DDPMScheduler",), ("ddpm",)),
    Known("ddim", {}, (), ("DDIMScheduler",), ("DDIM",)),
    Known(
        "euler",
        {},
        ("sample_euler",),
        ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"),
        ("Euler",),
    ),
    Known(
        "euler_ancestral",
        {},
        ("sample_euler_ancestral",),
        ("EulerAncestralDiscreteScheduler",),
        ("Euler a", "Euler ancestral"),
    ),
    Known("euler_churn", {}, ("sample_euler with s_churn",)),
    Known("heun", {}, ("sample_heun",), ("HeunDiscreteScheduler",), ("Heun",)),
    Known("heun_flow", {}, (), ("FlowMatchHeunDiscreteScheduler",)),
    Known("edm_churn", {}, ("sample_heun with s_churn",)),
    Known("dpm2", {}, ("sample_dpm_2",), ("KDPM2DiscreteScheduler",), ("DPM2",)),
    Known(
        "dpm2_ancestral",
        {},
        ("sample_dpm_2_ancestral",),
        ("KDPM2AncestralDiscreteScheduler",),
        ("DPM2 a",),
    ),
    Known("dpmpp_2s_ancestral", {}, ("sample_dpmpp_2s_ancestral",), (), ("DPM++ 2S a",)),
    Known("dpmpp_sde", {}, ("sample_dpmpp_sde",), ("DPMSolverSDEScheduler",), ("DPM++ SDE",)),
    Known(
        "dpmpp_2m",
        {},
        ("sample_dpmpp_2m",),
        ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"),
        ("DPM++ 2M",),
    ),
    Known("dpmpp_2m_sde", {}, ("sample_dpmpp_2m_sde",), (), ("DPM++ 2M SDE",)),
    Known("dpmpp_2m_sde", {"variant": "heun"}, (), (), ("DPM++ 2M SDE Heun",)),
    Known("dpmpp_3m_sde", {}, ("sample_dpmpp_3m_sde",), (), ("DPM++ 3M SDE",)),
    Known("lms", {}, ("sample_lms",), ("LMSDiscreteScheduler",), ("LMS",)),
    Known("deis", {}, (), ("DEISMultistepScheduler",), ("DEIS",)),
    Known("pndm", {}, (), ("PNDMScheduler",), ("PLMS",)),
    Known("unipc", {}, (), ("UniPCMultistepScheduler",), ("uni_pc_bh2",)),
    Known("unipc", {"bh": "bh1"}, (), (), ("uni_pc",)),
    Known("restart", {}, (), (), ("Restart",)),
    Known("er_sde", {}, (), (), ("er_sde",)),
    Known("consistency", {}, (), ("LCMScheduler", "CMStochasticIterativeScheduler"), ("LCM",)),
    Known("tcd", {}, (), ("TCDScheduler",), ("TCD",)),
    Known("predictor_corrector", {}, (), ("ScoreSdeVeScheduler",)),
)
# What others call grids, and ours. ComfyUI's "normal" and A1111's "Automatic" are even in t
GRIDS = {
    "karras": "karras",
    "exponential": "exponential",
    "polyexponential": "polyexponential",
    "sgm uniform": "sgm_uniform",
    "simple": "simple",
    "beta": "beta",
    "normal": "uniform",
    "uniform": "uniform",
    "automatic": "uniform",
    "ddim uniform": "leading",
    "ays": "align_your_steps",
    "align your steps": "align_your_steps",
}


def _folded(name: str) -> str:
    """The name without what does not matter."""
    name = name.lower().replace("++", "pp")
    name = re.sub(r"[^a-z0-9]+", " ", name).strip()
    name = re.sub(r"^(sample|k) | gpu\b|scheduler$", "", name)
    name = re.sub(r"^uni pc\b(?! bh)", "uni pc bh1", name)  # ComfyUI's, beside uni_pc_bh2
    return name.replace(" ", "")


def _table() -> dict[str, Known]:
    """Folded name -> what it stands for; ours, too, which come first."""
    found: dict[str, Known] = {}
    for known in KNOWN:
        if not known.given:
            found.setdefault(_folded(known.entry), known)
    for known in KNOWN:
        for name in (*known.k_diffusion, *known.diffusers, *known.web):
            if _folded(name) not in found and " with " not in name:
                found[_folded(name)] = known
    return found


TABLE = _table()
ENDINGS = {_folded(name): grid for name, grid in GRIDS.items()}


def resolve(name: str) -> Named | None:
    """What a name of another program stands for; None for one that no program has."""
    folded = _folded(name)
    for length in range(len(folded), 0, -1):
        known, rest = TABLE.get(folded[:length]), folded[length:]
        if known is not None and (not rest or rest in ENDINGS):
            beside = {"grid": ENDINGS[rest]} if rest else {}
            return Named(known.entry, dict(known.given), beside)
    return None


def near(name: str, ours: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest of ours and of others', else ours."""
    others = [one for known in KNOWN for one in (*known.web, *known.diffusers)]
    close = nearest(name, [*ours, *others])
    return close if close.startswith("did you mean") else nearest(name, ours)


def rows() -> list[tuple[str, str, str, str]]:
    """(ours, k-diffusion's, diffusers', A1111's and ComfyUI's) of the samplers that others have."""
    found = []
    for known in KNOWN:
        ours = " ".join([known.entry, *(f".{k}={v}" for k, v in known.given.items())])
        others = (known.k_diffusion, known.diffusers, known.web)
        found.append((ours, *(", ".join(names) for names in others)))
    return found
