"""The interactive demo, a Gradio page served on the loopback interface.

Start at `serve.py`, then `application.py` (server settings) and `page_layout.py` (components).
`events.py` connects components to `session.py`, which turns a scene and the painters' values into
a page update. `engine.py` holds the model; `scenes.py` and `uploads.py` read images; `strokes.py`
checks what the painters in `static/` send; `panels.py` renders predictions as HTML.
"""
