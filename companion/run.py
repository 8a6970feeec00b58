"""Run the course's notebooks without a browser and report on them, or refresh the committed ones.

`run` executes notebooks with papermill and writes each executed notebook, and one HTML page with their pictures, to a
new folder. `execute_in_place` executes the notebooks of the source tree and writes them back, tidied. Both reject a
notebook that did not run to its end. Papermill alone does not: it takes `sys.exit(0)` for success, and marks a cell
that ran out of time as completed.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import html
import logging
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from traitlets import default

from companion import ROOT, __version__
from companion.files import written

NOTEBOOKS = ROOT / "notebooks"
#: The default time limit for a cell, in seconds.
TIMEOUT = 600.0
#: A committed notebook must be smaller than this many bytes.
MAX_BYTES = 1_000_000

# The report contains what papermill logs; without a handler, the logger would also print it on stderr.
logging.getLogger("papermill").addHandler(logging.NullHandler())


@dataclass
class Result:
    """The outcome for one notebook: `status` is waiting, completed, failed or interrupted."""

    path: Path
    status: str = "waiting"
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0  # peak resident memory of the kernel and its children
    error: str = ""  # what went wrong, in a sentence
    traceback: str = ""
    cell: str = ""  # the source of the cell that failed
    notebook: NotebookNode | None = None  # as far as it was executed


def choose(only: str | Iterable[str] | None = None) -> list[Path]:
    """The notebooks to run, in the course's order.

    only: numbers ("0", "00"), names ("01_latent_diffusion", "latent_diffusion") or their beginnings; None means all.
    Raises ValueError when there are no notebooks, or when none has such a name; the message suggests the nearest.
    """
    every = sorted(NOTEBOOKS.glob("*.ipynb"))
    if not every:
        raise ValueError(f"{NOTEBOOKS} holds no notebook; run this in a clone of the course.")
    if not only:
        return every
    chosen = set()
    for wanted in [only] if isinstance(only, str) else only:
        name = Path(wanted).name.removesuffix(".ipynb")
        name = name.zfill(2) if name.isdigit() else name
        exact = [path for path in every if path.stem == name]
        begins = [path for path in every if name and (path.stem.startswith(name) or path.stem[3:].startswith(name))]
        if not exact and not begins:
            names = [path.stem for path in every]
            near = difflib.get_close_matches(name, names + [stem[3:] for stem in names], n=1, cutoff=0.4)
            others = f"did you mean {near[0]!r}? There are" if near else "there are"
            raise ValueError(f"No notebook is called {wanted!r}; {others}: {', '.join(names)}.")
        chosen.update(exact or begins)
    return sorted(chosen)


def _parameters_cell(notebook: NotebookNode) -> NotebookNode | None:
    tagged = (c for c in notebook.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", []))
    return next(tagged, None)


def parameters_of(notebook: NotebookNode) -> dict[str, ast.expr]:
    """The names assigned in the notebook's cell tagged `parameters`, each with its value's syntax tree."""
    cell = _parameters_cell(notebook)
    assigned: dict[str, ast.expr] = {}
    for statement in ast.parse(cell.source).body if cell else ():
        if isinstance(statement, ast.Assign):
            assigned |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and statement.value and isinstance(statement.target, ast.Name):
            assigned[statement.target.id] = statement.value
    return assigned


def _read(path: Path, parameters: Mapping[str, Any]) -> NotebookNode:
    """Read a notebook. Raises ValueError when it lacks one of these parameters, which papermill would only log."""
    notebook = nbformat.read(path, as_version=4)
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise ValueError(f"{path.name} has no parameter {name!r}; it has: {', '.join(known) or 'none'}.")
    return notebook


class _ThisPython(KernelSpecManager):
    """Starts every kernel with the running Python: the machine's "python3" kernel may lack the course's packages."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # Errors reach the notebook; the kernel's log would only disturb the progress bar on the terminal.
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]))


