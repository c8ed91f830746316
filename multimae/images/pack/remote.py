"""Packs behind a URL: paths, retries, ranged reads. Loaded for URLs only; needs fsspec."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from multimae.images.pack import PACK_FILE
from multimae.images.pack.layout import SHARD, Shard, file_name
from multimae.images.pack.reading import PackedFolder
from multimae.images.pack.record_cache import (
    CACHE_VARIABLE,
    RecordCache,
    cache_folder,
    cache_limit,
)
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from multimae.weights.atomic import Written, write_hashed

T = TypeVar("T")
ATTEMPTS = 8
"""Reads of the same bytes; with the delays between them they cover half a minute."""
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 16.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
_TRANSIENT_STATUS = (408, 425, 429)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_CHUNK = 2**25  # bytes of an index per request
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}
_IN_EXTRA = ("fsspec", "s3fs", "aiohttp")
"""Packages that ``multimae[remote]`` installs."""
_clients: dict[tuple[int, str], Any] = {}
"""fsspec file systems by process and protocol. A forked process keeps those of its parent, as
closing them would close the parent's connections."""


class ForbiddenError(UserError):
    """The server refuses access to a file."""


class ByteRange(NamedTuple):
    """``size`` bytes of a URL from ``start``."""

    url: str
    start: int
    size: int


class RemotePath:
    """A URL with the operations of ``pathlib.Path`` that readers of packs use."""

    def __init__(self, url: str) -> None:
        """``url``: of a file or a folder."""
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        """The URL."""
        return self._url

    def __repr__(self) -> str:
        """The URL, quoted."""
        return repr(self._url)

    def __eq__(self, other: object) -> bool:
        """Whether the URLs are equal."""
        return isinstance(other, RemotePath) and other._url == self._url

    def __hash__(self) -> int:
        """Hash of the URL."""
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        """The URL of a file in this folder."""
        return RemotePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The URL without its last part; a host or bucket is its own parent."""
        above = self._url.rpartition("/")[0]
        return self if above.endswith("/") else RemotePath(above)

    def exists(self) -> bool:
        """Whether there is a file; a folder does not count.

        S3 answers "forbidden" for missing files if the user may not list the bucket.
        """
        try:
            return len(self._read(0, 1)) > 0
        except (FileNotFoundError, ForbiddenError):
            return False

    is_file = exists

    def is_dir(self) -> bool:
        """Whether there is a pack: other folders are not read over the network."""
        return (self / PACK_FILE).exists()

    def read_bytes(self) -> bytes:
        """Content of the file.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: It cannot be read.
        """
        return self._read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Content of the file, as :meth:`read_bytes`."""
        return self._read().decode(encoding)

    def open(self, newline: str | None = None, encoding: str = "utf-8") -> io.StringIO:
        """Content of the file as a text stream, as :meth:`read_bytes`."""
        return io.StringIO(self.read_text(encoding), newline)

    def _read(self, start: int | None = None, end: int | None = None) -> bytes:
        def read(_: Sequence[int]) -> list[bytes | BaseException]:
            try:
                found: bytes = _client(self._url).cat_file(self._url, start=start, end=end)
                return [found]
            except UserError:
                raise
            except Exception as err:  # each library has its own
                return [err]

        return _retry(read, [self._url])[0]


