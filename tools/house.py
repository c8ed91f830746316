"""Check the repository's layout rules: size, folders, names and import cycles.

    python tools/house.py
    python tools/house.py --json

Prints every figure with its limit and returns 1 if a limit is exceeded. "Loaded" counts the
project files that one pre-training step of `run_pretraining_multimae.py` imports, measured in a
separate process on the images of `examples/rooms`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command

REPO = Path(__file__).resolve().parents[1]
TREES = ("multimae", "utils", "tools")
MAX_LOADED_FILES = 75
MAX_LOADED_LINES = 12_000
MAX_ENTRIES = 14
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
REPEATABLE_NAMES = frozenset({"__init__", "options", "predict"})  # a command is named as it is

TINY_RUN = (
    *("--data_path", str(REPO / "examples/rooms"), "--eval_data_path="),
    *("--modalities", "{semseg: {num_classes: 41}}", "--standardize_depth"),
    *("--model", "pretrain_multimae_tiny", "--input_size", "32", "--num_encoded_tokens", "4"),
    *("--decoder_dim", "32", "--decoder_depth", "1", "--decoder_num_heads", "2"),
    *("--batch_size", "2", "--epochs", "1", "--max_steps", "1", "--warmup_epochs", "0"),
    *("--num_workers", "0", "--device", "cpu", "--precision", "fp32"),
)
"""Options of a one-step pre-training run; add ``--output_dir``."""

_LIST_LOADED = """
import json, sys
import run_pretraining_multimae as script
script.main(sys.argv[1:])
print(json.dumps([getattr(m, "__file__", None) for m in list(sys.modules.values())]))
"""

Graph = Mapping[str, frozenset[str]]
"""Module name -> names of the project's modules that it imports."""


