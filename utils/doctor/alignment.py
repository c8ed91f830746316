"""Which samples are not aligned, which of their files is to blame, and what happened to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimae.modalities import Modality
from utils.doctor.edges import INVERSE, Floats
from utils.doctor.findings import Finding
from utils.doctor.listing import Listing
from utils.doctor.registration import PairScores

Pair = tuple[str, str]
FeaturesOf = Callable[[Sequence[str], Modality], dict[str, Floats]]
"""Normalised features by name of the sample, each ``[3, side, side]``."""

# In standard deviations of pairs that do not belong together (docs/LOG.md: rendered rooms have at
# least 5.9 as paired): a pair above CERTAIN belongs together, one below DOUBTFUL hardly does.
CERTAIN, DOUBTFUL = 5.0, 3.5
# By how much another explanation must beat the pair as it is.
_MARGIN, _SHIFT_MARGIN = 0.06, 0.12
# Partners are sought among so many doubtful samples.
_MAX_SEARCH, _MAX_SHUFFLED = 2000, 500


@dataclass(frozen=True)
class PairSummary:
    """How well two modalities agree over the data set; correlations of edges.

    Attributes:
        samples: Number compared.
        median: Of the samples as paired.
        chance: Mean of what does not belong together.
        std: Its standard deviation.
        telling: Whether the pair can tell at all if samples belong together.
    """

    samples: int
    median: float
    chance: float
    std: float
    telling: bool

    def deviations(self, score: float) -> float:
        """Standard deviations above chance."""
        return (score - self.chance) / max(self.std, 1e-6)


@dataclass(frozen=True)
class _Verdict:
    """One sample of one pair: whether it agrees, and the best other explanation."""

    own: float
    agrees: bool
    turn: str = ""
    shift: tuple[float, float] = (0.0, 0.0)
    score: float = -1.0

    def what(self, first: bool) -> str:
        """What happened to the second modality of the pair, or to the first."""
        if self.turn:
            return self.turn if first else INVERSE.get(self.turn, self.turn)
        x, y = (round(-100 * v if first else 100 * v) for v in self.shift)
        return f"shifted by {x:+d} % of the width and {y:+d} % of the height"


def summarise(scores: PairScores) -> PairSummary:
    """How well a pair of modalities agrees, whatever happened to the files."""
    if not scores.keys:
        return PairSummary(0, 0.0, 0.0, 0.0, telling=False)
    chance, std = scores.chance()
    draft = PairSummary(len(scores.keys), float(np.median(scores.own)), chance, std, True)
    # The best of many turns or shifts is higher by chance, which is taken off.
    columns = zip(scores.own, scores.turn_score, scores.shift_score, strict=True)
    best = [max(own, turn - std, shift - 3 * std) for own, turn, shift in columns]
    telling = std > 0 and draft.deviations(float(np.median(best))) >= CERTAIN
    return PairSummary(draft.samples, draft.median, chance, std, telling)


def find_misaligned(
    listing: Listing, pairs: Mapping[Pair, PairScores], features_of: FeaturesOf
) -> Iterator[Finding]:
    """Findings about samples whose modalities do not show the same view.

    Args:
        listing: Files and rows.
        pairs: Scores by names of two modalities.
        features_of: Reads samples again, to look for the partners of doubtful ones.
    """
    verdicts: dict[str, dict[Pair, _Verdict]] = defaultdict(dict)
    for pair, scores in pairs.items():
        summary = summarise(scores)
        if summary.telling or _shuffled(listing, pair, scores, summary, features_of):
            for key, verdict in _judge(scores, summary):
                verdicts[key][pair] = verdict
        elif summary.samples:
            yield _cannot_tell(pair, summary)
    accused: dict[Pair, list[str]] = defaultdict(list)
    for key, by_pair in verdicts.items():
        if not all(v.agrees for v in by_pair.values()):
            culprit = _culprit(by_pair, listing.rows)
            witness = max(
                (p for p in by_pair if culprit in p and not by_pair[p].agrees),
                key=lambda p: summarise(pairs[p]).median,
            )
            other = witness[0] if witness[1] == culprit else witness[1]
            accused[culprit, other].append(key)
    for (culprit, other), keys in accused.items():
        pair = next(p for p in pairs if set(p) == {culprit, other})
        found = {key: verdicts[key][pair] for key in keys}
        summary = summarise(pairs[pair])
        first = pair[0] == culprit
        yield from _explain(listing, (culprit, other), first, found, summary, features_of)


def _judge(scores: PairScores, summary: PairSummary) -> Iterator[tuple[str, _Verdict]]:
    for i, key in enumerate(scores.keys):
        own, turn, shift = scores.own[i], scores.turn_score[i], scores.shift_score[i]
        verdict = _Verdict(own, summary.deviations(own) >= DOUBTFUL)
        if summary.deviations(turn) >= CERTAIN and turn > own + _MARGIN:
            verdict = _Verdict(own, False, turn=scores.turn[i], score=turn)
        # The best of a thousand offsets is high by chance: it must look like a true pair.
        bar = (summary.median + summary.chance) / 2
        least = max(own + _SHIFT_MARGIN, verdict.score, bar)
        if shift > least and summary.deviations(shift) >= CERTAIN:
            verdict = _Verdict(own, False, shift=scores.shift[i], score=shift)
        yield key, verdict


def _culprit(by_pair: Mapping[Pair, _Verdict], rows: Sequence[Modality]) -> str:
    """The modality that most disagreeing pairs share; between equals not a photograph."""
    blame: dict[str, int] = defaultdict(int)
    for pair, verdict in by_pair.items():
        for name in pair:
            blame[name] += -1 if verdict.agrees else 1
    order = {row.name: (not row.is_photo, -i) for i, row in enumerate(rows)}
    return max(blame, key=lambda name: (blame[name], order[name]))


def _explain(
    listing: Listing,
    names: tuple[str, str],
    first: bool,
    found: Mapping[str, _Verdict],
    summary: PairSummary,
    features_of: FeaturesOf,
) -> Iterator[Finding]:
    """Findings about one modality (the first of its pair or not) that does not fit another."""
    culprit, other = names
    partners = _partners(listing, names, list(found)[:_MAX_SEARCH], features_of)
    for key, verdict in found.items():
        path = listing.files[culprit][key].path
        against = listing.files[other][key].path
        partner, score = partners.get(key, ("", -1.0))
        how = f"edges as paired {summary.deviations(verdict.own):.1f} deviations above chance"
        fits = score > max(verdict.own + _MARGIN, verdict.score)
        if fits and summary.deviations(score) >= CERTAIN:
            text = (
                f"does not fit {against} but fits {listing.files[other][partner].path} "
                f"({how}, with that {summary.deviations(score):.1f}): swapped or shuffled. Rename."
            )
            yield Finding("error", "swapped", text, path, culprit, key)
        elif verdict.score >= 0:
            text = (
                f"is {verdict.what(first)} against {against} ({how}, put right "
                f"{summary.deviations(verdict.score):.1f}). Make it again from the same view."
            )
            code = verdict.turn.split()[0] if verdict.turn else "shifted"
            yield Finding("error", code, text, path, culprit, key)
        else:
            text = (
                f"hardly fits {against} ({how}; the median sample is at "
                f"{summary.deviations(summary.median):.1f}). Look at both."
            )
            yield Finding("warning", "misaligned", text, path, culprit, key)


def _partners(
    listing: Listing, names: tuple[str, str], keys: list[str], features_of: FeaturesOf
) -> dict[str, tuple[str, float]]:
    """For each doubtful sample the other one whose second modality fits its first best."""
    if len(keys) < 2:
        return {}
    rows = {row.name: row for row in listing.rows}
    mine, theirs = (features_of(keys, rows[name]) for name in names)
    known = [key for key in keys if key in mine and key in theirs]
    if len(known) < 2:
        return {}
    a, b = (np.stack([f[key] for key in known]).reshape(len(known), -1) for f in (mine, theirs))
    table = a @ b.T
    np.fill_diagonal(table, -1.0)
    best = table.argmax(axis=1)
    return {
        key: (known[j], float(table[i, j]))
        for i, (key, j) in enumerate(zip(known, best, strict=True))
    }


def _shuffled(
    listing: Listing,
    pair: Pair,
    scores: PairScores,
    summary: PairSummary,
    features_of: FeaturesOf,
) -> bool:
    """Whether most samples fit another sample, though hardly any fits its own."""
    partners = _partners(listing, pair, scores.keys[:_MAX_SHUFFLED], features_of)
    best = [score for _, score in partners.values()]
    return bool(best) and summary.deviations(float(np.median(best))) >= CERTAIN + 1


def _cannot_tell(pair: Pair, summary: PairSummary) -> Finding:
    a, b = pair
    text = (
        f"edges of '{a}' and '{b}' agree little in general (median correlation "
        f"{summary.median:.2f}, chance {summary.chance:.2f} +- {summary.std:.2f}): swapped or "
        "shifted files would not show. If they should agree, look at the samples below."
    )
    return Finding("info", "registration", text)
