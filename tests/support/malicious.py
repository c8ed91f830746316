"""Files that execute code when unpickled: each tries to create a folder."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.support.states import multivit


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@dataclass
class Stateful:
    """Runs its own code when it is unpickled."""

    marker: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.mkdir(state["marker"])


class Options(argparse.Namespace):
    """A subclass of the class that published checkpoints contain."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.mkdir(state["marker"])


def state() -> dict[str, Any]:
    return dict(multivit().state_dict())


def by_class(value: Callable[[Path], object], path: Path, marker: Path, **how: Any) -> None:
    """A checkpoint of valid weights and a malicious object."""
    torch.save({"model": state(), "args": value(marker)}, path, **how)


def inside(path: Path, marker: Path) -> None:
    """The object is one of the weights."""
    torch.save({"model": {**state(), "head.bias": Runs(os.mkdir, str(marker))}}, path)


def inside_arguments(path: Path, marker: Path) -> None:
    """The object is a value of the Namespace that is allowed."""
    args = argparse.Namespace(lr=1e-4, hook=Runs(os.mkdir, str(marker)))
    torch.save({"model": state(), "args": args}, path)


def bare(protocol: int, path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(os.mkdir, str(marker)), protocol))


def by_name(module: str, name: str, argument: str, path: Path, marker: Path) -> None:
    """A torch.save archive whose pickle is written by hand: any function, by its name."""
    text = argument.format(marker=marker).encode()
    call = b"c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text
    archived(b"\x80\x02" + call + b"\x85R.", path)


def archived(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def tar(path: Path, marker: Path) -> None:
    """The format of torch before 0.1.10."""
    evil = pickle.dumps(Runs(os.mkdir, str(marker)), 2)
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(evil)
            archive.addfile(member, io.BytesIO(evil))


def script(path: Path, marker: Path) -> None:
    """A TorchScript archive is code."""
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def safetensors(header: bytes, length: int, path: Path, marker: Path) -> None:
    evil = pickle.dumps(Runs(os.mkdir, str(marker)), 2)
    path.write_bytes(struct.pack("<Q", length) + header + evil)


def polyglot(path: Path, marker: Path) -> None:
    """A pickle whose ninth byte is that of a safetensors header."""
    evil = pickle.dumps(Runs(os.mkdir, str(marker)), 2)
    path.write_bytes(b"\x80\x02X\x04\x00\x00\x00a{{a0" + evil[2:])


NAMES = {
    ("os", "system", "mkdir {marker}"),
    ("posix", "system", "mkdir {marker}"),
    ("os", "popen", "mkdir {marker}"),
    ("os", "mkdir", "{marker}"),
    ("subprocess", "Popen", "mkdir {marker}"),
    ("subprocess", "getoutput", "mkdir {marker}"),
    ("builtins", "eval", "__import__('os').mkdir('{marker}')"),
    ("builtins", "exec", "import os; os.mkdir('{marker}')"),
    ("__builtin__", "eval", "__import__('os').mkdir('{marker}')"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "open", "{marker}"),
    ("builtins", "getattr", "x"),
    ("importlib", "import_module", "this"),
    ("runpy", "run_path", "{marker}"),
    ("pickle", "loads", "x"),
    ("operator", "attrgetter", "system"),
    ("functools", "partial", "x"),
    ("numpy", "load", "{marker}"),
    ("torch", "load", "{marker}"),
    ("torch.serialization", "load", "{marker}"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("torch.jit", "load", "{marker}"),
    ("torch.hub", "load", "{marker}"),
    ("torch._inductor.codecache", "write", "{marker}"),
    ("argparse", "FileType", "w"),
    ("argparse", "Namespace.__init__.__globals__", "x"),
}

MALICIOUS: dict[str, Callable[[Path, Path], None]] = {
    "reduce": partial(by_class, lambda m: Runs(os.mkdir, str(m))),
    "system": partial(by_class, lambda m: Runs(os.system, f"mkdir {m}")),
    "open": partial(by_class, lambda m: Runs(open, str(m), "w")),
    "legacy": partial(
        by_class, lambda m: Runs(os.mkdir, str(m)), _use_new_zipfile_serialization=False
    ),
    "among the weights": inside,
    "in a Namespace": inside_arguments,
    "subclass of Namespace": partial(by_class, lambda m: Options(marker=str(m))),
    "another class": partial(by_class, lambda m: Stateful(str(m))),
    **{f"pickle {p}": partial(bare, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "tar": tar,
    "TorchScript": script,
    "header too long": partial(safetensors, b"{}", 2**40),
    "header too short": partial(safetensors, b'{"a": {}}', 3),
    "header past the end": partial(safetensors, b'{"a": {}}', 4000),
    "header of no tensors": partial(safetensors, b'{"__metadata__": 3}', 19),
    "polyglot": polyglot,
    **{f"{m}.{n}": partial(by_name, m, n, a) for m, n, a in sorted(NAMES)},
}
