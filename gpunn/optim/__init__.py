"""Optimizers, one file for each, and learning-rate schedules."""
