"""Code shared by several tools.

``jobs`` runs work over processes and collects errors, ``staging`` writes files without leaving
partial ones, ``target_folder`` is a data set in the making, ``png`` a fast PNG encoder,
``data_uri`` embeds images in HTML pages, ``html_page`` is their frame, ``origin`` says which commit
and hardware made a number.
"""
