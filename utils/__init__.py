"""Runtime of the five training scripts, and nothing else.

``config/`` declares options, ``data/`` loads batches, ``tasks/`` defines what is trained,
``training/`` has the loop and the update, ``checkpoint/`` saves and resumes, ``distributed/``
coordinates processes, ``logs/`` writes what a run reports. Start reading at ``training/loop.py``.
"""
