"""The same workloads in each library, as its own users would write them.

Each module has

- `serves(work, variant)`: whether that way to use the library can run a workload;
- `prepare(work, steps, variant, device)`, which returns two functions without arguments: one runs
  a measurement, and has waited for the device when it returns; the other returns what to compare
  between libraries: the losses of so many steps on the first batch, without dropout, or some
  outputs;
- `version(device)`, which fails if the library cannot use that device;
- `note()`, if there is something to say of how the measurement has run.

A device is "cpu" or "gpu", the first that CUDA shows to the process.
"""


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """The library does not do what was asked for; the message says what is missing."""
