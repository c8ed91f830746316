"""One HTML page of many runs: scores, curves, pictures, options. See ``tools/run_board.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tools.common.data_uri import encode
from tools.common.html_page import html_page
from tools.report.panels import Panel, evaluated, panels_of
from tools.report.run_log import Curve, Row, evaluations
from utils.config.parse import load_yaml
from utils.logs.known_metrics import Metric, goal_of, metrics_of, value_of
from utils.logs.paths import RunPaths
from utils.logs.score_tables import with_unit

COLOURS = (
    *("#4c78dd", "#e0722b", "#2f9e68", "#c94a6a", "#8a63d2"),
    *("#0e96a8", "#b8860b", "#7a7f8c", "#d653b1", "#5f8f1f"),
)
MAX_POINTS = 300
MAX_WIDTH = 1200  # of a picture, pixels
_OWN = frozenset({"output_dir", "wandb_run_name"})  # options that differ for no reason
_DASHES = ("", "6 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class BoardRun:
    """A run of the board.

    Attributes:
        name: Displayed name.
        paths: Its output folder.
        rows: Its log.
    """

    name: str
    paths: RunPaths
    rows: Sequence[Row]

    @cached_property
    def evaluations(self) -> list[Row]:
        """Evaluations during training."""
        return evaluations(self.rows)[0]

    @cached_property
    def test(self) -> Row:
        """The last test; empty without one."""
        return (evaluations(self.rows)[1] or [{}])[-1]

    @cached_property
    def metrics(self) -> list[Metric]:
        """Metrics over all modalities or tasks."""
        return [m for m in evaluated(self.rows) if not m.part]

    @cached_property
    def goal(self) -> Metric | None:
        """What selects the best checkpoint."""
        return goal_of(self.metrics)

    @cached_property
    def best(self) -> Row:
        """The best evaluation; empty without one."""
        goal = self.goal
        index = goal.best([value_of(r, goal) for r in self.evaluations]) if goal else None
        return {} if index is None else self.evaluations[index]

    @cached_property
    def options(self) -> dict[str, str]:
        """Its configuration; empty if it cannot be read."""
        try:
            content = load_yaml(self.paths.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return {}
        return {str(k): _plain(v) for k, v in content.items()} if isinstance(content, dict) else {}

    @property
    def pictures(self) -> dict[str, Path]:
        """The last picture of every kind."""
        found = sorted(self.paths.pictures.glob("*-*.png"))
        return {path.stem.rpartition("-")[0]: path for path in found}


def render_board(runs: Sequence[BoardRun], title: str) -> str:
    """Render the page.

    Args:
        runs: Runs with distinct names.
        title: Title of the page.
    """
    panels = panels_of({run.name: run.rows for run in runs})
    colours = [COLOURS[i] if i < len(COLOURS) else _hue(i) for i in range(len(runs))]
    figures = "".join(_figure(i, panel, len(runs)) for i, panel in enumerate(panels))
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    body = [
        f'<h1>{escape(title)}</h1><p class="soft">{count}</p>',
        '<div class="bar"><input id="filter" type="search" aria-label="Filter" placeholder="'
        'Filter by name or option, such as lr=0.001"></div>',
        *_scores(runs, colours),
        "<section><h2>Curves</h2><noscript>The curves need JavaScript.</noscript>",
        f'<div class="grid">{figures}</div></section>',
        _pictures(runs),
        _differences(runs),
        _all_options(runs),
        f'<script type="application/json" id="data">{_data(runs, panels, colours)}</script>',
    ]
    here = Path(__file__)
    style, script = (here.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js"))
    return html_page(title, "\n".join(filter(None, body)), style, script)


def _scores(runs: Sequence[BoardRun], colours: Sequence[str]) -> Iterator[str]:
    """A table for every goal, the best run first."""
    goals: dict[str, Metric | None] = {}
    for run in runs:
        goals.setdefault(run.goal.title if run.goal else "", run.goal)
    for title, goal in goals.items():
        mine = [i for i, run in enumerate(runs) if (run.goal.title if run.goal else "") == title]
        if goal is not None:
            sign = -1 if goal.higher_is_better else 1
            values = {i: sign * value_of(runs[i].best, goal) for i in mine}
            mine.sort(key=lambda i: (math.isnan(values[i]), values[i]))
        metrics = list(dict.fromkeys(m for i in mine for m in runs[i].metrics))
        tests = list(dict.fromkeys(m for i in mine for m in metrics_of(runs[i].test) if not m.part))
        first = [f"best {goal.heading}", "after epoch"] if goal else []
        heads = ["run", *first, *(_last(m, goal) for m in (*metrics, *tests)), "steps", "images/s"]
        buttons = "".join(
            f'<th{" class=num" if n else ""}><button type="button">{escape(head)}</button></th>'
            for n, head in enumerate(heads)
        )
        lines = [_score_line(i, runs[i], colours[i], goal, metrics, tests) for i in mine]
        if goal is not None and len(lines) > 1:
            lines[0] = lines[0].replace('class="num"', 'class="num best"', 1)
        name = f"Scores: {escape(title)}" if title else "Runs without evaluations"
        yield (
            f'<section><h2>{name}</h2><div class="card" tabindex="0" role="region" aria-label='
            f'"{name}"><table><thead><tr>{buttons}</tr></thead><tbody>{"".join(lines)}</tbody>'
            "</table></div></section>"
        )


def _last(metric: Metric, goal: Metric | None) -> str:
    """Heading of the value in the last evaluation."""
    return f"last {metric.heading}" if goal and metric.key == goal.key else metric.heading


def _score_line(
    index: int,
    run: BoardRun,
    colour: str,
    goal: Metric | None,
    metrics: Sequence[Metric],
    tests: Sequence[Metric],
) -> str:
    """Row of a table: the best value of the goal, then the values of the last evaluation."""
    last = run.evaluations[-1] if run.evaluations else {}
    train = [row for row in run.rows if row.get("kind") == "train"]
    speeds = [row["images_per_s"] for row in train if row.get("images_per_s")]
    cells = []
    if goal is not None:
        cells += [_number(value_of(run.best, goal), goal), _cell(run.best.get("epoch"), ".4g")]
    cells += [_number(value_of(last, m), m) for m in metrics]
    cells += [_number(value_of(run.test, m), m) for m in tests]
    cells += [_cell(run.rows[-1].get("step"), ",d")]
    cells += [_cell(float(np.median(speeds)) if speeds else None, ".3g")]
    box = f'<input type="checkbox" checked data-run="{index}" aria-label="Draw {escape(run.name)}">'
    swatch = f'<span class="swatch" style="background:{colour}"></span>'
    name = f'<td data-value="{escape(run.name)}">{box} {swatch}{escape(run.name)}</td>'
    return f'<tr data-of="{index}">{name}{"".join(cells)}</tr>'


def _number(value: float, metric: Metric) -> str:
    if not math.isfinite(value):
        return '<td class="num">–</td>'
    text = with_unit(value, metric).removesuffix(metric.unit).strip()
    return f'<td class="num" data-value="{value!r}">{text}</td>'


def _cell(value: Any, form: str) -> str:
    if not isinstance(value, (int, float)):
        return '<td class="num">–</td>'
    return f'<td class="num" data-value="{value!r}">{value:{form}}</td>'


def _figure(index: int, panel: Panel, runs: int) -> str:
    """An empty plot; the script draws it."""
    words: dict[bool | None, str] = {True: "higher is better", False: "lower is better"}
    better = words.get(panel.higher_is_better, "")
    names = list(dict.fromkeys(name for _, name in panel.curves if name))
    styles = [
        f'stroke-dasharray="{_DASHES[i % len(_DASHES)]}"'
        if runs > 1
        else f'style="stroke:{COLOURS[i % len(COLOURS)]}"'
        for i in range(len(names))
    ]
    key = "".join(
        f'<svg viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" '
        f"{style}/></svg>{escape(name)}"
        for style, name in zip(styles, names, strict=True)
    )
    legend = f'<div class="soft key">{key}</div>' if names else ""
    return (
        f'<figure data-panel="{index}"><h3>{escape(panel.title)} <span class="soft">{better}</span>'
        f"</h3><svg></svg>{legend}<output></output></figure>"
    )


def _pictures(runs: Sequence[BoardRun]) -> str:
    figures = []
    for i, run in enumerate(runs):
        for kind, path in run.pictures.items():
            name = escape(f"{run.name}: {kind}, step {int(path.stem.rpartition('-')[2]):,}")
            image = f'<img src="{_picture_uri(path)}" alt="{name}">'
            caption = f"<figcaption>{name}</figcaption>"
            figures.append(f'<figure data-of="{i}">{image}{caption}</figure>')
    grid = f'<div class="grid">{"".join(figures)}</div>'
    return f"<section><h2>Last pictures</h2>{grid}</section>" if figures else ""


def _picture_uri(path: Path) -> str:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((MAX_WIDTH, 8 * MAX_WIDTH))
    return encode(np.asarray(picture))


def _differences(runs: Sequence[BoardRun]) -> str:
    """A table per script of the options that are not the same in all its runs."""
    groups: dict[frozenset[str], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(frozenset(run.options), []).append(i)
    tables = [_difference_table(runs, mine) for mine in groups.values() if len(mine) > 1]
    return f"<section><h2>Differences</h2>{''.join(tables)}</section>" if tables else ""


def _difference_table(runs: Sequence[BoardRun], mine: Sequence[int]) -> str:
    options = {i: runs[i].options for i in mine}
    names = [name for name in options[mine[0]] if name not in _OWN]
    differing = [n for n in names if len({given[n] for given in options.values()}) > 1]
    heads = "".join(f'<th data-of="{i}">{escape(runs[i].name)}</th>' for i in mine)
    lines = []
    for name in differing:
        cells = "".join(f'<td data-of="{i}">{escape(options[i][name])}</td>' for i in mine)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    if not lines:
        lines = [f'<tr><td colspan="{len(mine) + 1}">All options are the same.</td></tr>']
    return (
        '<div class="card options" tabindex="0" role="region" aria-label="Differences from '
        f'{escape(runs[mine[0]].name)}"><table>'
        f"<tr><th>option</th>{heads}</tr>{''.join(lines)}</table></div>"
    )


def _all_options(runs: Sequence[BoardRun]) -> str:
    blocks = []
    for i, run in enumerate(runs):
        text = "\n".join(f"{name}: {value}" for name, value in run.options.items())
        blocks.append(
            f'<details data-of="{i}"><summary>{escape(run.name)}</summary>'
            f"<pre>{escape(text or 'no config.yaml')}</pre></details>"
        )
    return f'<section><h2>Options</h2><div class="card">{"".join(blocks)}</div></section>'


def _data(runs: Sequence[BoardRun], panels: Sequence[Panel], colours: Sequence[str]) -> str:
    """What the script draws, as JSON that may stand in HTML."""
    numbers = {run.name: i for i, run in enumerate(runs)}
    content = {
        "colours": COLOURS,
        "runs": [
            {"name": run.name, "colour": colour, "text": _searched(run)}
            for run, colour in zip(runs, colours, strict=True)
        ],
        "panels": [
            {
                "title": panel.title,
                "reference": panel.reference,
                "curves": [
                    {"run": numbers[run], "name": name, **_points(points)}
                    for (run, name), points in panel.curves.items()
                ],
            }
            for panel in panels
        ],
    }
    return json.dumps(content).replace("<", "\\u003c")


def _searched(run: BoardRun) -> str:
    return " ".join([run.name, *(f"{k}={v}" for k, v in run.options.items())]).lower()


def _points(points: Curve) -> dict[str, list[float]]:
    """A curve of at most :data:`MAX_POINTS`: means of neighbours."""
    finite = np.isfinite(points[1])
    x, y = points[0][finite], points[1][finite]
    if len(x) > MAX_POINTS:
        x, y = (np.array([part.mean() for part in np.array_split(v, MAX_POINTS)]) for v in (x, y))
    return {"x": x.round(2).tolist(), "y": [float(f"{v:.6g}") for v in y]}


def _hue(index: int) -> str:
    return f"hsl({index * 137.5 % 360:.0f} 55% 52%)"


def _plain(value: Any) -> str:
    """An option's value as text."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
