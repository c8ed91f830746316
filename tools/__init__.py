"""Commands: one file each, with a folder of the same topic for further code.

``make_rooms.py`` renders a data set, ``check_dataset.py`` examines one, ``pack_dataset.py`` packs
one, ``demo_app.py`` opens the page; ``--help`` of each says what it does. Nothing outside imports
them.
"""
