"""The rules that hold the modules apart, of DESIGN §1 and of the style guide."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("ingest", "dispatcher", "scheduler", "receiver", "execute", "register")
PACKAGE = sorted((ROOT / "greengrader").rglob("*.py"))
SOURCES = [*PACKAGE, *(ROOT / f"{name}.py" for name in SCRIPTS), *sorted((ROOT / "deploy").glob("*.py"))]
# {third-party library: the one place that knows it}
HOME = {
    "paho": "greengrader/mqtt.py",
    "psycopg2": "greengrader/db.py",
    "docker": "greengrader/engine.py",
    "kubernetes": "greengrader/kube/cluster.py",
    "urllib3": "greengrader/kube/cluster.py",  # comes with kubernetes, like the next
    "yaml": "greengrader/kube/",
    "requests": "greengrader/carbon/",
    "dotenv": "greengrader/config.py",
    "pydantic_settings": "greengrader/config.py",
}
ANYWHERE = {"pydantic", "greengrader"}
SQL = re.compile(
    r"\b(SELECT\b|INSERT\s+INTO\b|UPDATE\s+\w+\s+SET\b|DELETE\s+FROM\b|LISTEN\s+\w|(CREATE|ALTER|DROP)\s+(TABLE|VIEW|TYPE))"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_a_fresh_process(code: str) -> str:
    """What it prints; it must say nothing else."""
    ended = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_each_library_is_known_in_one_place() -> None:
    for path in SOURCES:
        for module in imported(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ANYWHERE or (ROOT / "deploy" / f"{top}.py").exists():
                continue
            if module.startswith("tests.samples") and "deploy" in path.parts:
                continue  # `make run` submits one of them
            assert top in HOME, f"{name_of(path)}: {module} is no library of this project"
            assert name_of(path).startswith(HOME[top]), f"{name_of(path)}: {module} belongs to {HOME[top]}"


def test_the_package_never_imports_what_stands_above_it() -> None:
    above = {*SCRIPTS, "tests", "deploy", *(path.stem for path in (ROOT / "deploy").glob("*.py"))}
    for path in PACKAGE:
        assert not above & {module.partition(".")[0] for module in imported(path)}, name_of(path)


@pytest.mark.parametrize(
    ("scripts", "forbidden"),
    [
        (("execute", "register"), ("greengrader.db", "psycopg2", "kubernetes")),  # a worker has no database password
        (("ingest", "dispatcher", "scheduler", "receiver", "register"), ("greengrader.engine", "docker")),  # nor memory
        (("dispatcher",), ("greengrader.mqtt", "paho")),
    ],
    ids=["worker", "hub", "dispatcher"],
)
def test_nobody_holds_what_he_does_not_need(scripts: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    loaded = set(in_a_fresh_process(f"import sys, {', '.join(scripts)}\nprint(*sys.modules, sep='\\n')").split())
    assert loaded >= {*scripts, "greengrader.config"}
    assert not loaded & set(forbidden)


WATCHED = """
import importlib, json, logging, os, signal, sys, threading
effects = []
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and path != os.devnull:
            effects.append(f"writes {path}")
    elif event == "socket.bind" and arguments[1] == ("::1", 0):
        pass  # urllib3 looks whether there is IPv6
    elif event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.remove", "os.rename",
                   "os.putenv", "os.unsetenv", "os.chdir", "os.fork", "os.exec", "os.system", "os.kill"):
        effects.append(f"{event} {arguments}")
sys.addaudithook(watch)
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
sys.path.insert(0, "deploy")
for module in MODULES:
    before = len(effects)
    importlib.import_module(module)
    if threading.active_count() > 1:
        effects.append("starts a thread")
    if handlers != [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]:
        effects.append("takes signals")
    if logging.getLogger().handlers or logging.getLogger("greengrader").handlers:
        effects.append("configures logging")
    if effects[before:]:
        effects.append(f"while {module} was imported")
print(json.dumps(effects))
"""


def test_nothing_happens_at_import() -> None:
    modules = [
        *(name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in PACKAGE),
        *SCRIPTS,
        *(path.stem for path in (ROOT / "deploy").glob("*.py")),
    ]
    assert json.loads(in_a_fresh_process(f"MODULES = {modules!r}\n{WATCHED}")) == []


def test_only_the_daemon_catches_everything() -> None:
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "everything"
            where = f"{name_of(path)}:{node.lineno}"
            if re.search(r"\bException\b|everything", caught):
                assert name_of(path) == "greengrader/daemon.py", f"{where}: name the errors"
            if "BaseException" in caught:  # to tidy up, or at the end of a thread
                handed_on = rf"(self\._ended|\w+\.fail|fail)\({node.name}\)"
                first, last = ast.unparse(node.body[0]), ast.unparse(node.body[-1])
                assert last == "raise" or re.fullmatch(handed_on, first), f"{where}: hand it on"


def docstrings_of(tree: ast.Module) -> set[ast.expr]:
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    return {first.value for block in blocks if isinstance(first := block.body[0], ast.Expr)}


def test_sql_stands_in_one_place() -> None:
    for path in SOURCES:
        if name_of(path) == "greengrader/db.py":
            continue
        tree = parsed(path)
        prose = docstrings_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
                assert not SQL.search(node.value), f"{name_of(path)}:{node.lineno}: {node.value[:60]!r}"


def test_nobody_sleeps_and_hopes() -> None:
    """Who waits can be told: by a queue, an event, Stop, or a notice."""
    for path in SOURCES:
        if "deploy" not in path.parts:
            named = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(parsed(path))}
            assert "sleep" not in named, name_of(path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_reads_as_a_story(script: str) -> None:
    """The same order in all six: what it does, imports, main first, and the last line hands main to the daemon."""
    path = ROOT / f"{script}.py"
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
    assert path.stat().st_mode & 0o111, "it can be run"
    tree = parsed(path)
    docstring = ast.get_docstring(tree)
    assert docstring and f"{script}.py" in docstring and "Exit codes:" in docstring and "Settings:" in docstring
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions[0] == "main"
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    daemon.run(main)"


def test_a_module_is_called_by_what_it_holds() -> None:
    for path in SOURCES:
        assert not re.search(r"util|helper|manager|common|misc", name_of(path)), name_of(path)
        assert ast.get_docstring(parsed(path)), f"{name_of(path)}: its first line says what it holds"
