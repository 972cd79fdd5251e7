"""Records what k-diffusion and diffusers sample, in float64, for tests/samplers.

    python benchmarks/record_samplers.py tests/reference/samplers.npz

Needs k-diffusion 0.1.1, diffusers and PyTorch. The data are a mixture of two Gaussians, of which
the denoiser is exact. Chains end at the last level, before the hop to sigma = 0.
"""

import importlib
import sys
from typing import Any
from unittest import mock

import numpy as np

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-0.9, 0.4], [0.6, -0.2]])
STDS = np.array([0.25, 0.2])
# sigma / alpha of Karras et al.'s levels from 40 to 0.02; UniPC's begin with a step so short that
# it does not matter how it is corrected
SIGMAS = np.linspace(40 ** (1 / 7), 0.02 ** (1 / 7), 10) ** 7
SIGMAS_UNIPC = np.array([40 * 1.0001, *SIGMAS])

# name of ours with its arguments -> k-diffusion's function, with its own
K_DIFFUSION: dict[str, tuple[str, dict]] = {
    "euler_ancestral(eta=1.0)": ("sample_euler_ancestral", {}),
    "euler_ancestral(eta=0.5)": ("sample_euler_ancestral", {"eta": 0.5}),
    "euler_churn(gamma=0.2, least=0.1, most=20.0)": (
        "sample_euler",
        {"s_churn": 0.2 * (len(SIGMAS) - 1), "s_tmin": 0.1, "s_tmax": 20.0},
    ),
    "dpm2()": ("sample_dpm_2", {}),
    "dpm2_ancestral(eta=1.0)": ("sample_dpm_2_ancestral", {}),
    "dpm2_ancestral(eta=0.6)": ("sample_dpm_2_ancestral", {"eta": 0.6}),
    "dpmpp_2s_ancestral(eta=1.0)": ("sample_dpmpp_2s_ancestral", {}),
    "dpmpp_2s_ancestral(eta=0.6)": ("sample_dpmpp_2s_ancestral", {"eta": 0.6}),
    "dpmpp_sde(eta=1.0)": ("sample_dpmpp_sde", {}),
    "dpmpp_sde(eta=0.6, r=0.4)": ("sample_dpmpp_sde", {"eta": 0.6, "r": 0.4}),
    "dpmpp_2m_sde(eta=1.0)": ("sample_dpmpp_2m_sde", {}),
    "dpmpp_2m_sde(variant='heun', eta=1.0)": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2m_sde(variant='heun', eta=0.6)": (
        "sample_dpmpp_2m_sde",
        {"solver_type": "heun", "eta": 0.6},
    ),
    "lms(order=4)": ("sample_lms", {}),
    "lms(order=2)": ("sample_lms", {"order": 2}),
}
# the same of diffusers' schedulers
ORDERS = {"lower_order_final": False, "prediction_type": "sample"}
DIFFUSERS: dict[str, tuple[str, dict]] = {
    "deis(order=3)": ("DEISMultistepScheduler", {"solver_order": 3, **ORDERS}),
    "deis(order=2)": ("DEISMultistepScheduler", {"solver_order": 2, **ORDERS}),
    "unipc(bh='bh1')": ("UniPCMultistepScheduler", {"solver_type": "bh1", **ORDERS}),
    "unipc(bh='bh2')": ("UniPCMultistepScheduler", {"solver_type": "bh2", **ORDERS}),
    "pndm()": (
        "PNDMScheduler",
        {"skip_prk_steps": True, "prediction_type": "epsilon", "beta_schedule": "linear"},
    ),
}


def clean(x: Any, sigma: Any) -> Any:
    """E[x0 | x = x0 + sigma eps] of x [B, 2], of NumPy or PyTorch."""
    y, sigma = np.asarray(x, float), float(np.ravel(sigma)[0])
    variance = STDS**2 + sigma**2
    offset = y[:, None] - MEANS
    joint = np.log(WEIGHTS / variance) - (offset**2).sum(-1) / (2 * variance)
    share = np.exp(joint - joint.max(1, keepdims=True))
    share = (share / share.sum(1, keepdims=True))[..., None]
    return (share * (MEANS + (STDS**2 / variance)[:, None] * offset)).sum(1)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """x [6, 2] of unit variance, and two draws [10, 2, 6, 2] for each step."""
    random = np.random.default_rng(0)
    return random.normal(size=(6, 2)), random.normal(size=(10, 2, 6, 2))


