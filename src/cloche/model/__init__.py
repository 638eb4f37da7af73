"""Frozen data (layer 1)."""
