"""The compiled interpreter of CPU programs, for one or more threads."""

from __future__ import annotations

from typing import Any

from gpunn.kernels.native import call_at, compiled, count_up, read
from gpunn.program.instructions.words import SIZE, START, STEP, STEPS_DONE, integers

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
    """Run the steps of some segments in one of `threads` threads.

    Parameters
    ----------
    thread, threads : int
        This thread's index, and the number of threads.
    contexts : int
        The address of the threads' contexts; see `CONTEXT` in `gpunn.program.instructions.words`.
    segments : int
        The address of the threads' segments. A segment is the address and number of its
        instructions, the address and number of its patches, the rows of a batch, and the number
        of steps. An instruction without a function is a meeting. A patch is four integers: the
        address of a word, the index of the context word with the data's address, the bytes to
        add, and the bytes per row.
    n_segments : int
        The number of segments of each thread.
    meeting : int
        The address of two integers: the number of arrivals at meetings so far, and whether the
        threads must stop.
    one : float32 or float64
        1, in the dtype of the program.
    """
    ctx = contexts + CONTEXT_SIZE * thread
    context = integers(ctx, 20)
    steps_done = integers(context[STEPS_DONE], 1)
    arrivals, step, start = 0, 0, context[START]
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
                    arrivals += threads
                    if not _meet(meeting, arrivals):
                        return
            step += 1
            start += segment[4]
            steps_done[0] = step  # all threads write the same number


@compiled
def _meet(meeting: int, wanted: int) -> bool:
    """Wait for `wanted` arrivals since the start; return False if the threads must stop.

    Threads busy-wait: the wait is shorter than a sleep.
    """
    count_up(meeting)
    while read(meeting) < wanted:
        if read(meeting + 8) != 0:
            return False
    return True
