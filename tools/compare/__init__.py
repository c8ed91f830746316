"""Compare starting points of fine-tuning over several seeds, for `tools/results.py`.

`comparison.py` reads a plan from `cfgs/results` and the scores from the runs' logs;
`comparison_report.py` writes the table into a Markdown file and draws the curves.
"""
