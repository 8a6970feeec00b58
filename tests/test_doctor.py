"""The doctor passes here, and finds anything that can be wrong."""

from __future__ import annotations

import builtins
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import companion
from companion import doctor
from companion.doctor import FAIL, OK, WARN, Check
from companion.files import write_checksums
from companion.models import find


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make imports of these packages fail, and their versions unknown."""
    real_import, real_version = builtins.__import__, importlib.metadata.version

    def no_import(name, *args, **kwargs):
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *args, **kwargs)

    def no_version(name):
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(builtins, "__import__", no_import)
    monkeypatch.setattr(importlib.metadata, "version", no_version)


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that these packages are installed in these versions, or not at all."""
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))


@pytest.fixture
def clone(tmp_path, tiny, monkeypatch) -> Path:
    """A data folder whose tabletop is a tiny pipeline, with checksums."""
    shutil.copytree(tiny, tmp_path / "data/models/tabletop")
    write_checksums(tmp_path / "data/models")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def roomy(monkeypatch) -> None:
    """Plenty of memory and disk, whatever this machine has."""
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10e9, total=16e9))
    monkeypatch.setattr(doctor, "_container", lambda: (None, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100e9))


def test_a_machine_that_runs_the_tests_is_ready(clone, roomy, capsys):
    found = doctor.checks()
    assert [check for check in found if check.status == FAIL] == []
    doctor.report(found)
    lines = capsys.readouterr().out.splitlines()
    assert {check.name for check in found} >= {"Python", "packages", "memory", "disk", "device", "weights", "widgets"}
    assert all(any(line.startswith(f"[{check.status}]") and check.detail in line for line in lines) for check in found)
    assert lines[-1].startswith("Ready")


def test_every_failure_is_printed_with_its_fix(capsys):
    doctor.report(
        [Check("one", OK, "fine"), Check("two", FAIL, "broken", "mend it"), Check("three", FAIL, "gone", "get")]
    )
    assert capsys.readouterr().out.splitlines() == [
        "[OK]    one        fine",
        "[FAIL]  two        broken",
        "                   -> mend it",
        "[FAIL]  three      gone",
        "                   -> get",
        "To be mended: two, three.",
    ]


@pytest.mark.parametrize(("version", "status"), [((3, 10), FAIL), ((3, 11), OK), ((3, 13), OK), ((3, 14), WARN)])
def test_python(monkeypatch, version, status):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert doctor.python().status == status


def test_a_missing_package(monkeypatch):
    with_versions(monkeypatch, diffusers=None)
    (bad,) = [check for check in doctor.packages() if check.status == FAIL]
    assert (bad.name, bad.detail) == ("diffusers", "not installed")
    assert "pip install" in bad.fix and "diffusers" in bad.fix and ">=" in bad.fix


def test_a_package_out_of_range(monkeypatch):
    with_versions(monkeypatch, numpy="1.26.4", transformers="99.0")
    bad = {check.name: check for check in doctor.packages() if check.status == FAIL}
    assert set(bad) == {"numpy", "transformers"}
    assert bad["numpy"].detail.startswith("1.26.4 is outside ")


def test_what_only_runs_notebooks_is_a_warning_and_no_matter_in_colab(monkeypatch):
    with_versions(monkeypatch, papermill=None)
    assert [check.name for check in doctor.packages() if check.status == WARN] == ["papermill"]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert [check.name for check in doctor.packages() if check.status != OK] == []


def test_away_from_its_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(companion, "ROOT", tmp_path)
    (bad,) = doctor.packages()
    assert bad.status == FAIL and "pip install -e ." in bad.fix
    assert doctor.weights().status == FAIL and "COMPANION_DATA" in doctor.weights().detail


@pytest.mark.parametrize(("free", "status"), [(0.5e9, FAIL), (1.4e9, FAIL), (2e9, WARN), (8e9, OK)])
def test_memory(monkeypatch, free, status):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=16e9))
    monkeypatch.setattr(doctor, "_container", lambda: (None, 0))
    check = doctor.memory()
    assert check.status == status and f"{free / 1e9:.1f} of 16.0 GB" in check.detail
    assert bool(check.fix) == (status != OK)


