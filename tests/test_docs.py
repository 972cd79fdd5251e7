"""What the documents show is run."""

import re
import shlex

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import pytest
from contributing import CODE, add, additions, copied, python
from tiny import ROOT

import diffusion_jax as dj
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs import command_line
from diffusion_jax.runs.settings import known_paths

DIGITS = "experiments/digits.py"


def test_the_readmes_example_runs_and_learns():
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    namespace = {}
    exec(code, namespace)
    assert namespace["images"].shape == (16, 8, 8, 1)
    # data of mean 0.5: the network began with images of mean 0
    assert 0.25 < float(namespace["images"].mean()) < 0.75


def test_the_sampler_of_contributing_is_held_to_its_order(tmp_path):
    """The page followed in a copy, with a sampler beside it whose order is not what it says: then
    the laws over SAMPLERS, which pass the one and not the other."""
    copy, sampler = copied(tmp_path), additions()["sampler"]
    add(copy, sampler)
    wrong = sampler._replace(
        file=sampler.file.replace(".py", "_wrong.py"),
        code=sampler.code.replace("length / (2.0 * length_before)", "0.0").replace(
            "def adams_bashforth", "def wrong"
        ),
        name="wrong",
        factory="wrong",
    )
    assert wrong.code.count("0.0 * (eps - before)") == 1
    add(copy, wrong)
    order = "follow_the_flow_at_their_order"
    laws = f"docstring or ((wrong or adams_bashforth) and {order})"
    file = "tests/samplers/test_samplers.py"
    run = python(copy, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rA", file, "-k", laws)
    assert run.returncode == 1, run.stdout
    passed, failed = (
        re.findall(rf"^{word} {file}::(\S+)", run.stdout, re.M) for word in ("PASSED", "FAILED")
    )
    law = f"test_deterministic_samplers_{order}_on_every_schedule"
    assert failed == [f"{law}[wrong]"]  # its order is measured, not believed
    assert f"{law}[adams_bashforth]" in passed
    assert "test_every_docstring_names_its_source_and_its_order" in passed


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*.py")),
    *sorted((ROOT / "launch").glob("*")),
    ROOT / "Makefile",
]
FLAG = re.compile(r"--config\.([\w.]*\w)")
COMMAND = re.compile(
    r"^(?:Command:)? *(?:\$ |\S+=\S+ )*[\w./]*python (main\.py.*?[^\\])$", re.M | re.S
)
WRONG = re.compile(r"\$ python (main\.py [^\n]*)\n    error: ([^\n]*)")
FILE = re.compile(r"`((?:benchmarks|diffusion_jax|docs|experiments|launch|tests)/[\w/.]+)`")


def without_what_is_refused(page):
    return WRONG.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_the_documents_is_a_setting(page):
    unknown = set(FLAG.findall(without_what_is_refused(page))) - known_paths()
    groups = {path.rpartition(".")[0] for path in known_paths()}
    assert not {path for path in unknown if path not in groups}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_documents_is_understood(page, monkeypatch):
    """Its flags, the entries and the values; a workdir that is none yet is that of the digits."""
    monkeypatch.chdir(ROOT)
    for command in COMMAND.findall(without_what_is_refused(page)):
        text = command.replace("\\\n", " ").replace("config experiments/NAME", f"config {DIGITS}")
        if "..." in text:  # to be filled in
            continue
        words = shlex.split(text.partition(" | ")[0], comments=True)[1:]
        name = words.pop(0) if words and not words[0].startswith("-") else "train"
        module = command_line.find(name)
        needs = getattr(module, "NEEDS", command_line.Needs())
        if not needs.nothing and not any(w.startswith("--config") and "." not in w for w in words):
            words += ["--config", DIGITS]
        command_line.parse(words, module)


def test_the_documents_show_commands():
    shown = [COMMAND.findall(without_what_is_refused(page)) for page in PAGES]
    assert len(shown[0]) >= 15
    assert sum(map(len, shown)) > 30


def test_the_readmes_wrong_commands_are_answered_as_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    pairs = WRONG.findall((ROOT / "README.md").read_text())
    assert len(pairs) == 2
    for command, answer in pairs:
        with pytest.raises(UserError) as error:
            command_line.parse(shlex.split(command)[1:], command_line.find("train"))
        assert str(error.value) == answer


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_that_the_documents_name_is_there(page):
    new = {addition.file for addition in additions().values()}
    named = {name for name in FILE.findall(page.read_text()) if name not in new}
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = re.findall(r"`(test_\w+\.py)`", page.read_text())
    assert [name for name in tests if not list((ROOT / "tests").rglob(name))] == []


def test_the_samplers_page_runs():
    (code,) = CODE.findall((ROOT / "docs" / "samplers.md").read_text())
    shown, keys = [], jax.random.split(jax.random.key(0), 2)
    namespace = {
        "dj": dj,
        "schedule": dj.schedules.cosine(50),
        "prediction": dj.predictions.v(),
        "params": 0.5,
        "w": 1.0,
    }
    namespace |= {
        "apply_fn": lambda params, x, t, cond: params * x + 0.1 * cond[:, None],
        "show": shown.append,
        "keys": keys,
    }
    namespace |= {
        "labels": jnp.array([0, 1]),
        "no_labels": jnp.array([2, 2]),
        "x_init": jax.random.normal(keys[0], (2, 3)),
    }
    exec(code, namespace)
    assert len(shown) == 5
    assert namespace["noise"].shape == (2, 3)


def test_the_samplers_page_names_every_sampler_and_grid():
    page = (ROOT / "docs" / "samplers.md").read_text()
    for name in (*dj.samplers.SAMPLERS, *dj.grids.GRIDS):
        assert f"`{name}`" in page, name


def test_the_notebook_runs():
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", 4)
    small = "channel_mult=(1,), blocks=1, attention_resolutions=()"
    cheaper = {
        "range(400)": "range(3)",
        'respaced(schedule, "50")': 'respaced(schedule, "10")',
        "channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), heads=2": small,
    }
    for cell in notebook.cells:  # the same code with fewer steps of a smaller network
        for words in [words for words in cheaper if words in cell.source]:
            cell.source = cell.source.replace(words, cheaper.pop(words))
    assert not cheaper
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
