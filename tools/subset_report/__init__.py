"""What each modality is worth to a checkpoint: scores on every subset of its inputs."""
