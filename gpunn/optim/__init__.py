"""Optimizers and learning-rate schedules, one file for each kind."""
