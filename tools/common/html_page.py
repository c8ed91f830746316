"""Self-contained HTML pages: nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_page(title: str, body: str, style: str, script: str = "") -> str:
    """Wrap a body in a page with the common style, light or dark as the browser.

    Args:
        title: Title, plain text.
        body: HTML inside ``main``.
        style: CSS of this page.
        script: JavaScript that runs at the end.
    """
    code = f"\n<script>\n{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{_STYLE.read_text(encoding='utf-8')}{style}"
        f"</style></head>\n<body><main>\n{body}\n</main>{code}</body></html>\n"
    )
