"""Layers: the base class, and one file for each kind."""
