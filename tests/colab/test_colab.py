"""The course with the versions that Google Colab has: its trap with torchao, its old ipywidgets, every notebook.

`make colab` runs this. It makes an environment of its own, .venv-colab, from constraints.txt; that takes minutes and
1.7 GB the first time, and nothing after that until the file changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from companion import ROOT
from companion.run import NOTEBOOKS

pytestmark = pytest.mark.colab

PINS = Path(__file__).with_name("constraints.txt")
VENV = ROOT / ".venv-colab"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
VIEW = "application/vnd.jupyter.widget-view+json"
#: What Colab has; test_project.py holds the ranges of pyproject.toml against the same numbers.
COLAB = {
    "anywidget": "0.9.21",
    "diffusers": "0.39.0",
    "huggingface_hub": "1.27.0",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "numpy": "2.1.3",
    "peft": "0.20.0",
    "traitlets": "5.7.1",
    "transformers": "5.15.0",
}
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
INJECT = """
import torch
from peft import LoraConfig, inject_adapter_in_model
model = torch.nn.Sequential(torch.nn.Linear(4, 4))
inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model)
print("injected", sum("lora" in name for name, _ in model.named_parameters()))
"""


def colab(*words: str, **options) -> subprocess.CompletedProcess:
    """Run the environment's Python with the course on its path, as Colab's set-up cell does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([str(PYTHON), *words], capture_output=True, text=True, env=environment, **options)


def pip(*words: str) -> None:
    done = colab("-m", "pip", "-q", "--disable-pip-version-check", *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    """.venv-colab, built from constraints.txt, and again when that changes."""
    stamp = VENV / "installed"
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        if os.environ.get("PYTEST_XDIST_WORKER"):
            pytest.fail(f"several processes cannot make {VENV.name}, which is missing or old: run `make colab`")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        pip("install", "--no-deps", "--requirement", str(PINS))
        stamp.write_text(wanted, encoding="utf-8")


@pytest.fixture
def torchao() -> None:
    """As Colab starts: with torchao 0.10."""
    pip("install", "--no-deps", "torchao==0.10.0")


@pytest.fixture
def no_torchao() -> None:
    """As it is after the set-up cell."""
    pip("uninstall", "-y", "torchao")


def test_it_has_colab_s_versions(torchao):
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {list(COLAB)!r}}}))"
    found = json.loads(colab("-c", code).stdout)
    print("\n".join(f"{name} {version}" for name, version in found.items()))
    assert found == COLAB


def test_the_pins_satisfy_what_the_course_asks_for():
    import tomllib

    lines = [line for line in PINS.read_text(encoding="utf-8").splitlines() if "==" in line]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), requirement


def test_the_trap_is_there(torchao):
    """Any adapter ends in an ImportError; the doctor says so and how to mend it."""
    done = colab("-c", INJECT)
    assert done.returncode != 0 and "torchao" in done.stderr and "ImportError" in done.stderr
    said = colab("-c", "from companion import doctor; print(doctor.torchao())").stdout
    assert "FAIL" in said and "uninstall -y torchao" in said


def test_what_the_set_up_cell_does_springs_it(no_torchao):
    done = colab("-c", INJECT)
    assert done.stdout.strip() == "injected 2", done.stderr
    assert "OK" in colab("-c", "from companion import doctor; print(doctor.torchao())").stdout


def test_a_stock_pipeline_loads_and_draws_without_the_course(torchao, tmp_path):
    """Nothing but diffusers, and torchao still there: drawing needs no adapter."""
    code = (
        "import sys, torch\nfrom diffusers import StableDiffusionPipeline\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(ROOT / 'data/models/tabletop')!r})\n"
        "picture = pipe('a red ball', num_inference_steps=2, generator=torch.manual_seed(0)).images[0]\n"
        "print(type(pipe.unet).__name__, picture.size, 'companion' in sys.modules)"
    )
    done = colab("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "UNet2DConditionModel (128, 128) False", done.stderr


def test_the_widgets_python_side_works(no_torchao):
    """The widgets' own tests, under ipywidgets 7.7.1."""
    files = [str(path) for path in (ROOT / "tests").glob("test*widgets.py")]
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not slow"]
    options += ["-W", "default"]  # other versions give other warnings, which are not errors
    done = colab("-m", "pytest", *options, *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout.splitlines()[-1])


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_completes(name, no_torchao, tmp_path):
    """Through papermill with the gate's budgets; its widgets leave their picture and their live view."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    given = notebook.metadata.get("companion", {}).get("gate", {})
    words = [word for key, value in given.items() for word in ("-p", f"{key}={value!r}")]
    done = colab("-m", "companion.cli", "run", name, "--out", str(tmp_path / "out"), *words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    print(next(line for line in done.stdout.splitlines() if line.startswith("OK")))
    executed = nbformat.read(tmp_path / "out" / f"{name}.ipynb", as_version=4)
    widgets = [cell for cell in executed.cells if "widget" in cell.metadata.get("tags", [])]
    assert widgets
    for cell in widgets:
        assert any({VIEW, "image/png"} <= set(output.get("data", {})) for output in cell.outputs)
