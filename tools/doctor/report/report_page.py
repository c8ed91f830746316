"""The report as one self-contained HTML page."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

from multimae.images.folders import spread_indices
from multimae.specs.modalities import Modality
from tools.common.html_page import html_page
from tools.doctor.examine import Diagnosis, SetReport
from tools.doctor.files.file_listing import File
from tools.doctor.findings import SEVERITIES, Finding, Severity, count
from tools.doctor.report.modality_cards import modality_card
from tools.doctor.report.thumbnails import thumbnail_uri

_MAX_SAMPLES, _MAX_SUSPECTS, _MAX_PER_CODE = 12, 12, 200
_STYLE = Path(__file__).with_name("style.css")
_TITLES = {"error": "errors", "warning": "warnings", "info": "notes"}


def render_page(diagnosis: Diagnosis) -> str:
    """Render the page."""
    body = [_header(diagnosis), _findings(diagnosis.findings)]
    for report in diagnosis.sets:
        body += [_suspects(report, diagnosis.findings), _samples(report), _modalities(report)]
        body.append(_agreement(report))
    title = str(diagnosis.sets[0].listing.root)
    return html_page(title, "\n".join(filter(None, body)), _STYLE.read_text(encoding="utf-8"))


def _header(diagnosis: Diagnosis) -> str:
    counts = count(diagnosis.findings)
    checked = sum(len(s.checked) for s in diagnosis.sets)
    total = sum(len(s.listing.keys()) for s in diagnosis.sets)
    roots = " and ".join(f"<code>{escape(str(s.listing.root))}</code>" for s in diagnosis.sets)
    speed = checked / max(diagnosis.seconds, 1e-9)
    tiles = [
        (f"{checked:,}", f"of {total:,} samples read", ""),
        *((f"{counts[s]:,}", _TITLES[s], s if counts[s] else "good") for s in SEVERITIES[:2]),
        (f"{counts['info']:,}", _TITLES["info"], "info"),
        (f"{diagnosis.seconds:.1f} s", f"{speed:.0f} samples per second", ""),
    ]
    verdict = ("good", "ready for training")
    if counts["error"]:
        verdict = ("error", "not ready for training")
    elif counts["warning"]:
        verdict = ("warning", "look at the warnings first")
    partial = (
        ""
        if checked == total
        else (
            '<p class="soft">Files were sampled evenly; names and sizes were compared for all. '
            "<code>--full</code> reads everything.</p>"
        )
    )
    boxes = "".join(
        f'<div class="tile {kind}"><b>{value}</b>{what}</div>' for value, what, kind in tiles
    )
    return (
        f'<h1>Data set report <span class="tag {verdict[0]}">{verdict[1]}</span></h1>'
        f'<p class="soft">{roots}, {datetime.date.today():%Y-%m-%d}</p>{partial}'
        f'<div class="tiles">{boxes}</div>'
    )


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return '<h2>Findings</h2><div class="card">Nothing to report.</div>'
    shown: dict[str, int] = defaultdict(int)
    rows = []
    for f in findings:
        shown[f.code] += 1
        if shown[f.code] <= _MAX_PER_CODE:
            rows.append(_row(f))
    hidden = {code: n - _MAX_PER_CODE for code, n in shown.items() if n > _MAX_PER_CODE}
    more = "".join(
        f'<p class="soft">{n:,} more of {code}: see findings.json</p>' for code, n in hidden.items()
    )
    counts = count(findings)
    switches = "".join(f'<input type="checkbox" id="show-{s}" checked hidden>' for s in SEVERITIES)
    labels = "".join(
        f'<label for="show-{s}"><span class="tag {s}">{counts[s]} {_TITLES[s]}</span></label>'
        for s in SEVERITIES
        if counts[s]
    )
    return (
        f'<h2>Findings</h2><div class="card findings">{switches}<p class="filter">{labels}'
        '<span class="soft">click to hide or show</span></p>'
        "<table><tr><th></th><th>what</th><th>where and why</th></tr>"
        f"{''.join(rows)}</table>{more}</div>"
    )


def _row(f: Finding) -> str:
    path = f'<span class="path">{escape(f.path)}</span>' if f.path else ""
    about = " in ".join(filter(None, (f.modality, f.data_set)))
    about = f'<span class="path">{escape(about)}</span>' if about else ""
    return (
        f'<tr class="{f.severity}"><td><span class="tag {f.severity}">{f.severity}</span></td>'
        f'<td class="code">{f.code}</td><td>{path}{about}{escape(f.message)}</td></tr>'
    )


def _suspects(report: SetReport, findings: Sequence[Finding]) -> str:
    """Thumbnails of samples with findings, a few of each kind first."""
    known = {key for by_key in report.listing.files.values() for key in by_key}
    root = str(report.listing.root)
    mine = [f for f in findings if f.sample in known and f.path.startswith(root)]
    by_code: dict[str, list[Finding]] = defaultdict(list)
    for f in mine:
        if f.severity != "info":
            by_code[f.code].append(f)
    ranked = sorted((i, f.sample) for fs in by_code.values() for i, f in enumerate(fs[:4]))
    chosen: dict[str, list[Finding]] = {}
    for _, sample in ranked:
        if len(chosen) < _MAX_SUSPECTS:
            chosen[sample] = [f for f in mine if f.sample == sample]
    if not chosen:
        return ""
    figures = [_figure(report, key, found) for key, found in chosen.items()]
    name = escape(report.listing.root.name)
    return f'<h2>Samples of {name} with findings</h2><div class="samples">{"".join(figures)}</div>'


def _samples(report: SetReport) -> str:
    keys = report.checked
    figures = [_figure(report, keys[i], []) for i in spread_indices(len(keys), _MAX_SAMPLES)]
    name = escape(report.listing.root.name)
    return f'<h2>Samples of {name}</h2><div class="samples">{"".join(figures)}</div>'


def _figure(report: SetReport, key: str, found: Sequence[Finding]) -> str:
    files = report.listing.sample(key)
    cells = "".join(
        _cell(files.get(modality.name), modality) for modality in report.listing.modalities
    )
    worst = min((f.severity for f in found), key=SEVERITIES.index, default="")
    codes = "".join(
        f' <span class="tag {s}">{code} ({escape(modality)})</span>'
        for s, code, modality in dict.fromkeys((f.severity, f.code, f.modality) for f in found)
    )
    caption = f"<figcaption>{escape(key)}{codes}</figcaption>"
    return f'<figure class="{worst}"><div>{cells}</div>{caption}</figure>'


def _cell(file: File | None, modality: Modality) -> str:
    if file is None:
        return f"<span>{escape(modality.name)}<br>missing</span>"
    uri = thumbnail_uri(file, modality)
    if uri is None:
        return f"<span>{escape(modality.name)}<br>not readable</span>"
    return f'<img src="{uri}" alt="{escape(modality.name)}" title="{escape(file.path)}">'


def _modalities(report: SetReport) -> str:
    cards = [modality_card(modality, report) for modality in report.listing.modalities]
    name = escape(report.listing.root.name)
    return f'<h2>Modalities of {name}</h2><div class="grid">{"".join(cards)}</div>'


def _agreement(report: SetReport) -> str:
    """Table of the edge correlation of each pair of modalities."""
    rows = []
    for (a, b), s in report.pairs.items():
        verdict: tuple[Severity | str, str] = (
            ("good", "detects misalignment")
            if s.telling
            else ("warning", "too weak to detect misalignment")
        )
        rows.append(
            f"<tr><td>{escape(a)} and {escape(b)}</td>"
            f'<td class="num">{s.samples:,}</td><td class="num">{s.median:.3f}</td>'
            f'<td class="num">{s.chance:.3f} ± {s.std:.3f}</td>'
            f'<td class="num">{s.deviations(s.median):.1f}</td>'
            f'<td><span class="tag {verdict[0]}">{verdict[1]}</span></td></tr>'
        )
    if not rows:
        return ""
    return (
        f"<h2>Do the modalities of {escape(report.listing.root.name)} agree?</h2>"
        '<div class="card"><table><tr><th>edges of</th>'
        '<th class="num">samples</th><th class="num">median correlation</th>'
        '<th class="num">of other samples</th><th class="num">deviations above</th><th></th></tr>'
        f"{''.join(rows)}</table></div>"
    )