class _ThisKernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return _ThisPython(parent=self)


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Yields [bytes]: the peak resident memory of the processes started in this context, sampled twice a second."""
    this, peak, done = psutil.Process(), [0], threading.Event()
    before = set(this.children(recursive=True))

    def watch() -> None:
        while not done.wait(0.5):
            now = 0
            for process in set(this.children(recursive=True)) - before:
                with contextlib.suppress(psutil.Error):  # the process may have ended
                    now += process.memory_info().rss
            peak[0] = max(peak[0], now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _plain(text: str) -> str:
    """A traceback without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _unfinished(notebook: NotebookNode) -> NotebookNode | None:
    """The first code cell that did not run to its end, or None."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source.strip() or "skip-execution" in cell.metadata.get("tags", []):
            continue
        if cell.metadata.get("papermill", {}).get("status") != "completed" or cell.execution_count is None:
            return cell
    return None


def _execute(
    path: Path,
    notebook: NotebookNode,
    parameters: dict[str, Any],
    timeout: float,
    progress: Callable[..., None],
) -> Result:
    """Execute `notebook` as if it were at `path`, calling progress(completed=cells) on the way.

    Errors are not raised but recorded in the result; Ctrl-C makes its status "interrupted".
    """
    result = Result(path, parameters=parameters)
    started: list[NotebookNode] = []  # cells; the last one is running

    # Papermill returns the notebook only when all went well; these hooks give access to it from the start.
    def on_notebook_start(notebook: NotebookNode) -> None:
        result.notebook = notebook

    def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
        started.append(cell)
        progress(completed=cell_index)

    def failed(error: str, cell: NotebookNode | None, status: str = "failed") -> None:
        result.status, result.error, result.cell = status, error, cell.source if cell else ""

    begin = time.monotonic()
    with _peak_memory() as peak:
        try:
            papermill.execute_notebook(
                notebook,
                None,
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=path.parent,
                execution_timeout=timeout,
                kernel_manager_class=_ThisKernel,
                record_timing=False,
                on_notebook_start=on_notebook_start,
                on_cell_start=on_cell_start,
            )
            if cell := _unfinished(result.notebook):
                failed("The notebook ended here without an error, as sys.exit(0) does; later cells did not run.", cell)
            else:
                result.status = "completed"
        except KeyboardInterrupt:
            failed("The run was interrupted here.", started[-1] if started else None, "interrupted")
        except papermill.PapermillExecutionError as error:
            failed(f"{error.ename}: {error.evalue}", NotebookNode(source=error.source))
            result.traceback = _plain("\n".join(error.traceback))
        except CellTimeoutError:
            failed(f"This cell took longer than {timeout:g} s: give it less to do, or a longer timeout.", started[-1])
        except DeadKernelError:
            failed("The kernel died in this cell; a want of memory looks like this.", started[-1])
        except Exception as error:  # such as a kernel that did not start: go on with the other notebooks
            failed(f"{type(error).__name__}: {_plain(str(error))}", started[-1] if started else None)
    result.seconds, result.peak_bytes = time.monotonic() - begin, peak[0]
    if result.status != "completed" and result.notebook:
        # Papermill marks all cells as completed when anything but an error in a cell stops it.
        for cell in result.notebook.cells:
            if "papermill" in cell.metadata and not any(cell is done for done in started[:-1]):
                cell.metadata.papermill.status = "failed" if started and cell is started[-1] else "pending"
    return result


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd }
.completed { color: #17713a } .failed, .interrupted { color: #b3261e } .waiting { color: #777 }
figure { display: inline-block; vertical-align: top; margin: 0 1rem 1rem 0; max-width: 100% }
figcaption { color: #555; font-size: .85rem }
img { max-width: 100% }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: .85rem }
"""


def _pictures(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Yield (heading above it, picture as a data: address) for every picture in the outputs."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ +(.+)$", cell.source, flags=re.MULTILINE)
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", []):
            kinds = (kind for kind in ("image/png", "image/jpeg") if kind in output.get("data", {}))
            if kind := next(kinds, None):
                yield heading, f"data:{kind};base64,{''.join(output.data[kind].split())}"


