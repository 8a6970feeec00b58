"""What works on one system only: found by reading the sources, since not every change is tried on Windows and macOS."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import pytest

import companion
from companion.files import written

ROOT = companion.ROOT
SOURCES = sorted(path for folder in ("companion", "tests") for path in (ROOT / folder).rglob("*.py"))

#: Modules and names that Windows lacks.
POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": "chown fork forkpty getegid geteuid getgid getloadavg getpgid getuid killpg mkfifo nice sched_getaffinity "
    "sched_setaffinity setpgid setsid statvfs sysconf uname wait4",
    "signal": "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pause pthread_kill setitimer",
    "time": "tzset",
}
POSIX = {f"{module}.{name}" for module, names in POSIX_NAMES.items() for name in names.split()}
GUARD = re.compile(r"\bos\.name\b|\bsys\.platform\b|\bplatform\.system\b|\bhasattr\(|\bwin32\b")
#: What starts a process in the system's own way, which on Linux was "fork" until Python 3.14.
PROCESSES = {"Manager", "Pool", "Process", "Queue"}
#: Names that hold a path by this code's convention, besides those that a file annotates or assigns as one.
PATHS = {"ROOT", "DATA", "NOTEBOOKS", "MODELS", "FOLDER", "PHOTOS", "tmp_path"}
#: What Windows reserves for devices, with any suffix, and forbids in every name.
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')


# ---- The rules -------------------------------------------------------------------------------------------------------


def problems(source: str) -> list[str]:
    """What in this source works on one system only: "LINE: what", in the order of the lines."""
    tree = ast.parse(source)
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    paths = _path_names(tree)
    found = []
    for node in ast.walk(tree):
        ancestors = list(_ancestors(node, above))
        for said in (*_text(node), *_processes(node), *_posix(node, ancestors), *_replaced(node, ancestors)):
            found.append((node.lineno, said))
        found += [(node.lineno, said) for said in _separators(node, paths)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"/tmp(/|$)", node.value):
            found.append((node.lineno, f"{node.value!r}: use tempfile or tmp_path"))
    return [f"{line}: {said}" for line, said in sorted(found)]


def _ancestors(node: ast.AST, above: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in above:
        node = above[node]
        yield node


def _name(node: ast.AST) -> str:
    """ "os.path.join" for that attribute, "" unless it is a chain of names."""
    text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
    return text if re.fullmatch(r"[\w.]+", text) else ""


def _text(node: ast.AST) -> Iterator[str]:
    """Text is UTF-8 everywhere, but the default is the system's choice."""
    if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
        return
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
    if (method, len(node.args)) in {("read_text", 0), ("write_text", 1)}:
        yield f"{method} without encoding="
    elif _name(node.func) in ("open", "io.open", "os.fdopen", "tempfile.NamedTemporaryFile", "NamedTemporaryFile"):
        mode = given[1:] if "open" in _name(node.func) else given
        binary_by_default = "Temporary" in _name(node.func)
        if not mode and not binary_by_default or mode and _is_mode(mode[0]) and "b" not in mode[0].value:
            yield f"{_name(node.func)} without encoding="
    elif method == "open" and not {word.arg for word in node.keywords} - {"mode", "buffering", "errors", "newline"}:
        if not given or _is_mode(given[0]) and "b" not in given[0].value:
            yield "open without encoding="


def _is_mode(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(re.fullmatch(r"[rwxabt+]{1,3}", str(node.value)))


def _processes(node: ast.AST) -> Iterator[str]:
    """Windows cannot fork processes, and a forked one hangs where threads ran, as torch's do."""
    if not isinstance(node, ast.Call):
        return
    name = _name(node.func).rpartition(".")
    if name[2] in ("get_context", "set_start_method"):
        # a faster way may be taken where there is one: "..." if ... in get_all_start_methods() else "spawn"
        last = getattr(node.args[0], "orelse", node.args[0]) if node.args else None
        if getattr(last, "value", "") != "spawn":
            yield f"{name[2]} without 'spawn'"
    elif name[0] in ("multiprocessing", "mp") and name[2] in PROCESSES:
        yield f"multiprocessing.{name[2]}: use get_context('spawn')"
    elif name[2] == "ProcessPoolExecutor" and not any(word.arg == "mp_context" for word in node.keywords):
        yield "ProcessPoolExecutor without mp_context="


def _posix(node: ast.AST, ancestors: list[ast.AST]) -> Iterator[str]:
    """What Windows lacks is used only after asking the system, or where it may be missing."""
    if isinstance(node, ast.Import):
        used = {alias.name for alias in node.names} & POSIX_MODULES
    elif isinstance(node, ast.ImportFrom):
        used = {node.module} & POSIX_MODULES | {f"{node.module}.{alias.name}" for alias in node.names} & POSIX
    else:
        used = {_name(node)} & POSIX
    if not used:
        return
    function = next((a for a in ancestors if isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef)), None)
    around = [function] if function else [a for a in ancestors if isinstance(a, ast.If | ast.IfExp | ast.BoolOp)]
    tried = any(isinstance(a, ast.Try) and re.search("ImportError|AttributeError", ast.unparse(a)) for a in ancestors)
    if not tried and not any(GUARD.search(ast.unparse(a)) for a in around):
        yield f"{' '.join(sorted(used))} is not there on Windows: ask for os.name first"


