"""The same workloads in each library, as its own users would write them.

Each module has `prepare(work, steps)`, which returns two functions without arguments: one that
runs a measurement, and one that returns what to compare between libraries: the losses of so many
steps on the first batch, or some outputs.
"""
