"""The layout rules hold, and the command that checks them detects violations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import house


def write(root: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.find_modules(root)


@pytest.mark.parametrize("rule", house.check(), ids=lambda rule: rule.name)
def test_the_tree_keeps_the_rule(rule: house.Rule) -> None:
    assert not rule.broken, "\n".join(rule.details)


def test_pre_training_loads_a_bounded_part_of_the_tree() -> None:
    files = house.loaded_files()
    names = {path.relative_to(house.REPO).as_posix() for path in files}
    assert {"run_pretraining_multimae.py", "multimae/multimae.py"} <= names
    assert not any(name.startswith(("tools/", "tests/")) for name in names)
    assert len(files) <= house.MAX_LOADED_FILES
    assert house.count_lines(files) <= house.MAX_LOADED_LINES


def test_cycles_are_found_at_module_level_only(tmp_path: Path) -> None:
    modules = write(
        tmp_path,
        {
            "utils/a.py": "from utils import b\n",
            "utils/b.py": "if 1:\n    import utils.c\n",
            "utils/c.py": "from utils.a import f\n",
            "utils/d.py": "import utils.e\n",
            "utils/e.py": "def f():\n    import utils.d\n",
            "utils/f.py": "if TYPE_CHECKING:\n    import utils.g\n",
            "utils/g.py": "import utils.f\n",
        },
    )
    cycles = house.import_cycles(house.import_graph(modules, house.module_level_imports))
    assert len(cycles) == 1
    assert set(cycles[0].split(" -> ")) == {"utils.a", "utils.b", "utils.c"}


def test_code_that_no_script_imports_is_found(tmp_path: Path) -> None:
    modules = write(
        tmp_path,
        {
            "run_x.py": "import utils.a\n",
            "utils/a.py": "def f():\n    from utils.b.c import x\n",
            "utils/b/__init__.py": "",
            "utils/b/c.py": "",
            "utils/d.py": "import utils.a\n",
        },
    )
    assert house.unreached_modules(modules, [tmp_path / "run_x.py"]) == ["utils.d"]


def test_sizes_and_names_are_found(tmp_path: Path) -> None:
    body = "    pass\n" * house.MAX_FUNCTION_LINES
    many = {f"multimae/many/m{i}.py": "" for i in range(house.MAX_ENTRIES + 1)}
    modules = write(
        tmp_path,
        {
            "multimae/a.py": f"def long():\n{body}",
            "utils/a.py": "\n" * (house.MAX_FILE_LINES + 1),
            "multimae/options.py": "",
            "utils/options.py": "",
            **many,
        },
    )
    files = list(modules.values())
    assert house.duplicate_names(files, tmp_path) == ["a: multimae/a.py, utils/a.py"]
    assert house.long_files(files, tmp_path) == [f"utils/a.py: {house.MAX_FILE_LINES + 1}"]
    (found,) = house.long_functions(files, tmp_path)
    assert "multimae/a.py:1 long" in found
    (crowded,) = house.crowded_folders(tmp_path)
    assert crowded.startswith("multimae/many: ")


def test_the_table_lists_what_breaks_a_rule() -> None:
    text = house.table([house.Rule("cycles", 1, 0, ("a -> b",)), house.Rule("lines", 5000)])
    assert "BROKEN" in text.splitlines()[0] and "a -> b" in text.splitlines()[1]
    assert "5,000" in text.splitlines()[2]
