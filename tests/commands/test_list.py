"""The command `list`: everything that can be named, with its settings and what they mean."""

import pytest
from tiny import ROOT, main_run

from diffusion_jax.commands.list import catalog
from diffusion_jax.core import schedules
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import settings
from diffusion_jax.runs.settings import leaves


@pytest.fixture(scope="module")
def page():
    return catalog(ROOT / "experiments")


def test_the_command_prints_the_page(page, capsys):
    main_run("list")
    assert capsys.readouterr().out == page + "\n"


def test_every_experiment_and_every_setting_is_there(page):
    for path in (ROOT / "experiments").glob("*.py"):
        assert f"experiments/{path.name}" in page
    for leaf in leaves(Config()):
        if not leaf.argument and leaf.path.count(".") < 2:
            assert f"--config.{leaf.path}=" in page
            assert leaf.setting.doc in page
    assert "--config.training.batch_size=128" in page
    assert "examples a step" in page


def test_every_entry_is_there_with_its_arguments_and_defaults(page):
    for path, registry in REGISTRIES.items():
        own = page.split(f"\n--config.{path}\n")[1].split("\n--config.")[0]
        for name in registry.names():
            assert f"\n  {name}" in "\n" + own
            for setting in settings(registry, name).values():
                assert f"      .{setting.name}=" in own
                assert setting.doc in own
    assert ".sigma_max=80" in page
    assert ".variance=the run's own" in page
    assert "(one of l2, l1)" in page


def test_a_new_entry_is_listed(monkeypatch):
    def steep(power: float = 2.5):
        """A schedule of a user's own. It is steep.

        Args:
          power: how steep.
        """

    monkeypatch.setitem(schedules.SCHEDULES, "steep", steep)
    found = catalog(ROOT / "experiments")
    assert "  steep              A schedule of a user's own\n      .power=2.5" in found
