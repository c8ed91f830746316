"""The argument parser of commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from multimae import cli
from multimae.specs.arguments import CommandParser
from tools import bench_loader, check_dataset, pack_dataset

REPO = Path(__file__).resolve().parents[3]


def make_parser(**kwargs: bool) -> CommandParser:
    parser = CommandParser("First line.\n\n    an example", prog="tool", **kwargs)
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=7, help="side of the images")
    parser.add_argument("--codec", choices=("none", "zlib"), default="none", help="compression")
    group = parser.add_argument_group("output")
    group.add_argument("--out", help="folder to write")
    group.add_argument("--full", action="store_true", help="read everything")
    group.add_argument("--only", nargs="+", default=[], help="names")
    group.add_argument("--suffix", default="", help="of names")
    group.add_argument("--port", default=7860, help="to serve on (the first free one)")
    group.add_argument("--kinds", nargs="+", default=["a", "b"], help="kinds")
    return parser


def message(parser: CommandParser, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    return error


def test_the_help_shows_groups_examples_and_defaults_that_say_something() -> None:
    text = make_parser().format_help()
    assert "\n    an example\n" in text and "\noutput:\n" in text
    assert "side of the images (default: 7)" in text
    assert "to serve on (the first free one)\n" in text and "kinds (default: a b)" in text
    assert text.count("(default:") == 3


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("--sise", "3"), ("--sise", "did you mean --size?")),
        (("--outt=x", "--ful"), ("--outt:", "did you mean --out?", "did you mean --full?")),
        (("--codec", "zlip"), ("--codec", "'zlip'", "did you mean zlib?")),
        (("--size", "big"), ("--size", "'big'")),
        (("--zzzz",), ("--zzzz: unknown flag (",)),
        (("more",), ("'more'",)),
    ],
)
def test_mistakes_name_the_nearest_flag_in_one_line(
    argv: tuple[str, ...], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = message(make_parser(), capsys, "folder", *argv)
    assert all(part in text for part in (*parts, "tool --help"))


def test_unknown_flags_can_be_passed_on_but_not_abbreviated() -> None:
    found, unknown = make_parser(passes_unknown=True).parse_known_args(["d", "--siz", "3"])
    assert found.size == 7 and unknown == ["--siz", "3"]


def test_subcommands_know_their_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["predict", "m", "photos", "--out", "o", "--overlap_tile", "1", "--overwite"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    error = capsys.readouterr().err
    assert "did you mean --overlay?" in error or "did you mean --overlap?" in error
    assert "did you mean --overwrite?" in error and "multimae predict --help" in error
    with pytest.raises(SystemExit, match="2"):
        cli.main(["inof", "m"])
    assert "did you mean info?" in capsys.readouterr().err


def test_all_commands_use_the_parser() -> None:
    for path in (*(REPO / "tools").rglob("*.py"), *(REPO / "multimae").rglob("*.py")):
        if path.name != "arguments.py":
            assert "argparse.ArgumentParser(" not in path.read_text(), path


@pytest.mark.parametrize("url", ["s3://bucket/rooms", "https://host/rooms", "gs://bucket/rooms"])
@pytest.mark.parametrize("main", [check_dataset.main, bench_loader.main, pack_dataset.main])
def test_commands_for_local_folders_say_so(
    main: Callable[[list[str]], int], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {
        check_dataset.main: [url],
        bench_loader.main: ["--work", "x", "--data_path", "data", url],
        pack_dataset.main: ["--out", "x", "--data_path", url],
    }
    with pytest.raises(SystemExit) as caught:
        main(flags[main])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and url in error and len(error.splitlines()) == 1


def test_local_paths(tmp_path: Path) -> None:
    parser = CommandParser("x")
    parser.add_argument("path", type=Path)
    group = parser.add_argument_group("more")
    group.add_argument("--out", type=Path, nargs="+", default=[])
    for text in (str(tmp_path), "a:b/c", "C:/x", "a/b://c"):
        found = parser.parse_args([text, "--out", text, text])
        assert found.path == Path(text) and found.out == [Path(text)] * 2