class RemotePack(PackedFolder):
    """The files of one modality behind a URL.

    The index is cached by its digest, which ``pack.json`` names: a changed pack is never read with
    an old index. Records are cached by the digest of their shard, up to a limit.
    """

    folder: RemotePath

    def __init__(self, folder: RemotePath, *, check_first: int | None = None) -> None:
        """Fetch the index, unless it is cached; arguments as of the base class.

        Raises:
            UserError: The server cannot be read or does not support ranges, or the index is
                damaged.
        """
        self._prefetched: dict[int, npt.NDArray[np.uint8]] = {}
        super().__init__(folder, check_first=check_first)
        self._digests = {part.name: part.digest for part in self.contents.files}
        self._cache = _record_cache(cache_folder() / "records", cache_limit())
        self._cache.mark_used(self._digests.values())

    def prefetch(self, indices: Iterable[int]) -> None:
        """Fetch records concurrently, for the next calls of :meth:`read`.

        Raises:
            UserError: The server cannot be read.
        """
        wanted = set(indices)
        ready = {i: values for i in wanted if (values := self._cached(i)) is not None}
        missing = sorted(wanted - ready.keys())
        for i, data in zip(missing, fetch([self._range(i) for i in missing]), strict=True):
            values = _writable(data)
            if self._is_intact(i, values):  # otherwise read() fetches it again
                self._store(i, values)
                ready[i] = values
        self._prefetched = ready

    def _check_sizes(self) -> None:
        """Check that the server supports ranges; sizes are checked as records are read."""
        fetch([ByteRange(str(self.folder / PACK_FILE), 0, 1)])

    def _index_file(self, name: str) -> Path:
        """Cached copy of a file of the index."""
        part = next((p for p in self.contents.files if p.name == name), None)
        if part is None:
            raise UserError(f"{self.folder / PACK_FILE}: {name} is not listed. Pack again.")
        path = cache_folder() / "indices" / f"{part.digest}-{part.size}-{name}"
        if not (path.is_file() and path.stat().st_size == part.size):
            url = str(self.folder / name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_hashed(path, partial(_download, url, part.size), partial(_check, url, part))
            except OSError as err:
                raise UserError(
                    f"{path}: cannot be written ({err.strerror or err}). Set {CACHE_VARIABLE} to "
                    "another folder."
                ) from err
        return path

    def _record_bytes(self, index: int) -> npt.NDArray[np.uint8]:
        values = self._prefetched.pop(index, None)
        if values is None:
            values = self._cached(index)
        if values is None:
            values = _writable(fetch([self._range(index)])[0])
            if not self._is_intact(index, values):
                raise self._wrong_checksum(index)
            self._store(index, values)
        return values

    def _bytes(self, file: str, offset: int, size: int) -> npt.NDArray[np.uint8]:
        return _writable(fetch([ByteRange(str(self.folder / file), offset, size)])[0])

    def _cached(self, index: int) -> npt.NDArray[np.uint8] | None:
        """A record from the cache, if it is there and intact."""
        values = self._cache.read(*self._cache_position(index), int(self.record(index)["size"]))
        return values if values is not None and self._is_intact(index, values) else None

    def _store(self, index: int, values: npt.NDArray[np.uint8]) -> None:
        self._cache.write(*self._cache_position(index), values)

    def _cache_position(self, index: int) -> tuple[str, int]:
        record = self.record(index)
        return self._digests[file_name(int(record["shard"]), SHARD)], int(record["offset"])

    def _range(self, index: int) -> ByteRange:
        record = self.record(index)
        url = str(self.folder / file_name(int(record["shard"]), SHARD))
        return ByteRange(url, int(record["offset"]), int(record["size"]))


def find_packs(root: RemotePath, modalities: Sequence[Modality]) -> dict[str, RemotePath]:
    """The pack of every modality.

    Raises:
        UserError: Some are missing; all are named.
    """
    folders = {m.name: root / m.data_folder for m in modalities}
    missing = [f"'{n}': no {path / PACK_FILE}" for n, path in folders.items() if not path.is_dir()]
    if missing:
        raise UserError(
            f"{root} has no pack of these modalities:\n{bullet_list(missing)}\nOver the network "
            "only packs are read: pack the data with tools/pack_dataset.py and upload the folder, "
            "or check the URL and the permissions."
        )
    return folders


def list_files(url: str) -> list[tuple[str, str, str]]:
    """Path below ``url``, URL, and size and time or tag of every file.

    Raises:
        UserError: The store cannot be listed.
    """
    root = url.rstrip("/")
    fs = _client(root)
    # Walking folder by folder omits those that cannot be listed, unless told otherwise.
    walks = root.partition("://")[0] in ("http", "https", "file", "memory")
    options = {"on_error": "raise"} if walks else {}

    def read(_: Sequence[int]) -> list[Any]:
        try:
            return [fs.find(root, detail=True, **options)]
        except Exception as err:  # each library has its own
            return [err]

    try:
        (found,) = _retry(read, [root])
    except FileNotFoundError as err:
        raise UserError(f"{root}: there is no such folder, or it cannot be listed.") from err
    from fsspec.core import url_to_fs

    start = len(url_to_fs(root)[1])
    files = []
    for path, info in sorted(found.items()):
        name = path[start:].lstrip("/")
        if "?" in name and root.startswith("http"):
            continue  # a link that sorts the listing
        tags = [info.get(k) for k in ("size", "ETag", "etag", "mtime", "LastModified", "created")]
        version = " ".join(str(tag) for tag in tags if tag is not None)
        files.append((name, f"{root}/{name}", version))
    if not files:
        raise UserError(f"{root}: no files are listed there. Check the URL.")
    return files


def fetch(ranges: Sequence[ByteRange]) -> list[bytes]:
    """Bytes of ranges below one URL, read concurrently; failed reads are repeated.

    Raises:
        UserError: A range cannot be read, or the server does not support ranges.
    """

    def read(which: Sequence[int]) -> list[bytes | BaseException]:
        urls, starts, sizes = map(list, zip(*(ranges[i] for i in which), strict=True))
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        results = _client(urls[0]).cat_ranges(urls, starts, ends, on_error="return")
        return [_checked_size(ranges[i], data) for i, data in zip(which, results, strict=True)]

    if not ranges:
        return []
    try:
        return _retry(read, [r.url for r in ranges])
    except FileNotFoundError as err:
        raise UserError(f"{err}: missing. Upload the pack again, or check the URL.") from err


def _checked_size(wanted: ByteRange, data: bytes | BaseException) -> bytes | BaseException:
    if isinstance(data, BaseException) or len(data) == wanted.size:
        return data
    if len(data) > wanted.size:
        host = "/".join(wanted.url.split("/")[:3])
        raise UserError(
            f"{wanted.url}: the server sent {len(data)} bytes instead of {wanted.size}. "
            f"{host} does not support range requests, which reading packs needs: use another "
            "server, or copy the pack to a local folder."
        )
    return EOFError(f"bytes {wanted.start} to {wanted.start + wanted.size} end after {len(data)}")


def _retry(
    read: Callable[[Sequence[int]], list[T | BaseException]], urls: Sequence[str]
) -> list[T]:
    """Results of ``read``, called with the indices that have none, until all have one.

    Raises:
        FileNotFoundError: A file is missing; its only argument is the URL.
        UserError: A read failed every time, or for a reason that does not change.
    """
    found: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    for attempt in range(ATTEMPTS):
        if attempt:
            delay = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1))
            time.sleep(random.SystemRandom().uniform(0.5, 1) * delay)
        pending = [i for i in range(len(urls)) if i not in found]
        results = dict(zip(pending, read(pending), strict=True))
        found |= {i: r for i, r in results.items() if not isinstance(r, BaseException)}
        failed = {i: r for i, r in results.items() if isinstance(r, BaseException)}
        for i, err in failed.items():
            if isinstance(err, FileNotFoundError):
                raise FileNotFoundError(urls[i]) from err
            if _is_final(err):
                forbidden = isinstance(err, PermissionError) or getattr(err, "status", 0) == 403
                kind = ForbiddenError if forbidden else UserError
                raise kind(f"{urls[i]}: cannot be read ({_reason(err)}).") from err
        if not failed:
            return [found[i] for i in range(len(urls))]
    i, err = next(iter(failed.items()))
    raise UserError(
        f"{urls[i]}: cannot be read after {ATTEMPTS} attempts ({_reason(err)}). Check the network "
        "and the server, then start again; training resumes from its last checkpoint."
    ) from err