def of_k_diffusion(name: str, x: np.ndarray, draws: np.ndarray) -> np.ndarray:
    torch = importlib.import_module("torch")
    sampling = importlib.import_module("k_diffusion.sampling")
    function, given = K_DIFFUSION[name]
    step, seen, tensor = [0], {}, torch.from_numpy

    def once(_=None):
        step[0] += 1
        return tensor(draws[step[0] - 1, 0])

    def brownian(start, end):
        """The motion's increment over sigma, of unit variance: the first of a step, then, over all
        of it, that and the second."""
        start, end = float(start), float(end)
        if start not in seen:
            seen[start] = end
            return tensor(draws[step[0], 0])
        parts = np.sqrt([start - seen[start], seen[start] - end])
        first, second = draws[step[0]]
        step[0] += 1
        return tensor((parts[0] * first + parts[1] * second) / np.sqrt(start - end))

    if function == "sample_dpmpp_sde":
        given = given | {"noise_sampler": brownian}
    elif function not in ("sample_euler", "sample_lms", "sample_dpm_2"):
        given = given | {"noise_sampler": lambda start, end: once()}
    denoise = lambda x, sigma: tensor(clean(x, sigma))
    start = tensor(x * SIGMAS[0])
    with mock.patch("torch.randn_like", once):
        found = getattr(sampling, function)(denoise, start, tensor(SIGMAS), disable=True, **given)
    return found.numpy()


def of_diffusers(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x at the last level, sigma / alpha of all levels); x is variance-preserving."""
    torch, diffusers = (importlib.import_module(one) for one in ("torch", "diffusers"))
    torch.set_default_dtype(torch.float64)
    kind, given = DIFFUSERS[name]
    scheduler = getattr(diffusers, kind)(**given)
    plms = kind == "PNDMScheduler"
    sigmas = SIGMAS_UNIPC if kind.startswith("UniPC") else SIGMAS
    scheduler.set_timesteps(len(sigmas))
    if plms:
        betas = np.linspace(1e-4, 0.02, 1000)
        kept = np.cumprod(1 - betas)
        scheduler.alphas_cumprod = torch.from_numpy(kept)
        times = scheduler.timesteps.numpy()
        sigmas = np.sqrt(1 / kept[np.unique(times)[::-1]] - 1)
        at = [float(np.sqrt(1 / kept[t] - 1)) for t in times[:-1]]
    else:
        scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0))
        times, at = scheduler.timesteps, sigmas[:-1]
    state = torch.from_numpy(x * sigmas[0] / np.sqrt(1 + sigmas[0] ** 2))
    for t, sigma in zip(times, at, strict=False):
        y = state.numpy() * np.sqrt(1 + sigma**2)
        x0 = clean(y, sigma)
        said = torch.from_numpy((y - x0) / sigma if plms else x0)
        state = scheduler.step(said, t, state).prev_sample
    return state.numpy(), sigmas


def main(path: str) -> None:
    x, draws = inputs()
    sampling = importlib.import_module("k_diffusion.sampling")
    found = {name: of_k_diffusion(name, x, draws) for name in K_DIFFUSION}
    for name in DIFFUSERS:
        found[name], found[f"{name}/sigmas"] = of_diffusers(name, x)
    for rho in (1.0, 2.0, 7.0):
        sigmas = sampling.get_sigmas_polyexponential(11, 0.03, 15.0, rho).numpy()
        found[f"polyexponential(rho={rho})"] = sigmas[:-1]
    found["exponential()"] = sampling.get_sigmas_exponential(11, 0.03, 15.0).numpy()[:-1]
    schedulers = importlib.import_module("diffusers.schedulers")
    found["schedulers"] = np.array([n for n in dir(schedulers) if n.endswith("Scheduler")])
    found["functions"] = np.array([n for n in dir(sampling) if n.startswith("sample_")])
    known = schedulers.AysSchedules
    for ours, theirs in (("sd15", ""), ("sdxl", "XL"), ("svd", "Video")):
        found[f"align_your_steps(model='{ours}')"] = known[f"StableDiffusion{theirs}Sigmas"]
    np.savez_compressed(path, allow_pickle=False, x=x, draws=draws, sigmas=SIGMAS, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
