"""Runs that are killed and poisoned on purpose, and what becomes of them."""
