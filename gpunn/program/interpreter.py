"""The interpreter of the CPU's programs: compiled, for one thread or several."""

from __future__ import annotations

from typing import Any

from gpunn.kernels.native import call_at, compiled, count_up, read
from gpunn.program.instructions.words import MADE, SIZE, START, STEP, integers

#: The bytes of a thread's context, and of a segment.
CONTEXT_SIZE = 256
SEGMENT_SIZE = 64


@compiled
def run_program(
    thread: int,
    threads: int,
    contexts: int,
    segments: int,
    n_segments: int,
    meeting: int,
    one: Any,
) -> None:
    """Run the steps of some segments, as one of `threads` that all do.

    Parameters
    ----------
    thread, threads : int
        Which of how many.
    contexts : int
        Where the threads' contexts begin; see `gpunn.program.instructions.CONTEXT`.
    segments : int
        Where the threads' segments begin: for each the address of its instructions and their
        number, that of its patches and their number, the rows of a batch, and the number of steps.
        An instruction without a function is a meeting. A patch is four whole numbers: the address
        of a word, the word of the context that has the data's address, bytes to add, and bytes a
        row.
    n_segments : int
        Of each thread.
    meeting : int
        The address of two whole numbers: how many threads have come to a meeting so far, and
        whether they are to wait no longer.
    one : float32 or float64
        1, in the dtype of the program.
    """
    ctx = contexts + CONTEXT_SIZE * thread
    context = integers(ctx, 20)
    made = integers(context[MADE], 1)
    met, step, start = 0, 0, context[START]
    for i in range(n_segments):
        segment = integers(segments + SEGMENT_SIZE * (thread * n_segments + i), 8)
        table, n_instructions, patches, n_patches = segment[0], segment[1], segment[2], segment[3]
        for _ in range(segment[5]):
            if read(meeting + 8) != 0:
                return
            context[START] = start
            context[STEP] = step
            for j in range(n_patches):
                patch = integers(patches + 32 * j, 4)
                integers(patch[0], 1)[0] = context[patch[1]] + patch[2] + patch[3] * start
            for j in range(n_instructions):
                instruction = table + SIZE * j
                function = integers(instruction, 1)[0]
                if function != 0:
                    call_at(function, instruction, ctx, one)
                else:
                    met += threads
                    if not _meet(meeting, met):
                        return
            step += 1
            start += segment[4]
            made[0] = step  # each thread writes the same


@compiled
def _meet(meeting: int, wanted: int) -> bool:
    """Wait until `wanted` have come, all counted from the start; return False if there is no use.

    A thread that waits keeps its processor: the wait is short, and a sleep would take longer.
    """
    count_up(meeting)
    while read(meeting) < wanted:
        if read(meeting + 8) != 0:
            return False
    return True
