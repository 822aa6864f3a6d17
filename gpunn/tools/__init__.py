"""Checks of gradients and of this machine, benchmarks, and plots."""
