"""Grafting."""
