"""Layers: what a layer is, and which there are."""
