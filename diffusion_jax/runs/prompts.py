"""Prompts: what samples of a run with text are asked for, as entries of a batch.

A prompt may be several texts joined by AND, each with a weight after a colon that follows a space:
"a red heart AND on blue :0.5". Their predictions are summed up (Liu et al. 2022, "Compositional
Visual Generation with Composable Diffusion Models", eq. 11).
"""

import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.conditioning import told_in_sampling
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Cond
from diffusion_jax.data import pipeline, texts
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config

TEXT = "text"  # the name of every condition that is a text
ENTRIES = ("words", "text")  # the conditioners of texts


class Composed(NamedTuple):
    """What samples are told beside their first text. others: conds of further texts. shares: [B,
    1 + their number], each text's share of the weights, which sum to 1. total: [B], the sum of the
    weights. away: the cond that guidance leads away from, None for that of "nothing is known"."""

    others: tuple[Cond, ...]
    shares: Any
    total: Any
    away: Cond | None


def parse(prompt: str) -> tuple[tuple[str, float], ...]:
    """The texts of a prompt and their weights; UserError where these do not sum to more than 0."""
    found = []
    for part in re.split(r"\s+AND\s+", prompt.strip()):
        text, weight = part, 1.0
        if match := re.fullmatch(r"(.*\S)\s+:\s*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)", part):
            text, weight = match[1], float(match[2])
        found.append((text.strip(), weight))
    if sum(weight for _, weight in found) <= 0:
        raise UserError(f"the weights of the prompt {prompt!r} must sum to more than 0")
    return tuple(found)


def read(file: str) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines are left out."""
    path = pathlib.Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"--prompts={file} cannot be read: {cause}") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"--prompts={file} has no prompt; it holds one a line")
    return found


def encoded(every: list[str]) -> np.ndarray:
    """The texts' bytes; UserError for one that is no Unicode."""
    try:
        return texts.encode(every)
    except UnicodeEncodeError:
        raise UserError("a prompt must be a text in UTF-8") from None


class Prompts:
    """The prompts of config.sampling, sample number i that of number i, round and round."""

    def __init__(self, config: Config, parts: Parts):
        sampling, prepare = config.sampling, parts.conditioner.prepare
        if prepare is None or TEXT not in parts.conditioner.kinds:
            raise UserError(
                "a prompt needs a run that is told a text, as by config.conditioning=words"
            )
        parsed = [parse(prompt) for prompt in sampling.prompts]
        weighted = any(len(prompt) > 1 or any(w != 1.0 for _, w in prompt) for prompt in parsed)
        own = (one.values() for one in config.conditioning if one.entry in ENTRIES)
        if weighted and not sampling.negative and not any(one.get("dropout") for one in own):
            raise UserError(
                "weighted texts need a run whose text was dropped in training, or a negative prompt"
            )
        every = [text for prompt in parsed for text, _ in prompt]
        every += [sampling.negative] * bool(sampling.negative)
        source = prepare(Arrays(None, others={TEXT: encoded(every)}, notes=texts.cut(every)))
        self.notes = list(source.notes)
        examples = pipeline.examples(source, range(len(every)))
        self.entries = {n: a for n, a in examples.items() if n in parts.conditioner.reads}
        most = max(map(len, parsed))
        self.rows = np.zeros((len(parsed), most), int)
        self.weights = np.zeros((len(parsed), most), np.float32)
        row = 0
        for i, prompt in enumerate(parsed):
            for k, (_, weight) in enumerate(prompt):
                self.rows[i, k], self.weights[i, k] = row, weight
                row += 1
            self.rows[i, len(prompt) :] = self.rows[i, 0]
        self.away = row if sampling.negative else None

    def asked(self, index: np.ndarray, part: int = 0) -> dict[str, np.ndarray]:
        """The entries of a batch of the samples number index [n], by one text of their prompts."""
        rows = self.rows[index % len(self.rows), part]
        return {name: array[rows] for name, array in self.entries.items()}

    def beside(self, index: np.ndarray) -> dict[str, Any]:
        """What `composed` makes a `Composed` of; empty where each prompt is one text of weight 1
        and there is no negative one."""
        weights = self.weights[index % len(self.weights)]
        if self.away is None and weights.shape[1] == 1 and np.all(weights == 1.0):
            return {}
        total = weights.sum(axis=1)
        away = {}
        if self.away is not None:
            rows = np.full(len(index), self.away)
            away = {name: array[rows] for name, array in self.entries.items()}
        others = tuple(self.asked(index, part) for part in range(1, weights.shape[1]))
        return {"others": others, "shares": weights / total[:, None], "total": total, "away": away}


def composed(
    parts: Parts, asked: dict, beside: dict[str, Any] | None, keys: Any = None
) -> Composed | None:
    """What `Prompts.beside` says, told; within a jit. asked: the entries of the samples' batch;
    keys [B]: the samples'."""
    if not beside:
        return None
    told = lambda entries: told_in_sampling(parts.conditioner, keys, {**asked, **entries})
    away = told(beside["away"]) if beside["away"] else None
    others = tuple(map(told, beside["others"]))
    return Composed(others, beside["shares"], beside["total"], away)
