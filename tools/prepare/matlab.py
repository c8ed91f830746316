"""Readers of HDF5 and MATLAB files with clear errors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae.specs.errors import UserError

# Errors of loadmat on files of other kinds.
_BROKEN = (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, zlib.error)
_INSTALL = "pip install '.[data]'"


@contextmanager
def open_hdf5(path: Path, keys: Sequence[str]) -> Iterator[Any]:
    """Open an HDF5 file (or MATLAB 7.3 file) that has data sets named ``keys``.

    The axes of MATLAB arrays are reversed: H x W x N is (N, W, H) here.

    Raises:
        UserError: The file is missing, damaged or lacks a key.
    """
    try:
        import h5py
    except ImportError as err:
        raise UserError(f"h5py is not installed: {_INSTALL}") from err
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in keys if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise UserError(
                    f"{path}: no {' and no '.join(missing)} in it, only: "
                    f"{', '.join(sorted(file)) or 'nothing'}. Is it the right file?"
                )
            yield file
    except FileNotFoundError as err:
        raise UserError(f"{path} does not exist.") from err
    except OSError as err:
        raise UserError(
            f"{path} cannot be read as HDF5 ({err}). Check the path, or download it again."
        ) from err


def read_mat(path: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Read arrays of integers from a MATLAB 5 file, flattened.

    Raises:
        UserError: The file is missing, damaged or lacks such an array.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as err:
        raise UserError(f"scipy is not installed: {_INSTALL}") from err
    try:
        found = loadmat(str(path), appendmat=False, variable_names=list(keys))
    except FileNotFoundError as err:
        raise UserError(f"{path} does not exist.") from err
    except (*_BROKEN, MatReadError) as err:
        raise UserError(
            f"{path} cannot be read as a MATLAB file of version 5 ({err}). Check the path, or "
            "download it again."
        ) from err
    arrays = {}
    for key in keys:
        values = np.asarray(found.get(key, ())).ravel()
        numeric = values.size and np.issubdtype(values.dtype, np.number)
        if not numeric or (values != np.rint(values)).any():
            raise UserError(f"{path}: no array of integers '{key}'. Is it the right file?")
        arrays[key] = values.astype(np.int64)
    return arrays
