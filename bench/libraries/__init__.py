"""The same workloads in each library, as its own users would write them.

Each module has `serves(work, variant)`, whether that way to use the library can run a workload,
and `prepare(work, steps, variant)`, which returns two functions without arguments: one runs a
measurement, the other returns what to compare between libraries: the losses of so many steps on
the first batch, without dropout, or some outputs.
"""
