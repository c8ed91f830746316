"""The wheel holds all of ``multimae`` and works outside a clone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import multimae

REPO = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

# The environment has an editable install of the clone: without its finder and its .pth file, only
# the wheel can be imported. Arguments: the wheel's folder, the code.
ISOLATED = """
import sys
target, site, code = sys.argv[1:]
sys.path[:0] = [target]
sys.path.append(site)
import multimae
assert multimae.__file__.startswith(target), multimae.__file__
exec(compile(code, "README.md", "exec"), {})
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nothing but the wheel is installed."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, source)
    for name in ("multimae", "utils", "tools"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, source]
    subprocess.run([*PIP, *map(str, build)], check=True)
    (wheel,) = root.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", root / "site", wheel]
    subprocess.run([*PIP, *map(str, install)], check=True)
    return root / "site"


def run_isolated(target: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in ``folder`` with the wheel and the dependencies, but without the clone."""
    site = str(Path(pytest.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", ISOLATED, str(target), site, code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_wheel_holds_every_module(target: Path) -> None:
    (wheel,) = target.parent.glob("*.whl")
    assert wheel.name.startswith(f"multimae-{multimae.__version__}-")
    files = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(REPO)) for p in (REPO / "multimae").rglob("*.py")}
    assert modules | {"multimae/py.typed"} <= files
    assert {name.partition("/")[0] for name in files} == {
        "multimae",
        f"multimae-{multimae.__version__}.dist-info",
    }


@pytest.mark.parametrize("code", BLOCKS)
def test_readme_blocks_run_outside_the_clone(target: Path, tmp_path: Path, code: str) -> None:
    for name in ("weights", "examples"):
        shutil.copytree(REPO / name, tmp_path / name)
    done = run_isolated(target, tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_the_command_runs_outside_the_clone(target: Path, tmp_path: Path) -> None:
    code = "from multimae.cli import main; main(['--version'])"
    done = run_isolated(target, tmp_path, code)
    assert (done.returncode, done.stdout.strip()) == (0, f"multimae {multimae.__version__}")
    assert (target / "bin" / "multimae").is_file()
