"""What a data folder holds, and a start config for it: ``multimae init``.

:mod:`~multimae.specs.survey.stored_files` reads a few files of every folder,
:mod:`~multimae.specs.survey.guess_modality` guesses the fields of their modality,
:mod:`~multimae.specs.survey.data_survey` finds layout, splits and pairs, and
:mod:`~multimae.specs.survey.start_config` writes the YAML file.
"""
