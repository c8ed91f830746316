"""Published data sets, arranged as the training scripts read them (see SETUP.md)."""