def _replaced(node: ast.AST, ancestors: list[ast.AST]) -> Iterator[str]:
    """Windows refuses to move a file, or to put another in its place, while it is open."""
    if not isinstance(node, ast.Call):
        return
    moves = _name(node.func) in ("os.replace", "os.rename", "shutil.move")
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    moves |= method in ("replace", "rename") and len(node.args) == 1 and not node.keywords  # str.replace takes two
    inside = [item.context_expr for a in ancestors if isinstance(a, ast.With) for item in a.items]
    opens = [i for i in inside if isinstance(i, ast.Call) and re.search(r"open$|TemporaryFile$", ast.unparse(i.func))]
    if moves and opens:
        yield f"moves a file inside `with {ast.unparse(opens[0])}`: close it first"


def _path_names(tree: ast.AST) -> set[str]:
    """Names that this source annotates as Path, or assigns from Path(...) or a path's `/`."""
    names = set(PATHS)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            target = node.arg if isinstance(node, ast.arg) else _name(node.target)
            if re.fullmatch(r"Path( \| None)?", ast.unparse(node.annotation)):
                names.add(target)
        elif isinstance(node, ast.Assign) and re.match(r"(pathlib\.)?Path\(", ast.unparse(node.value)):
            names |= {_name(target) for target in node.targets}
    return names


def _separators(node: ast.AST, paths: set[str]) -> Iterator[str]:
    """Paths are put together by pathlib, and taken apart by it; as text they have the system's own separator."""

    def is_path(part: ast.AST) -> bool:
        if isinstance(part, ast.Call) and _name(part.func) in ("str", "os.fspath", "os.getcwd", "os.path.join"):
            return not part.args or _name(part.func) != "str" or is_path(part.args[0])
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div):
            return is_path(part.left)
        if isinstance(part, ast.Attribute) and part.attr == "parent":
            return True
        return bool(_name(part)) and _name(part).rpartition(".")[2] in paths

    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        right = node.right.value if isinstance(node.right, ast.Constant) else None
        if isinstance(right, str) and right[:1] in ("/", "\\") and is_path(node.left):
            yield f"{ast.unparse(node)}: use pathlib's /"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        if isinstance(node.right, ast.Constant) and isinstance(node.right.value, str) and "\\" in node.right.value:
            yield f"{ast.unparse(node)}: Linux takes \\ for a letter"
    elif isinstance(node, ast.JoinedStr):
        for part, following in zip(node.values, node.values[1:], strict=False):
            text = str(getattr(following, "value", ""))
            if isinstance(part, ast.FormattedValue) and text[:1] in ("/", "\\") and is_path(part.value):
                yield f"{ast.unparse(node)}: use pathlib's /"
    elif isinstance(node, ast.Call):
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = getattr(node.args[0], "value", "") if node.args else ""
        if method in ("split", "rsplit", "partition", "rpartition") and given == "/" and is_path(node.func.value):
            yield f"{ast.unparse(node)}: use pathlib's parts"
        if _name(node.func) == "str" and node.args and ".relative_to(" in ast.unparse(node.args[0]):
            if not ast.unparse(node.args[0]).endswith(".as_posix()"):
                yield f"{ast.unparse(node)}: use as_posix()"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_works_on_every_system(path):
    assert problems(path.read_text(encoding="utf-8")) == []


# ---- The rules' own test ---------------------------------------------------------------------------------------------

