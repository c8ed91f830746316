"""Data sets of the fine-tuning tasks.

:mod:`~utils.data.sets.class_folders`: classification, one class per folder.
:mod:`~utils.data.sets.label_maps`: semantic segmentation.
:mod:`~utils.data.sets.taskonomy_views`: Taskonomy's files, tasks and splits.
"""
