"""Logs and the output folder of a run.

``paths`` names the files of the output folder, ``lock`` keeps other runs out of it;
``logger.RunLogger`` writes log lines and pictures, ``log_rows`` cuts them on resume, ``trackers``
sends them on; ``window`` averages values and times steps between two lines; ``known_metrics`` has
titles and units, ``score_tables`` prints evaluations and ``summary`` the end of a run.
"""
