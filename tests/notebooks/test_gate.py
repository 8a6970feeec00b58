"""The gate for committed notebooks: they are well formed, and papermill runs them to the end. nbval: test_nbval.py."""

from __future__ import annotations

import base64
import copy
import io
import re

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from structure import COMMITTED, VIEW, gate_parameters, needed_by, problems

from companion import run as runner

each_notebook = pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)


def test_every_notebook_has_a_number_of_its_own_and_is_in_the_readme():
    assert COMMITTED
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in COMMITTED)
    assert len({path.stem[:2] for path in COMMITTED}) == len(COMMITTED)
    readme = (runner.ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", readme)
    assert list(dict.fromkeys(listed)) == [path.stem for path in COMMITTED], "all that are there, in order"


@each_notebook
def test_a_notebook_is_well_formed(path):
    assert problems(nbformat.read(path, as_version=4), path.stat().st_size) == []


@each_notebook
def test_a_notebook_is_as_companion_execute_writes_it(path):
    assert path.read_text(encoding="utf-8") == runner.tidy(nbformat.read(path, as_version=4))


@pytest.mark.notebooks
@pytest.mark.slow
@each_notebook
def test_papermill_runs_a_notebook_to_its_end(path, tmp_path, capsys):
    """Uses the parameters that its metadata gives for this; nbval uses its own."""
    parameters = gate_parameters(nbformat.read(path, as_version=4))
    code = runner.run(only=path.stem, out=tmp_path / "out", timeout=300, parameters=parameters)
    assert code == 0, capsys.readouterr().out


def png(*colours: str) -> str:
    picture = Image.new("RGB", (2, 1), colours[0])
    picture.putpixel((1, 0), Image.new("RGB", (1, 1), colours[-1]).getpixel((0, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def well_formed() -> NotebookNode:
    """A notebook as the gate wants it, code cells: 0 set-up, 1 parameters, 2 to 4 checked, 5 a widget."""
    opening = "# Title\n[![Open in Colab](https://a/badge.svg)](https://a)\n"
    opening += "You will be able to read. 1 minute on 2 cores, 1 on a T4."
    skip = {"tags": ["nbval-skip", "skip-execution"]}
    setup = "import sys\nif 'google.colab' in sys.modules:\n    %pip install -q companion"
    cells = [
        new_code_cell(setup, metadata=skip),
        new_code_cell('MODEL = "tabletop"\nDEVICE = "cpu"\nSTEPS = 20', metadata={"tags": ["parameters"]}),
    ]
    for number in range(3):
        cell = new_code_cell(f"print({number})", metadata={"tags": ["nbval-check-output"]})
        cell.outputs = [new_output("stream", name="stdout", text=f"{number}\n")]
        cells.append(cell)
    widget = new_code_cell("playground()", metadata={"tags": ["widget"]})
    data = {"text/plain": "Playground()", "image/png": png("red", "blue"), VIEW: {"model_id": "1"}}
    widget.outputs = [new_output("display_data", data)]
    cells.append(widget)
    for count, cell in enumerate(cells[1:], start=1):
        cell.execution_count = count
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "companion": {"gate": {"STEPS": 2}}}
    return new_notebook(cells=[new_markdown_cell(opening), *cells], metadata=metadata)


def test_a_well_formed_notebook_has_no_problems():
    assert problems(well_formed()) == []


def code(notebook: NotebookNode, number: int) -> NotebookNode:
    return [cell for cell in notebook.cells if cell.cell_type == "code"][number]


def show(notebook: NotebookNode, **output) -> None:
    """Give the widget's cell one more output."""
    kind = output.pop("kind")
    code(notebook, 5).outputs.append(new_output(kind, **output))


def strip(notebook: NotebookNode) -> None:
    for cell in notebook.cells[1:]:
        cell.execution_count, cell.outputs = None, []


def retag(notebook: NotebookNode, number: int, *tags: str) -> None:
    code(notebook, number).metadata.tags = list(tags)


def resource(notebook: NotebookNode, number: int, source: str) -> None:
    code(notebook, number).source = source


MUTATIONS = {
    "execution counts are": strip,
    "execution counts are [1, 2, 9, 4, 5]": lambda nb: code(nb, 3).update(execution_count=9),
    "holds an error: ValueError": lambda nb: show(nb, kind="error", ename="ValueError", evalue="", traceback=[]),
    "wrote to stderr": lambda nb: show(nb, kind="stream", name="stderr", text="100%|####| 20/20"),
    "metadata.widgets is set": lambda nb: nb.metadata.update(widgets={}),
    "metadata.papermill is set": lambda nb: nb.metadata.update(papermill={}),
    "kernelspec is not": lambda nb: nb.metadata.kernelspec.update(name="my-env"),
    "not a valid notebook: 'display_name'": lambda nb: nb.metadata.kernelspec.pop("display_name"),
    "2 cells tagged nbval-check-output": lambda nb: retag(nb, 2),
    "unknown: ['nbval-check-outputs']": lambda nb: retag(nb, 2, "nbval-check-outputs"),
    "unknown: ['raises-exception']": lambda nb: retag(nb, 5, "widget", "raises-exception"),
    "in a comment": lambda nb: resource(nb, 2, "# NBVAL_IGNORE_OUTPUT\nprint(0)"),
    "no text that could be checked": lambda nb: code(nb, 2).update(outputs=[]),
    "more digits": lambda nb: code(nb, 2).outputs[0].update(text="loss 0.123456"),
    "gate sets STEP,": lambda nb: nb.metadata.companion.gate.update(STEP=1),
    "does not open with a title": lambda nb: nb.cells[0].update(source=" " + nb.cells[0].source),
    "the link to 99_none.ipynb": lambda nb: nb.cells[0].update(source=nb.cells[0].source + "[next](99_none.ipynb)"),
    "does not end with one folded block": lambda nb: nb.cells[0].update(
        source=nb.cells[0].source + "\n\n<details><summary>Fine print</summary>\n*None.*\n\n</details>"
    ),
    "does not say 'T4'": lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("T4", "GPU")),
    "tagged are []": lambda nb: retag(nb, 1),
    "tagged are [1, 2]": lambda nb: retag(nb, 2, "parameters", "nbval-check-output"),
    "tagged are [3]": lambda nb: (retag(nb, 1), retag(nb, 3, "parameters")),
    "does not set DEVICE": lambda nb: resource(nb, 1, 'MODEL = "tabletop"\nSTEPS = 20'),
    "MODEL is 'sd15'": lambda nb: resource(nb, 1, 'MODEL = "sd15"\nDEVICE = "cpu"\nSTEPS = 20'),
    "may be skipped only if": lambda nb: retag(nb, 2, "nbval-check-output", "nbval-skip", "skip-execution"),
    "by both nbval-skip and skip-execution": lambda nb: retag(nb, 0, "skip-execution"),
    "the shell command 'false'": lambda nb: resource(nb, 2, "!false"),
    "the shell command 'ls'": lambda nb: resource(nb, 2, "if True:\n    files = !ls"),
    "the shell command 'pip'": lambda nb: resource(nb, 2, "%pip install companion"),
    "the shell command 'bash'": lambda nb: resource(nb, 2, "%%bash\nfalse"),
    "has 19 lines": lambda nb: resource(nb, 2, "\n\n".join(["1"] * 19)),
    "is empty": lambda nb: resource(nb, 2, "\n"),
    "without a picture": lambda nb: code(nb, 5).outputs[0].data.pop("image/png"),
    "flat colour": lambda nb: code(nb, 5).outputs[0].data.update({"image/png": png("black", "black")}),
    "tagged widget and shows none": lambda nb: code(nb, 5).outputs[0].data.pop(VIEW),
    "[3, 4] set the name 'x', and cells [5]": lambda nb: [
        resource(nb, number, source) for number, source in ((2, "x = 1"), (3, "x = 2"), (4, "print([x for _ in '1'])"))
    ],
    "[3, 4] set the name 'x', and cells [4]": lambda nb: [
        resource(nb, number, source) for number, source in ((2, "x = 1"), (3, "x = x + 1"))
    ],
    "path of the machine": lambda nb: show(nb, kind="stream", name="stdout", text="in /home/ann/x.png"),
    "C:": lambda nb: show(nb, kind="display_data", data={"text/html": "<b>C:\\Users\\ann</b>"}),
    "address of an object": lambda nb: show(nb, kind="display_data", data={"text/plain": "<A at 0x7f16a0b1>"}),
}


@pytest.mark.parametrize("problem", MUTATIONS)
def test_each_problem_is_found(problem):
    notebook = well_formed()
    MUTATIONS[problem](notebook)
    assert any(problem in found for found in problems(notebook)), problems(notebook)


def test_names_that_no_order_can_confuse_are_no_problem():
    notebook = well_formed()
    for number, source in (
        (2, "def f(n): return [x for x in range(n)]\nfor x in f(2): print(x)\nSTEPS = STEPS or 3"),
        (3, "import exercises\nf = exercises.use('f', f)\nx = 2\nprint(x)"),
        (4, "print(f(STEPS), __name__)"),
    ):
        resource(notebook, number, source)
    assert problems(notebook) == []


def test_fine_print_is_folded_at_the_end_of_a_cell():
    notebook, fold = well_formed(), "\n\n<details><summary>Fine print</summary>\n\n*None.*\n\n</details>"
    notebook.cells[0].source += fold
    assert problems(notebook) == []
    for wrong in (fold, "\n\nMore."):
        broken = copy.deepcopy(notebook)
        broken.cells[0].source += wrong
        assert any("folded block" in found for found in problems(broken))


def test_a_file_that_is_too_large_is_found():
    assert any("limit" in found for found in problems(well_formed(), size=runner.MAX_BYTES))


def test_a_magic_that_runs_no_command_is_no_problem():
    notebook = well_formed()
    resource(notebook, 2, "%matplotlib inline\nprint('!false')  # 5 != 6, see https://example.org/home/x")
    show(notebook, kind="stream", name="stdout", text="https://example.org/home/x.png data/tmp/x 2/3")
    assert problems(notebook) == []


def test_what_a_cell_needs_are_the_cells_that_set_what_it_takes():
    sources = ["import math", "a = 1", "def f():\n    return a + math.pi", "b = 2", "print(f())", "c = f()"]
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, sources)])
    assert needed_by(notebook, [5]) == {1, 2, 3, 5}
    assert needed_by(notebook, [4, 2]) == {2, 4}