def _is_final(err: BaseException) -> bool:
    """Whether a repetition cannot help."""
    status = getattr(err, "status", None)  # of aiohttp
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return isinstance(err, PermissionError) or type(err).__name__ in _NO_CREDENTIALS


def _reason(err: BaseException) -> str:
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__


def _client(url: str) -> Any:
    """The fsspec file system for a URL, one per process: connections do not survive a fork.

    Raises:
        UserError: The package for this protocol is missing.
    """
    protocol = url.partition("://")[0]
    key = (os.getpid(), protocol)
    if key not in _clients:
        try:
            import fsspec

            if any(process != os.getpid() for process, _ in _clients):
                fsspec.asyn.reset_lock()  # another thread of the parent may have held it
            _clients[key] = fsspec.filesystem(protocol, **_client_options(protocol))
        except ImportError as err:
            package = _PACKAGES.get(protocol, "fsspec")
            more = "" if package in _IN_EXTRA else f" {package}"
            raise UserError(
                f"{url}: {protocol}:// needs the package {package}, which cannot be imported "
                f"({err}): pip install 'multimae[remote]'{more}"
            ) from err
        except ValueError as err:
            raise UserError(f"{url}: no package of 'multimae[remote]' reads this ({err}).") from err
    return _clients[key]


def _client_options(protocol: str) -> dict[str, Any]:
    """Time limits where fsspec has none; options of fsspec's configuration take precedence."""
    from fsspec.config import conf

    if protocol not in ("http", "https") or "client_kwargs" in conf.get(protocol, {}):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout}}


def _download(url: str, size: int, copy: BinaryIO) -> None:
    """Write a file of known size, a chunk at a time."""
    for start in range(0, size, _CHUNK):
        copy.write(fetch([ByteRange(url, start, min(_CHUNK, size - start))])[0])


def _check(url: str, part: Shard, written: Written) -> None:
    if written != part.written:
        raise UserError(f"{url}: wrong checksum. Upload the pack again, or pack the data again.")


def _writable(data: bytes) -> npt.NDArray[np.uint8]:
    return np.array(np.frombuffer(data, np.uint8))


@lru_cache(maxsize=1)
def _record_cache(folder: Path, limit: int) -> RecordCache:
    """The cache of this process."""
    return RecordCache(folder, limit)
