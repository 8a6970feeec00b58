"""What a committed notebook must look like; README.md says it in prose."""

from __future__ import annotations

import ast
import base64
import dis
import io
import json
import re
from collections.abc import Iterable, Iterator
from types import CodeType

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode, ValidationError, validate
from PIL import Image

from companion.run import MAX_BYTES, NOTEBOOKS, parameters_of

#: All there are; test_gate.py fails if there are none.
COMMITTED = sorted(NOTEBOOKS.glob("*.ipynb"))
MIN_CHECKED = 3
MAX_LINES = 18
VIEW = "application/vnd.jupyter.widget-view+json"
# nbval and papermill each have their own word for "do not run this".
SKIP = {"nbval-skip", "skip-execution"}
NBVAL_TAGS = {"nbval-check-output", "nbval-skip"}
# Tags that let a broken cell pass, or that papermill wrote.
REFUSED_TAGS = {"raises-exception", "injected-parameters", "papermill-error-cell-tag"}
FINE_PRINT = re.compile(r"\n\n<details><summary>Fine print</summary>\n\n(?!\n).+\n\n</details>\n*\Z", re.DOTALL)
MACHINE_PATH = re.compile(r"(?<![\w.:/])(/(root|home|Users|work|tmp|content|opt|usr|var|mnt)/|[A-Z]:\\)")


def gate_parameters(notebook: NotebookNode) -> dict:
    """Parameters with which the gate runs the notebook faster, from `companion.gate` in its metadata."""
    return notebook.metadata.get("companion", {}).get("gate", {})


def tags_of(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def texts(cell: NotebookNode) -> Iterator[str]:
    """The text of the cell's outputs, in all its forms."""
    for output in cell.outputs:
        if "text" in output:
            yield output.text
        for mime, content in output.get("data", {}).items():
            if not mime.startswith("image/") or mime == "image/svg+xml":
                yield content if isinstance(content, str) else json.dumps(content)


def checked_text(cell: NotebookNode) -> str:
    """What nbval compares, minus empty text such as <Figure size 640x480 with 1 Axes>."""
    kept = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(text for text in kept if not text.startswith("<"))


def is_flat(png: str) -> bool:
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        return all(low == high for low, high in picture.convert("RGB").getextrema())


def problems(notebook: NotebookNode, size: int = 0) -> list[str]:
    """What is wrong with a committed notebook whose file has `size` bytes, a sentence each."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [*_notebook_problems(notebook, code, size), *_opening_problems(notebook, code), *_link_problems(notebook)]
    found += [*_fine_print_problems(notebook), *_name_problems(notebook, code)]
    for number, cell in enumerate(code, start=1):
        found += [f"code cell {number}: {problem}" for problem in _cell_problems(cell)]
    return found


def _notebook_problems(notebook: NotebookNode, code: list[NotebookNode], size: int) -> Iterator[str]:
    try:
        validate(notebook)
    except ValidationError as error:
        yield f"it is not a valid notebook: {error.message}"
    if size >= MAX_BYTES:
        yield f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}"
    for key in {"widgets", "papermill"} & set(notebook.metadata):
        yield f"metadata.{key} is set; write the notebook with `companion execute`"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec is not python3"
    counts = [cell.execution_count for cell in code if not SKIP & tags_of(cell)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the execution counts are {counts}, not 1 to {len(counts)}: execute it from a fresh kernel"
    checked = [cell for cell in code if "nbval-check-output" in tags_of(cell) and checked_text(cell)]
    if len(checked) < MIN_CHECKED:
        yield f"{len(checked)} cells tagged nbval-check-output have stored text; it takes {MIN_CHECKED}"
    for name in gate_parameters(notebook).keys() - parameters_of(notebook).keys():
        yield f"metadata.companion.gate sets {name}, which the cell tagged parameters does not have"


def _opening_problems(notebook: NotebookNode, code: list[NotebookNode]) -> Iterator[str]:
    opening = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            break
        opening += cell.source + "\n"
    if not opening.startswith("# "):
        yield "it does not open with a title"
    for words in ("[![", "able to", "2 cores", "T4"):
        if words not in " ".join(opening.split()):  # however its lines are broken
            yield f"the text before the first code cell does not say {words!r}"
    places = [index for index, cell in enumerate(code) if "parameters" in tags_of(cell)]
    if len(places) != 1 or places[0] > 1:
        yield f"one of the first two code cells, and no other, must be tagged parameters; tagged are {places}"
        return
    parameters = parameters_of(notebook)
    for name in {"MODEL", "DEVICE"} - parameters.keys():
        yield f"the cell tagged parameters does not set {name}"
    if "MODEL" in parameters and ast.unparse(parameters["MODEL"]) != "'tabletop'":
        yield f"MODEL is {ast.unparse(parameters['MODEL'])} by default, not 'tabletop'"


def _link_problems(notebook: NotebookNode) -> Iterator[str]:
    """Broken links between files of the course, which nobody would notice until a learner follows them."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", prose):
        if not (NOTEBOOKS / target).exists():
            yield f"the link to {target} leads to no file; write the name of a planned notebook without a link"


