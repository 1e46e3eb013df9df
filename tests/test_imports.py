"""The house keeps its shape: who may import whom, no cycles, heavy libraries only where they belong, the command line is instant."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gopher", "analysis", "sweeps")
PURE = ("gopher.errors", "gopher.identity", "gopher.spec", "gopher.spec_json", "gopher.size", "gopher.record")


def modules() -> dict[str, Path]:
    files = [f for p in PACKAGES for f in (ROOT / p).rglob("*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(path: Path) -> Iterator[str]:
    """Every module named in an import statement, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(name: str, path: Path) -> set[str]:
    return {word.split(".")[0] for word in imported(path)}


FORBIDDEN = {
    "gopher": {"ray", "mlflow", "hydra", "omegaconf", "sweeps", "analysis"},
    "analysis": {"torch", "ray", "hydra", "omegaconf", "sweeps", "sentencepiece"},
    "sweeps": set(),
}
ONLY_IN = {
    "ray": {
        "sweeps.backends.ray",
        "sweeps.backends.ray_gang",
        "sweeps.backends.ray_lean",
        "sweeps.backends.ray_evals",
        "sweeps.backends.ray_jobs",
    },
    "hydra": {"sweeps.compose"},
    "omegaconf": {"sweeps.compose"},
}


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=str)
def test_imports_keep_to_the_house_rules(name: str, path: Path) -> None:
    words = roots(name, path)
    assert not words & FORBIDDEN[name.split(".")[0]]
    for library, places in ONLY_IN.items():
        assert library not in words or name in places
    if name in PURE:
        own = {w for w in imported(path) if w.startswith("gopher.")}
        assert words <= {*sys.stdlib_module_names, "gopher"} and all(w.startswith(PURE) for w in own)


def test_no_import_cycles() -> None:
    known = modules()
    edges = {m: sorted({w for w in imported(f) if w in known and w != m}) for m, f in known.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in edges[module]:
                visit(target, (*trail, module))
            done.add(module)

    for module in known:
        visit(module, ())


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n")[-2].split())


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "hydra", "omegaconf", "numpy", "pandas", "matplotlib", "scipy", "rich"}
    assert not loaded_by("sys.argv = ['gopher', '--help']\nfrom sweeps.cli import main\nmain()") & heavy


def test_every_analysis_module_imports_without_torch_ray_or_hydra() -> None:
    names = [m for m in modules() if m.startswith("analysis")]
    assert not loaded_by("import " + ", ".join(names)) & {"torch", "ray", "hydra", "omegaconf"}