@dataclass(frozen=True)
class Rule:
    """One figure and its limit.

    Attributes:
        name: What is counted.
        value: The count.
        limit: The largest value allowed; ``None`` for a figure without limit.
        details: What was counted, where the limit concerns single items.
    """

    name: str
    value: int
    limit: int | None = None
    details: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether the limit is exceeded."""
        return self.limit is not None and self.value > self.limit


def check(root: Path = REPO) -> list[Rule]:
    """All figures of a checkout except those of :func:`loaded_rules`."""
    modules = find_modules(root)
    scripts = sorted(root.glob("run_*.py"))
    code = [*modules.values(), *scripts]
    rules = [
        _none("folders over the entry limit", crowded_folders(root)),
        _none("duplicate module names", duplicate_names(modules.values(), root)),
        _none("import cycles", import_cycles(import_graph(modules, module_level_imports))),
        _none(f"files over {MAX_FILE_LINES} lines", long_files(code, root)),
        _none(
            f"functions over {MAX_FUNCTION_LINES} lines",
            long_functions(code, root),
        ),
        _none("product code in utils/", unreached_modules(modules, scripts)),
    ]
    trees = {tree: sorted((root / tree).rglob("*.py")) for tree in (*TREES, "tests")}
    trees["scripts"] = scripts
    rules += [Rule(f"lines in {tree}", count_lines(files)) for tree, files in trees.items()]
    return [*rules, Rule("lines in all", sum(map(count_lines, trees.values())))]


def loaded_rules(root: Path = REPO) -> list[Rule]:
    """Project files and lines loaded by one pre-training step, which this function runs."""
    files = loaded_files(root)
    return [
        Rule("files loaded by pre-training", len(files), MAX_LOADED_FILES),
        Rule("lines loaded by pre-training", count_lines(files), MAX_LOADED_LINES),
    ]


def loaded_files(root: Path = REPO) -> list[Path]:
    """Project files that a process has imported after one pre-training step.

    Raises:
        subprocess.CalledProcessError: The run failed.
    """
    with tempfile.TemporaryDirectory() as output_dir:
        command = [sys.executable, "-c", _LIST_LOADED, *TINY_RUN, "--output_dir", output_dir]
        done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    names = json.loads(done.stdout.splitlines()[-1])
    paths = {Path(name) for name in names if name}
    return sorted(p for p in paths if p.is_relative_to(root) and is_project_file(p, root))


def is_project_file(path: Path, root: Path = REPO) -> bool:
    """Whether a file below ``root`` is a module of the project or one of its scripts."""
    parts = path.relative_to(root).parts
    return parts[0] in TREES or (len(parts) == 1 and path.suffix == ".py")


def find_modules(root: Path) -> dict[str, Path]:
    """Module name -> file, for the library, the training code and the tools."""
    found = {}
    for path in sorted(p for tree in TREES for p in (root / tree).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def crowded_folders(root: Path) -> list[str]:
    """Folders with more than ``MAX_ENTRIES`` files and folders.

    Exempt are ``tools``, which holds the commands, and ``tests/data``.
    """
    crowded = []
    folders = (root / tree for tree in (*TREES, "tests") if (root / tree).is_dir())
    for folder in (p for tree in folders for p in (tree, *tree.rglob("*")) if p.is_dir()):
        name = folder.relative_to(root).as_posix()
        if name == "tools" or name.startswith("tests/data") or "__pycache__" in name:
            continue
        count = sum(p.name != "__pycache__" for p in folder.iterdir())
        if count > MAX_ENTRIES:
            crowded.append(f"{name}: {count} entries")
    return crowded


def duplicate_names(paths: Iterable[Path], root: Path) -> list[str]:
    """Module names that several files share."""
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_name[path.stem].append(path.relative_to(root).as_posix())
    return [
        f"{name}: {', '.join(files)}"
        for name, files in sorted(by_name.items())
        if len(files) > 1 and name not in REPEATABLE_NAMES
    ]


def import_graph(
    modules: Mapping[str, Path], select: Callable[[ast.AST], Iterable[ast.stmt]]
) -> Graph:
    """Imports among the project's modules.

    Args:
        modules: Name -> file.
        select: The import statements of a syntax tree to follow.
    """
    return {
        name: frozenset(_imported(path, modules, select)) - {name} for name, path in modules.items()
    }


def import_cycles(graph: Graph) -> list[str]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[str] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[-len(component) :]
            if len(component) > 1:
                cycles.append(" -> ".join(component))

    for node in graph:
        if node not in index:
            visit(node)
    return cycles


def long_files(paths: Iterable[Path], root: Path) -> list[str]:
    """Files of more than ``MAX_FILE_LINES`` lines."""
    counts = {path: count_lines([path]) for path in paths}
    return [f"{p.relative_to(root)}: {n}" for p, n in counts.items() if n > MAX_FILE_LINES]


def long_functions(paths: Iterable[Path], root: Path) -> list[str]:
    """Functions of more than ``MAX_FUNCTION_LINES`` lines."""
    found = []
    for path in paths:
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{path.relative_to(root)}:{node.lineno} {node.name}: {length}")
    return found


def unreached_modules(modules: Mapping[str, Path], scripts: Sequence[Path]) -> list[str]:
    """Modules of ``utils`` that no training script imports, directly or indirectly."""
    graph = import_graph(modules, _all_imports)
    queue = [name for script in scripts for name in _imported(script, modules, _all_imports)]
    reached: set[str] = set()
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            parents = {name.rpartition(".")[0]} & modules.keys()
            queue += [*graph[name], *parents]
    return [name for name in modules if name.startswith("utils.") and name not in reached]


def count_lines(paths: Iterable[Path]) -> int:
    """Newlines in all files."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def _none(name: str, found: Sequence[str]) -> Rule:
    return Rule(name, len(found), 0, tuple(found))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _all_imports(tree: ast.AST) -> Iterator[ast.stmt]:
    """All import statements, those inside functions included."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))


def module_level_imports(tree: ast.AST) -> Iterator[ast.stmt]:
    """Imports that run when the module is imported: not in functions, not for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from module_level_imports(node)


def _imported(
    path: Path, modules: Mapping[str, Path], select: Callable[[ast.AST], Iterable[ast.stmt]]
) -> Iterator[str]:
    """Project modules that a file imports; ``from a import b`` names ``a.b`` if that is one."""
    for node in select(_parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in full]
        else:
            continue
        yield from (name for name in names if name in modules)


def table(rules: Sequence[Rule]) -> str:
    """An aligned table; broken rules list what breaks them."""
    lines = []
    for rule in rules:
        limit = "" if rule.limit is None else f"at most {rule.limit:,}"
        mark = "  BROKEN" if rule.broken else ""
        lines.append(f"{rule.name:<32}{rule.value:>8,}  {limit:<16}{mark}".rstrip())
        lines += [f"    {detail}" for detail in rule.details if rule.broken]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print all figures; 1 if a limit is exceeded."""
    parser = CommandParser(__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    rules = [*loaded_rules(), *check()]
    print(json.dumps([asdict(rule) for rule in rules], indent=2) if args.json else table(rules))
    return int(any(rule.broken for rule in rules))


if __name__ == "__main__":
    run_command(main)
