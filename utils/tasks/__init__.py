"""Tasks: a batch in, losses out; and their evaluators."""
