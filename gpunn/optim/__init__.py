"""Optimizers and schedules: what an optimizer is, and which there are."""
