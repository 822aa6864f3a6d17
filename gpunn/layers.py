"""The former place of `gpunn.nn`. Pickles from before the move refer to it, and are refused."""

from gpunn.errors import moved

raise moved("gpunn.layers")
