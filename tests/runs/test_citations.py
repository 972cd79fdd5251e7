"""Citations: authors and years, as docstrings name them."""

from diffusion_jax.runs.citations import citations, papers
from diffusion_jax.runs.config import Config
from diffusion_jax.samplers import SAMPLERS


def of(text):
    def factory():
        pass

    factory.__doc__ = text
    return papers(factory)


def test_papers_are_authors_and_a_year():
    assert of("A (Ho et al. 2020, eq. 8); Nichol & Dhariwal\n 2021. In 2021, T of 1000.") == [
        "Ho et al. 2020",
        "Nichol & Dhariwal 2021",
    ]
    assert of("Kynk\u00e4\u00e4nniemi et al. 2024; Karras et al. 2024; Karras et al. 2024") == [
        "Kynk\u00e4\u00e4nniemi et al. 2024",
        "Karras et al. 2024",
    ]
    assert of("Nothing of 1000 steps.") == [] == papers(None)


def test_every_sampler_has_a_paper():
    assert [name for name, factory in SAMPLERS.items() if not papers(factory)] == []


def test_a_configs_methods():
    found = citations(Config())
    assert found["diffusion.schedule=cosine"] == ["Nichol & Dhariwal 2021"]
    assert "Ho et al. 2020" in found["sampling.sampler=ancestral"]
