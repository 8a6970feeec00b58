"""The notebook runner: what it runs, what it refuses, and what it leaves behind when it is stopped."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from companion import run as runner

PARAMETERS = (
    'MODEL = "tabletop"  # @param\nDEVICE: str = "cpu"\nNOTE, STEPS = None, None\nLABEL = "é"; STEPS = (\n    5\n)'
)


def encoded(form: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "teal").save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, *sources: str) -> Path:
    """A notebook with a heading, a cell of parameters and these code cells."""
    cells = [new_markdown_cell("# Title\n\n## A picture"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells + [new_code_cell(source) for source in sources]), path)
    return path


def text_of(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks that the runner takes for the course's."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    return notebooks


@pytest.mark.notebooks
def test_a_run_reports_what_became_of_each_notebook(folder, tmp_path, monkeypatch, capsys):
    """Failures of every kind are seen and told apart, and the notebooks after them still run."""
    show = "from IPython.display import Image, display\nimport base64\n"
    show += "\n".join(f"display(Image(base64.b64decode('{encoded(form)}')))" for form in ("PNG", "JPEG"))
    write(folder / "00_error.ipynb", "print('before')", "1 / 0", "print('after')")
    write(folder / "01_exit.ipynb", "import sys\nsys.exit(0)", "print('after')")
    write(folder / "02_dead.ipynb", "import os\nos._exit(0)")
    write(folder / "03_good.ipynb", "import sys\nprint(sys.executable, MODEL, STEPS)", show)
    before = (folder / "03_good.ipynb").read_bytes()
    # A kernel called python3 that belongs to no Python at all comes first on the path.
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(
        json.dumps({"argv": ["/nowhere/python", "{connection_file}"], "display_name": "x", "language": "python"}),
        encoding="utf-8",
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    out = tmp_path / "out"
    assert runner.run(out=out, model="sd15", parameters={"STEPS": 7}) == 1

    assert sorted(path.name for path in out.iterdir()) == [
        *(path.name for path in sorted(folder.iterdir())),
        "report.html",
    ]
    report, said = (out / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "1 of 4 notebooks completed" in report
    for path in folder.iterdir():
        status, word = ("completed", "OK") if path.stem == "03_good" else ("failed", "FAIL")
        assert f'<a href="#{path.name}">{path.name}</a></td><td class="{status}">{status}</td>' in report
        assert [line.split()[0] for line in said.splitlines() if path.stem in line] == [word]
    for told in ("ZeroDivisionError: division by zero", "1 / 0", "without an error", "The kernel died", "os._exit(0)"):
        assert told in report and told in said
    for form in ("PNG", "JPEG"):
        assert f"data:image/{form.lower()};base64,{encoded(form)}" in report
    assert "<figcaption>A picture</figcaption>" in report

    good = nbformat.read(out / "03_good.ipynb", as_version=4)
    assert text_of(good) == f"{sys.executable} sd15 7\n"
    assert (folder / "03_good.ipynb").read_bytes() == before
    stopped = nbformat.read(out / "01_exit.ipynb", as_version=4)
    assert [cell.metadata.papermill.status for cell in stopped.cells[-2:]] == ["failed", "pending"]


@pytest.mark.notebooks
def test_a_cell_may_not_take_longer_than_the_timeout(folder, tmp_path):
    write(folder / "00_slow.ipynb", "import time\ntime.sleep(600)", "print('after')")
    assert runner.run(out=tmp_path / "out", timeout=5) == 1
    assert "took longer than 5 s" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # Papermill itself would have marked both as completed.
    slow = nbformat.read(tmp_path / "out" / "00_slow.ipynb", as_version=4)
    assert [cell.metadata.papermill.status for cell in slow.cells[-2:]] == ["failed", "pending"]


@pytest.mark.notebooks
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_stopped_run_keeps_what_was_done(folder, tmp_path, name):
    started = tmp_path / "started"
    write(folder / "00_first.ipynb", "print('done')")
    # The process's number appears whole or not at all, so that it can be waited for.
    at_work = f"import os, time\nopen({str(started)!r} + '_', 'w').write(str(os.getpid()))\n"
    write(folder / "01_second.ipynb", at_work + f"os.rename({str(started)!r} + '_', {str(started)!r})\ntime.sleep(600)")
    write(folder / "02_third.ipynb", "print('never')")
    code = (
        "import signal, sys, pathlib, companion.run as runner\n"
        # What a shell starts in the background ignores SIGINT, and so would this process if the tests were started so.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"runner.NOTEBOOKS = pathlib.Path({str(folder)!r})\nsys.exit(runner.run(out={str(tmp_path / 'out')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_until(started.exists)
        kernel = psutil.Process(int(started.read_text(encoding="utf-8")))
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == (-signal.SIGKILL if name == "SIGKILL" else 130)
        wait_until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    finally:
        process.kill()
        process.wait()

    done = nbformat.read(tmp_path / "out" / "00_first.ipynb", as_version=4)
    assert text_of(done) == "done\n"
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 of 3 notebooks completed" in report and report.rstrip().endswith("</html>")
    assert not (tmp_path / "out" / "02_third.ipynb").exists()
    if name != "SIGKILL":
        assert '<td class="interrupted">' in report
        stopped = nbformat.read(tmp_path / "out" / "01_second.ipynb", as_version=4)
        assert stopped.cells[-1].metadata.papermill.status == "failed"


def wait_until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_notebooks_are_chosen_by_number_name_or_beginning(folder):
    for name in ("00_start_here", "01_latent_diffusion", "02_samplers", "10_latent_walks"):
        write(folder / f"{name}.ipynb")

    def chosen(only):
        return [path.stem[:2] for path in runner.choose(only)]

    assert chosen(None) == chosen([]) == ["00", "01", "02", "10"]
    assert chosen("1") == chosen("01_latent_diffusion.ipynb") == chosen(["latent_diffusion"]) == ["01"]
    assert chosen(["samp", "00"]) == ["00", "02"]
    assert chosen("latent") == ["01", "10"]
    with pytest.raises(ValueError, match="'01_latent_difusion'; did you mean '01_latent_diffusion'?"):
        runner.choose("01_latent_difusion")
    for nothing in ("7", ""):
        with pytest.raises(ValueError, match="there are: 00_start_here, 01_"):
            runner.choose([nothing])


def test_an_empty_course_is_an_error(folder):
    with pytest.raises(ValueError, match="holds no notebook"):
        runner.run()


def test_an_unknown_parameter_is_an_error_before_anything_runs(folder, tmp_path):
    path = write(folder / "00_a.ipynb", "1 / 0")
    before = path.read_bytes()
    for call in (
        lambda: runner.run(parameters={"STEP": 1}, out=tmp_path / "out"),
        lambda: runner.execute_in_place([path], {"STEP": 1}),
    ):
        with pytest.raises(ValueError, match="00_a.ipynb has no parameter 'STEP'; it has: MODEL, DEVICE, LABEL, STEPS"):
            call()
    assert not (tmp_path / "out").exists() and path.read_bytes() == before


def test_no_run_writes_over_another(folder, tmp_path):
    first, second = runner._new_folder(None), runner._new_folder(None)
    assert first != second and first.parent == second.parent == tmp_path / "runs"
    assert runner._new_folder(tmp_path / "mine") == tmp_path / "mine"  # new
    assert runner._new_folder(tmp_path / "mine") == tmp_path / "mine"  # still empty
    (tmp_path / "mine" / "report.html").touch()
    with pytest.raises(ValueError, match="exists already"):
        runner._new_folder(tmp_path / "mine")


def test_peak_memory_sees_the_processes_started_meanwhile():
    with runner._peak_memory() as peak:
        child = subprocess.Popen([sys.executable, "-c", "held = b'x' * 300_000_000; input()"], stdin=subprocess.PIPE)
        try:
            wait_until(lambda: peak[0] > 300_000_000)
        finally:
            child.communicate(b"\n")


@pytest.mark.notebooks
def test_notebooks_are_executed_in_place(tmp_path, capsys):
    slider = "import ipywidgets\nipywidgets.IntSlider()"
    good = write(tmp_path / "good.ipynb", "print(MODEL, LABEL, STEPS)", slider)
    bad = write(tmp_path / "bad.ipynb", "1 / 0")
    big = write(tmp_path / "big.ipynb", "print('x' * 1_000_000)")
    as_written = nbformat.read(good, as_version=4)
    before = bad.read_bytes(), big.read_bytes()

    assert runner.execute_in_place([good, bad, big], {"STEPS": 9, "MODEL": "sd15"}) == 1

    assert (bad.read_bytes(), big.read_bytes()) == before
    assert "the limit is 1,000,000" in capsys.readouterr().out
    notebook = nbformat.read(good, as_version=4)
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in as_written.cells]
    assert notebook.cells[1].source == PARAMETERS.replace('"tabletop"', "'sd15'").replace("(\n    5\n)", "(\n    9\n)")
    assert text_of(notebook) == "sd15 é 9\n"
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[3].outputs[0].data
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    assert [cell.metadata for cell in notebook.cells] == [cell.metadata for cell in as_written.cells]

    # Nothing that differs from run to run is left, but for the widgets' random names.
    once = good.read_text(encoding="utf-8")
    assert runner.execute_in_place([good]) == 0
    view = notebook.cells[3].outputs[0].data["application/vnd.jupyter.widget-view+json"].model_id
    again = nbformat.read(good, as_version=4)
    new_view = again.cells[3].outputs[0].data["application/vnd.jupyter.widget-view+json"].model_id
    assert good.read_text(encoding="utf-8") == once.replace(view, new_view)