def _report(results: list[Result], seconds: float) -> str:
    """One self-contained HTML page: a table of the notebooks, then the error and the pictures of each."""
    rows, sections = [], []
    for result in results:
        name = html.escape(result.path.name)
        title = f'<a href="{name}">{name}</a>' if result.notebook else name
        rows.append(
            f'<tr><td><a href="#{name}">{name}</a></td><td class="{result.status}">{result.status}</td>'
            f"<td>{result.seconds:.1f} s</td><td>{result.peak_bytes / 2**20:.0f} MB</td></tr>"
        )
        sections.append(f'<h2 id="{name}">{title} <small class="{result.status}">{result.status}</small></h2>')
        if result.error:
            sections.append(f'<p class="{result.status}">{html.escape(result.error)}</p>')
        sections += [f"<pre>{html.escape(text)}</pre>" for text in (result.cell, result.traceback) if text]
        for heading, address in _pictures(result.notebook) if result.notebook else ():
            caption = html.escape(heading)
            image = f'<img alt="{caption}" src="{address}">'
            sections.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    parameters = ", ".join(f"{name} = {value!r}" for name, value in results[0].parameters.items())
    done = sum(result.status == "completed" for result in results)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Run of the notebooks</title>
<style>{_STYLE}</style>
<h1>{done} of {len(results)} notebooks completed</h1>
<p>{datetime.now():%Y-%m-%d %H:%M}, {seconds:.0f} s, companion {__version__}, Python {platform.python_version()},
{os.cpu_count()} CPUs, {html.escape(platform.platform())}.
Parameters: {html.escape(parameters) or "the notebooks' own"}.</p>
<table><tr><th>Notebook<th>Status<th>Time<th>Peak memory</tr>
{"".join(rows)}</table>
{"".join(sections)}
</html>
"""


def _save(path: Path, text: str) -> None:
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def tidy(notebook: NotebookNode) -> str:
    """Remove from a notebook, in place, what differs from run to run, and return its text ready to commit."""
    # GitHub refuses to show a notebook with widget states; the outputs have the widgets' pictures.
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds an empty list to every cell
    return nbformat.writes(notebook) + "\n"


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does, when called in the main thread."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _execute_all(
    jobs: list[tuple[Path, NotebookNode, dict[str, Any]]], timeout: float, console: Console
) -> Iterator[Result]:
    """Execute the notebooks one by one, with a progress bar, and print the outcome of each.

    Raises KeyboardInterrupt only after it has yielded the result of the interrupted notebook.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for path, notebook, parameters in jobs:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(path.stem, total=len(notebook.cells))
            result = _execute(path, notebook, parameters, timeout, partial(progress.update, bar))
        word = {"completed": "OK  ", "failed": "FAIL"}.get(result.status, "STOP")
        line = f"{word} {path.stem}  {result.seconds:.1f} s, {result.peak_bytes / 2**20:.0f} MB"
        _say(console, line)
        if result.error:
            source = "".join(f"     | {row}\n" for row in result.cell.splitlines())
            _say(console, f"     {result.error}\n{source}")
        yield result
        if result.status == "interrupted":
            raise KeyboardInterrupt


def _new_folder(out: str | Path | None) -> Path:
    """`out`, which must be new or empty, or by default a new folder in runs/, named after the time."""
    if out is not None:
        folder = Path(out).expanduser().resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{out} exists already; name a new folder, so that no earlier run is written over.")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        folder = ROOT / "runs" / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise RuntimeError(f"No folder name is left for {name} in {ROOT / 'runs'}.")


