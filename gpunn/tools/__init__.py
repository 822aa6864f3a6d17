"""Checks of gradients, and of this machine."""
