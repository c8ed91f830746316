"""The training bench: configuration, data, optimiser, loop, logs."""