def run(
    only: str | Iterable[str] | None = None,
    model: str = "tabletop",
    device: str | None = None,
    out: str | Path | None = None,
    timeout: float = TIMEOUT,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """Execute notebooks, and write each of them and a report to a new folder: `out`, or runs/<time>/.

    only: which notebooks, see `choose`; None means all.
    model, device: values for the notebooks' MODEL and DEVICE; the defaults keep what the notebooks say.
    timeout: the longest that a cell may take, in seconds.
    parameters: other parameters, by name; each chosen notebook must have them in its cell tagged `parameters`.

    Returns 0 if every notebook ran to its end, 1 if one failed, 130 after Ctrl-C or SIGTERM. The notebooks
    and the report up to an interruption are kept, each of them written whole.
    Raises ValueError before anything runs for an unknown notebook or parameter, or for an `out` in use.
    """
    given = dict(parameters or {})
    if model != "tabletop":
        given["MODEL"] = model
    if device is not None:
        given["DEVICE"] = device
    jobs = [(path, _read(path, given), given) for path in choose(only)]
    folder = _new_folder(out)
    console = Console()
    results = [Result(path, parameters=given) for path, _, _ in jobs]
    begin = time.monotonic()

    def save_report() -> None:
        _save(folder / "report.html", _report(results, time.monotonic() - begin))

    _say(console, f"Running {len(jobs)} notebook{'s' * (len(jobs) > 1)} into {folder}")
    code = 0
    try:
        with _sigterm_interrupts():
            save_report()
            for index, result in enumerate(_execute_all(jobs, timeout, console)):
                results[index] = result
                if result.notebook:
                    result.notebook.metadata.pop("widgets", None)  # without a kernel, only their pictures are of use
                    _save(folder / result.path.name, nbformat.writes(result.notebook))
                save_report()
                code = max(code, int(result.status != "completed"))
    except KeyboardInterrupt:
        code = 130
    _say(console, f"Report: {folder / 'report.html'}")
    return code


def execute_in_place(
    paths: Iterable[str | Path], parameters: Mapping[str, Any] | None = None, timeout: float = TIMEOUT
) -> int:
    """Execute notebooks and write them back with their new outputs, ready to commit.

    Widget states and timings are left out: they change every time, and GitHub refuses to show the former. A notebook
    is written whole, and only if it ran to its end and is below `MAX_BYTES`; otherwise the file stays as it was.
    `parameters` replace values in the notebook's cell tagged `parameters`, so that the cell says what was run.

    Returns 0 if all were written, else 1 (130 after Ctrl-C or SIGTERM). Raises ValueError for an unknown parameter.
    """
    given = dict(parameters or {})
    jobs = []
    for path in map(Path, paths):
        notebook = _read(path, given)
        set_parameters(notebook, given)
        jobs.append((path.resolve(), notebook, {}))
    console = Console()
    code = 0
    try:
        with _sigterm_interrupts():
            for result in _execute_all(jobs, timeout, console):
                text = tidy(result.notebook) if result.status == "completed" else ""
                size = len(text.encode())
                if size >= MAX_BYTES:
                    _say(console, f"FAIL {result.path.name} would have {size:,} bytes; the limit is {MAX_BYTES:,}.")
                elif text:
                    _save(result.path, text)
                    continue
                code = 1
    except KeyboardInterrupt:
        code = 130
    return code


def set_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Write these values into the cell tagged `parameters`, leaving everything else in it as it is."""
    nodes = parameters_of(notebook)
    cell = _parameters_cell(notebook)
    # From the last to the first, so that earlier positions stay valid. ast counts columns in bytes.
    for name in sorted(parameters, key=lambda name: (nodes[name].lineno, nodes[name].col_offset), reverse=True):
        node = nodes[name]
        assert cell and node.end_lineno and node.end_col_offset  # ast.parse sets the positions
        source = cell.source.encode()
        rows = source.splitlines(keepends=True)
        begin = sum(map(len, rows[: node.lineno - 1])) + node.col_offset
        end = sum(map(len, rows[: node.end_lineno - 1])) + node.end_col_offset
        cell.source = (source[:begin] + repr(parameters[name]).encode() + source[end:]).decode()