def _fine_print_problems(notebook: NotebookNode) -> Iterator[str]:
    """Blocks that would not be folded, or whose text would not be read as Markdown: that needs the blank lines."""
    for cell in notebook.cells:
        folds = len(re.findall("</?details", cell.source)) if cell.cell_type == "markdown" else 0
        if folds and not (folds == 2 and FINE_PRINT.search(cell.source)):
            yield f"the text {cell.source[:40]!r} does not end with one folded block as CONTRIBUTING.md has it"


def _name_problems(notebook: NotebookNode, code: list[NotebookNode]) -> Iterator[str]:
    """Names that two cells set and any cell takes from another: what it gets depends on which cell was run last.

    An exercise's function is set by its stub and then by `exercises.use`, and a parameter may be filled in.
    """
    found = {}  # name: (cells that set it, cells that take it from elsewhere)
    exempt = {"__name__", *parameters_of(notebook)}
    for number, cell in enumerate(code, start=1):
        exempt |= set(re.findall(r"""exercises\.use\(["'](\w+)["']""", cell.source))
        sets, takes = names_of(cell)
        for place, names in enumerate((sets, takes)):
            for name in names:
                found.setdefault(name, ([], []))[place].append(number)
    for name, (sets, takes) in found.items():
        if len(sets) > 1 and takes and name not in exempt:
            yield f"code cells {sets} set the name {name!r}, and cells {takes} take it from another cell"


def needed_by(notebook: NotebookNode, wanted: Iterable[int]) -> set[int]:
    """The indices of the code cells that these cells need, themselves among them: those that set what they take."""
    names = {i: names_of(cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    found, open_ = set(), set(wanted)
    while open_:
        found |= open_
        taken = {name for i in open_ for name in names[i][1]}
        open_ = {i for i, (sets, _) in names.items() if sets & taken} - found
    return found


def names_of(cell: NotebookNode) -> tuple[set[str], set[str]]:
    """The names that a code cell sets, and those that it takes from other cells."""
    return _names(compile(TransformerManager().transform_cell(cell.source), "cell", "exec"))


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """The names that a cell's code sets, and those that it reads before it sets them."""
    sets, takes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_NAME", "STORE_GLOBAL"):
            sets.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in sets:
            takes.add(step.argval)
        elif isinstance(step.argval, CodeType):  # a function, or a comprehension; its own names are local
            within = _names(step.argval)
            takes |= within[1] - sets
    return sets, takes


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    tags = tags_of(cell)
    lines = sum(bool(line.strip()) for line in cell.source.splitlines())
    if not lines:
        yield "is empty"
    if lines > MAX_LINES:
        yield f"has {lines} lines; the limit is {MAX_LINES}"
    if refused := tags & REFUSED_TAGS | {tag for tag in tags - NBVAL_TAGS if tag.startswith("nbval")}:
        yield f"has a tag that hides failures or is unknown: {sorted(refused)}"
    if "NBVAL_" in cell.source:
        yield "talks to nbval in a comment, which overrides its tags"
    for_colab = "google.colab" in cell.source
    if tags & SKIP and not (SKIP <= tags and for_colab):
        yield "may be skipped only if it is for google.colab, and then by both nbval-skip and skip-execution"
    if not for_colab and (command := _shell_command(cell.source)):
        yield f"{command} fails silently; use subprocess.run(..., check=True)"

    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "error":
            yield f"holds an error: {output.ename}"
        if output.get("name") == "stderr":
            yield f"wrote to stderr (a progress bar or a warning): {output.text[:60]!r}"
        if VIEW in data and "image/png" not in data:
            yield "shows a widget without a picture of it: GitHub and an unrun notebook would show nothing"
        if "image/png" in data and is_flat(data["image/png"]):
            yield "shows a picture of one flat colour"
    if "widget" in tags and not any(VIEW in output.get("data", {}) for output in cell.outputs):
        yield "is tagged widget and shows none"
    for text in texts(cell):
        if path := MACHINE_PATH.search(text):
            yield f"shows a path of the machine it ran on: {text[path.start() : path.start() + 40]!r}"
        if re.search(r"\b0x[0-9a-f]{6,}", text):
            yield "shows the address of an object, which differs every time"

    if "nbval-check-output" in tags:
        text = checked_text(cell)
        if not text:
            yield "is tagged nbval-check-output and has no text that could be checked"
        if number := re.search(r"\d\.\d{5,}", text):
            yield f"is checked and shows more digits than another CPU would agree on: {number.group()}"


def _shell_command(source: str) -> str:
    """The shell command in a cell, whose failure would not stop the notebook: `!false`, `%pip install`, `%%bash`."""
    python = TransformerManager().transform_cell(source)
    call = r"get_ipython\(\)\.(system|getoutput|run_(?:line|cell)_magic)\(['\"]([^'\"]*)"
    for function, first in re.findall(call, python):
        if not function.startswith("run_") or first in {"pip", "conda", "system", "sx", "bash", "sh", "script", "!"}:
            return f"the shell command {first!r}"
    return ""
