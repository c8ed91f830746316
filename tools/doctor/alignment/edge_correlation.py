"""Correlate the edges of two modalities: as paired, turned, shifted, and with other samples.

The edge correlation (:mod:`tools.doctor.alignment.edges`) of a true pair is several standard
deviations above that of unrelated images. The chance level is measured on the data set itself, by
pairing every image with the other samples of its chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tools.doctor.alignment.edges import TURNS, Floats, turn_features

# Shifts up to this share of the side are searched; those of at most _NEAR cells are rounding.
_MAX_SHIFT, _NEAR, _FAR = 0.3, 1, 6


@dataclass
class Moments:
    """Count, sum and sum of squares of correlations."""

    n: int = 0
    first: float = 0.0
    second: float = 0.0

    def __iadd__(self, values: npt.NDArray[np.floating] | Moments) -> Moments:
        """Add values or other moments."""
        if isinstance(values, Moments):
            self.n, self.first = self.n + values.n, self.first + values.first
            self.second += values.second
        else:
            self.n += values.size
            self.first += float(values.sum(dtype=np.float64))
            self.second += float((values.astype(np.float64) ** 2).sum())
        return self

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation; (0, 0) if empty."""
        if not self.n:
            return 0.0, 0.0
        mean = self.first / self.n
        return mean, max(0.0, self.second / self.n - mean * mean) ** 0.5


@dataclass
class PairScores:
    """Correlations of two modalities, one entry per sample in each list.

    Attributes:
        keys: Names of the samples.
        own: Correlation as paired.
        turn: Best turn of the second modality.
        turn_score: Its correlation.
        shift: Best offset (x, y) of the second modality, as a share of width and height, among
            those that exceed rounding.
        shift_score: Its correlation.
        shuffled: Correlations with other samples.
        displaced: Correlations at far offsets.
    """

    keys: list[str] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    turn: list[str] = field(default_factory=list)
    turn_score: list[float] = field(default_factory=list)
    shift: list[tuple[float, float]] = field(default_factory=list)
    shift_score: list[float] = field(default_factory=list)
    shuffled: Moments = field(default_factory=Moments)
    displaced: Moments = field(default_factory=Moments)

    def extend(self, other: PairScores) -> None:
        """Append the scores of another chunk."""
        for name in ("keys", "own", "turn", "turn_score", "shift", "shift_score"):
            getattr(self, name).extend(getattr(other, name))
        self.shuffled += other.shuffled
        self.displaced += other.displaced


@dataclass(frozen=True)
class Edges:
    """Normalized edge features of one modality in a chunk.

    Attributes:
        index_of: Index into the arrays by sample name, for samples that have edges.
        x: ``[n, 3, side, side]``.
        spectrum: Fourier transform of ``x``.
    """

    index_of: dict[str, int]
    x: Floats
    spectrum: npt.NDArray[np.complex64]

    @classmethod
    def from_features(cls, keys: Sequence[str], x: Floats) -> Edges:
        """Index the samples that have edges and transform all."""
        index_of = {key: i for i, key in enumerate(keys) if x[i].any()}
        n, channels, side = x.shape[:3]
        spectrum = np.empty((n, channels, side, side // 2 + 1), np.complex64)
        for i in range(n):  # one at a time, to stay in the CPU's cache
            spectrum[i] = np.fft.rfft2(x[i])
        return cls(index_of, x, spectrum)

    def select(self, keys: Sequence[str]) -> tuple[Floats, npt.NDArray[np.complex64]]:
        """Features and spectra of these samples, without a copy if they are all samples."""
        indices = [self.index_of[key] for key in keys]
        if indices == list(range(len(self.x))):
            return self.x, self.spectrum
        return self.x[indices], self.spectrum[indices]


def score_pair(first: Edges, second: Edges) -> PairScores:
    """Correlate two modalities of a chunk."""
    out = PairScores([key for key in first.index_of if key in second.index_of])
    if not out.keys:
        return out
    (a, spectrum_a), (b, spectrum_b) = (edges.select(out.keys) for edges in (first, second))
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    table = flat_a @ flat_b.T
    out.own = table.diagonal().tolist()
    out.shuffled += table[~np.eye(len(table), dtype=bool)]
    _score_turns(out, flat_a, b)
    spectrum = (np.conj(spectrum_a) * spectrum_b).sum(axis=1)
    _score_shifts(out, np.asarray(np.fft.irfft2(spectrum, s=a.shape[2:]), np.float32))
    return out


def _score_turns(out: PairScores, flat_a: Floats, b: Floats) -> None:
    scores = np.stack(
        [
            np.einsum("nd,nd->n", flat_a, turn_features(b, turn).reshape(flat_a.shape))
            for turn in TURNS.values()
        ]
    )
    names = list(TURNS)
    out.turn = [names[i] for i in scores.argmax(axis=0)]
    out.turn_score = scores.max(axis=0).tolist()


def _score_shifts(out: PairScores, surface: Floats) -> None:
    """Correlations ``[n, side, side]`` at all circular offsets."""
    n, side = surface.shape[:2]
    steps = np.fft.fftfreq(side, 1 / side).astype(int)
    distance = np.maximum(np.abs(steps)[:, None], np.abs(steps)[None])
    out.displaced += surface[:, distance > _FAR]
    possible = (distance > _NEAR) & (distance <= _MAX_SHIFT * side)
    surface = np.where(possible, surface, -np.inf).reshape(n, -1)
    best = surface.argmax(axis=1)
    out.shift_score = surface[np.arange(n), best].tolist()
    y, x = np.divmod(best, side)
    out.shift = [(steps[j] / side, steps[i] / side) for i, j in zip(y, x, strict=True)]
