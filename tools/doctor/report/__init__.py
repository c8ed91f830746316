"""Report of the data doctor.

``report_files`` writes the output folder (start there), ``report_page`` builds the HTML page,
``modality_cards`` the statistics of one modality with its chart, ``thumbnails`` the images.
"""
