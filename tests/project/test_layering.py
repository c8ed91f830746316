"""Layout rules: import direction, no branches on modality names, no private library API."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import multimae.plotting
from multimae.specs.modalities import default_table

REPO = Path(__file__).parents[2]
LIBRARY = sorted((REPO / "multimae").rglob("*.py"))
RUNTIME = sorted((REPO / "utils").rglob("*.py"))
TOOLS = sorted((REPO / "tools").glob("*.py"))
SOURCES = [*LIBRARY, *RUNTIME, *TOOLS, *REPO.glob("run_*.py"), REPO / "hubconf.py"]
LIBRARY_MAY_IMPORT = {
    *("multimae", "torch", "einops", "numpy", "safetensors", "PIL", "huggingface_hub"),
    *("matplotlib", "typing_extensions"),  # inside functions, or for types
}
BRIDGES = {
    "timm_models.py": ("weights", {"timm"}),
    "export.py": ("inference", {"onnxruntime"}),
}  # not imported by the rest of the library
OPTIONAL = {
    "readers.py": {"simplejpeg", "torchvision"},  # faster decoders
    "fast_decode.py": {"simplejpeg"},
    "tiff.py": {"tifffile", "imagecodecs"},
    "rasters.py": {"rasterio"},
    "remote.py": {"fsspec", "aiohttp"},
    "truth.py": {"torchvision"},
    "downloads.py": {"tqdm"},
    "prediction_run.py": {"tqdm"},
    "start_config.py": {"yaml"},
    "tiled_run.py": {"tqdm"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert all(alias.name != "*" for alias in node.names)
            found.add(node.module or "")
    return found


def tree_of(path: Path) -> ast.AST:
    return ast.parse(path.read_text(), str(path))


def test_library_imports_neither_utils_nor_tools() -> None:
    bridges = {f"multimae.{folder}.{Path(name).stem}" for name, (folder, _) in BRIDGES.items()}
    for path in LIBRARY:
        found = imports(tree_of(path))
        _, extra = BRIDGES.get(path.name, ("", set()))
        top = {name.partition(".")[0] for name in found}
        assert top - set(sys.stdlib_module_names) <= (
            LIBRARY_MAY_IMPORT | extra | OPTIONAL.get(path.name, set())
        ), name_of(path)
        assert path.name == "cli.py" or not found & bridges, name_of(path)


def test_the_training_runtime_imports_neither_tools_nor_scripts() -> None:
    for path in RUNTIME:
        top = {name.partition(".")[0] for name in imports(tree_of(path))}
        assert not any(name == "tools" or name.startswith("run_") for name in top), name_of(path)


def test_no_condition_names_a_modality() -> None:
    """Differences between modalities are fields of the table, not branches."""
    for path in SOURCES:
        names = set(default_table()) | {"normals"}
        if path.name == "dpt.py":
            names.remove("semseg")  # there the published name of a kind of head
        if path.name == "guess.py":
            continue  # recognizes published files by the names in them
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare):
                values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not values & names, f"{name_of(path)}:{node.lineno}"


def test_no_source_is_unfinished() -> None:
    for path in SOURCES:
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text()), name_of(path)


def test_check_dataset_does_not_import_torch() -> None:
    """Importing PyTorch takes seconds, in the command and in every worker."""
    code = "import sys, tools.check_dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


@pytest.mark.parametrize("package", [multimae, multimae.plotting], ids=lambda p: p.__name__)
def test_lazy_names_exist(package: ModuleType) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    modules = {path.stem for folder in package.__path__ for path in Path(folder).iterdir()}
    assert not modules & set(package.__all__), "importing such a module would hide the name"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def private_names(path: Path) -> Iterator[tuple[str, bool]]:
    """Names with one leading underscore in a file, and whether it defines them."""
    for node in ast.walk(tree_of(path)):
        found: list[tuple[object, bool]] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = [(node.name, True)]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found = [(node.id, True)]
        elif isinstance(node, ast.Attribute):
            found = [(node.attr, isinstance(node.ctx, ast.Store))]
        elif isinstance(node, ast.ImportFrom):
            found = [(name, False) for name in (node.module or "").split(".")]
            found += [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            found = [(a.value, False) for a in node.args[1:2] if isinstance(a, ast.Constant)]
        for name, is_defined in found:
            if re.match(r"_[a-zA-Z]", str(name)):
                yield str(name), is_defined


def test_no_private_name_of_a_library() -> None:
    names = {
        (name, is_defined)
        for path in {*SOURCES, *(REPO / "tools").rglob("*.py")}
        for name, is_defined in private_names(path)
    }
    defined = {name for name, is_defined in names if is_defined}
    documented = {"_exit", "_replace"}
    assert {name for name, _ in names} <= defined | documented


def test_every_tool_ends_with_run_command() -> None:
    for path in TOOLS:
        ending = "    run_command(main)\n"
        assert path.name == "__init__.py" or path.read_text().endswith(ending), name_of(path)


def test_commands_extend_the_path_before_they_import_the_repository() -> None:
    """They run in a clone that is not installed."""
    for path in TOOLS:
        own = False
        for node in ast.parse(path.read_text()).body:
            own |= isinstance(node, ast.ImportFrom) and bool(
                re.match(r"(multimae|utils|tools)\b", node.module or "")
            )
            if isinstance(node, ast.If) and "sys.path" in ast.unparse(node):
                assert not own, name_of(path)
