"""The interactive demo, a page served on the loopback interface.

Start at ``api.py``, the actions of the page, and ``server.py``, which serves them and the files of
``static/``. ``engine.py`` holds a model; ``fill_in.py``, ``head_panels.py`` and
``feature_panels.py`` are the page's tabs; ``scenes.py``, ``uploads.py`` and ``photo_labels.py``
supply images; ``strokes.py`` checks painted patches; ``page_pictures.py`` encodes pictures.
"""