def test_memory_in_a_container(monkeypatch, tmp_path):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60e9, total=64e9))
    (tmp_path / "memory.max").write_text("2000000000\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("1000000000\n", encoding="utf-8")
    real = doctor._container
    monkeypatch.setattr(doctor, "_container", lambda: real(tmp_path))
    assert (doctor.memory().status, doctor.memory().detail[:19]) == (FAIL, "1.0 of 2.0 GB free;")
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert doctor.memory().status == OK


@pytest.mark.parametrize(("free", "status"), [(0.1e9, FAIL), (2e9, WARN), (50e9, OK)])
def test_disk(monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert doctor.disk().status == status


def test_disk_asks_where_models_would_go(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9 if path == tmp_path else 50e9))
    assert doctor.disk().status == WARN and str(tmp_path) in doctor.disk().detail


def test_device(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.device().status == OK and doctor.device().detail.startswith("CPU")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.device().status == WARN and "NVIDIA" in doctor.device().detail
    card = SimpleNamespace(name="Tesla T4", total_memory=15.8e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert (doctor.device().status, doctor.device().detail) == (OK, "Tesla T4, 16 GB")


def test_weights_intact_then_not(clone):
    assert doctor.weights().status == OK
    unet = clone / "models/tabletop/unet/diffusion_pytorch_model.safetensors"
    whole = unet.read_bytes()
    unet.write_bytes(whole[:-1] + b"\x7f")
    bad = doctor.weights()
    assert bad.status == FAIL and "unet/diffusion_pytorch_model.safetensors" in bad.detail
    assert bad.fix == "git checkout -- data/models"
    unet.write_bytes(whole[:-1])
    assert doctor.weights().status == FAIL and "cut short" in doctor.weights().detail
    unet.unlink()
    assert doctor.weights().status == FAIL and "lacks unet/" in doctor.weights().detail
    unet.write_bytes(whole)
    assert doctor.weights().status == OK
    (clone / "models/checksums.json").unlink()
    assert doctor.weights().status == WARN


def test_weights_without_a_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nowhere"))
    assert doctor.weights().status == FAIL and "COMPANION_DATA" in doctor.weights().detail


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({"ipywidgets": None}, FAIL),
        ({"anywidget": None}, FAIL),
        ({"ipywidgets": "8.1.5", "jupyterlab_widgets": "3.0.13"}, OK),
        ({"ipywidgets": "7.7.1", "jupyterlab_widgets": "1.1.1"}, OK),
        ({"ipywidgets": "7.7.1", "jupyterlab_widgets": "3.0.13"}, FAIL),
        ({"ipywidgets": "8.1.5", "jupyterlab_widgets": None}, FAIL),
        ({"ipywidgets": "8.1.5", "jupyterlab_widgets": None, "jupyterlab": None}, WARN),
    ],
)
def test_widgets(monkeypatch, versions, status):
    with_versions(monkeypatch, **versions)
    check = doctor.widgets()
    assert check.status == status
    assert bool(check.fix) == (status == FAIL)


def test_widgets_in_colab(monkeypatch):
    with_versions(monkeypatch, ipywidgets="7.7.1", anywidget="0.9.21", jupyterlab_widgets="3.0.13")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert doctor.widgets().status == OK


@pytest.mark.parametrize("version", ["0.10.0", "0.15.0", "0.16.0", None])
def test_torchao_is_judged_as_peft_judges_it(monkeypatch, version):
    import peft.import_utils

    with_versions(monkeypatch, torchao=version)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torchao" else real(name))
    find_spec = peft.import_utils.importlib.util.find_spec
    monkeypatch.setattr(
        peft.import_utils.importlib.util,
        "find_spec",
        lambda name, *rest: (version and SimpleNamespace()) if name == "torchao" else find_spec(name, *rest),
    )
    try:
        peft.import_utils.is_torchao_available.__wrapped__()
        expected = OK
    except ImportError:
        expected = FAIL
    assert doctor.torchao().status == expected
    assert ("uninstall -y torchao" in doctor.torchao().fix) == (expected == FAIL)


def test_it_runs_where_nothing_is_installed(clone, roomy, monkeypatch, capsys):
    without(
        monkeypatch, "torch", "packaging", "psutil", "ipywidgets", "anywidget", "torchao", "huggingface_hub", "numpy"
    )
    doctor.report()
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "To be mended: packages, device, widgets."


def test_it_needs_nothing_outside_the_standard_library():
    """In an interpreter that sees the package alone, as on a machine where installing failed."""
    code = f"import sys; sys.path.insert(0, {str(companion.ROOT)!r}); import companion.doctor as d; d.report()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "packaging is not installed" in done.stdout


def test_a_model_that_is_too_large_is_told_before_it_is_loaded(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "free_memory", lambda: (3_000_000_000, 8_000_000_000))
    with pytest.raises(ValueError, match="'sd15' takes 5.5 GB for its weights alone, and cpu has 3.0 GB free; close"):
        doctor.check_room(find("sd15"))
    doctor.check_room(find("tabletop"))
    monkeypatch.setattr(doctor, "free_memory", lambda: (6_000_000_000, 8_000_000_000))
    doctor.check_room(find("sd15"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(total_memory=2_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    with pytest.raises(ValueError, match="takes 2.8 GB for its weights alone, and cuda has 2.0 GB in all; use"):
        doctor.check_room(find("sd15"))
    card.total_memory = 4_000_000_000
    doctor.check_room(find("sd15"), "cuda")
