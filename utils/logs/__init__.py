"""What a run reports: log lines, errors, the output folder.

``paths`` prepares the output folder; ``logger.RunLogger`` writes log lines and
pictures; ``window`` averages values and times steps between two lines; ``errors`` has the errors
that are shown without a traceback.
"""