BAD = {
    "read_text without": "path.read_text()",
    "write_text without": "path.write_text('é')",
    "open without encoding=": "open(name)",
    "1: open without": "path.open('w')",
    "open without encoding": "path.open()",
    "NamedTemporaryFile without": "import tempfile\ntempfile.NamedTemporaryFile('w')",
    "os.fork is not there": "import os\nos.fork()",
    "os.getuid is not there": "from os import getuid",
    "signal.SIGKILL is not there": "import signal\nos.kill(1, signal.SIGKILL)",
    "fcntl is not there": "import fcntl",
    "resource is not there": "def peak():\n    from resource import getrusage",
    "get_context without": "multiprocessing.get_context('fork').Pool()",
    "get_context without 'spawn'": "get_context('spawn' if windows else 'fork').Pool()",
    "set_start_method without": "import multiprocessing as mp\nmp.set_start_method('fork')",
    "multiprocessing.Pool:": "multiprocessing.Pool(2)",
    "ProcessPoolExecutor without": "ProcessPoolExecutor(2)",
    "'/tmp/x'": "Path('/tmp/x')",
    "'/tmp':": "folder = '/tmp'",
    "use pathlib's /": "def f(folder: Path): return str(folder) + '/x'",
    "/x': use pathlib's /": "where = Path('a')\nf'{where}/x'",
    "for a letter": "folder / 'a\\\\b'",
    "use pathlib's parts": "str(tmp_path).split('/')",
    "use as_posix()": "str(path.relative_to(ROOT))",
    "moves a file inside `with path.open('wb')`": "with path.open('wb') as f:\n    os.replace(path, other)",
    "inside `with open(name, 'rb')`": "with open(name, 'rb') as f:\n    Path(name).rename(other)",
}

GOOD = (
    "path.read_text(encoding='utf-8'); path.read_text('utf-8'); path.write_text('a', encoding='utf-8')",
    "open(name, 'rb'); path.open('rb'); open(name, mode='wb'); open(name, encoding='utf-8'); Image.open(name)",
    "tempfile.NamedTemporaryFile(); tarfile.open(fileobj=data); page.open(notebook, 'name'); open(name, **options)",
    "import signal\nif os.name != 'nt':\n    kill = signal.SIGKILL",
    "try:\n    import resource\nexcept ImportError:\n    resource = None",
    "@pytest.mark.skipif(sys.platform == 'win32', reason='-')\ndef test():\n    os.kill(1, signal.SIGKILL)",
    "cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()",
    "multiprocessing.get_context('spawn').Pool(2)",
    "get_context('forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn').Pool(2)",
    "f'{url}/x'; url + '/x'; name.split('/'); 'data/tmp'; path / 'a/b'; path.relative_to(ROOT).as_posix()",
    "with written(path) as temporary:\n    pass\nos.replace(a, b); text.replace('a', 'b')",
)


@pytest.mark.parametrize("problem", BAD)
def test_each_problem_is_found(problem):
    (found,) = problems(BAD[problem])
    assert problem in found


@pytest.mark.parametrize("source", GOOD)
def test_what_works_everywhere_is_no_problem(source):
    assert problems(source) == []


# ---- Files -----------------------------------------------------------------------------------------------------------


def name_problems(names: list[str]) -> list[str]:
    """Which names, relative to the repository and with /, a checkout on Windows or macOS would refuse or mix up."""
    found, known = [], {}
    for name in names:
        for part in PurePosixPath(name).parts:
            if part.split(".")[0].lower() in RESERVED or FORBIDDEN.search(part) or part[-1] in " .":
                found.append(f"{name}: Windows refuses {part!r}")
        if unicodedata.normalize("NFC", name) != name:
            found.append(f"{name}: macOS would write it in another way")
        if len(name) > 150:
            found.append(f"{name}: too long for Windows in a folder of usual depth")
        for place in (PurePosixPath(name), *PurePosixPath(name).parents):
            other = known.setdefault(str(place).lower(), str(place))
            if other != str(place):
                found.append(f"{place}: the same as {other} where case does not count")
    return found


@pytest.mark.skipif(
    not ((ROOT / ".git").exists() and shutil.which("git")), reason="this is no clone, or git is missing"
)
def test_every_system_can_check_out_the_files():
    listed = subprocess.run(["git", "ls-files", "--stage", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    rows = [row.split("\t", 1) for row in listed.decode().split("\0") if row]
    assert name_problems([name for _, name in rows]) == []
    assert not [name for mode, name in rows if mode.startswith("120000")], "Windows checks links out as text"


def test_each_bad_name_is_found():
    for name in ("a/nul.txt", "Com1", "a:b", "what?.md", "a\\b", "a./b", "b ", "cafe\u0301", "x" * 151):
        assert len(name_problems([name])) == 1, name
    assert len(name_problems(["docs/Read.md", "docs/read.md"])) == 1
    assert len(name_problems(["docs/a", "Docs/b"])) == 1
    assert name_problems(["docs/README.md", "docs/caf\u00e9.md", "companion/console.py", ".ci/run"]) == []


def test_nothing_is_open_when_a_file_takes_another_s_place(tmp_path, monkeypatch):
    """Windows would refuse: https://docs.python.org/3/library/os.html#os.replace names the PermissionError."""
    opened, replace = [], os.replace

    def watched(source: Path, target: Path) -> None:
        opened.extend(file.path for file in psutil.Process().open_files())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for text in ("one", "two"):
        with written(tmp_path / "file.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
    assert not [path for path in opened if Path(path).is_relative_to(tmp_path)]
    assert (tmp_path / "file.txt").read_text(encoding="utf-8") == "two"
