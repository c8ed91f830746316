"""Interior."""
