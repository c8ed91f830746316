"""``multimae predict``: images in, files of predictions out.

``samples.py`` finds the images, ``predictor.py`` turns samples into predictions, ``loading.py``
reads them in batches, ``outputs.py`` writes files, ``truth_files.py`` reads truths. Start reading
at ``prediction_run.py``.
"""
