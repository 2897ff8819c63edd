"""Comparing backends honestly: each in a process of its own, all against one clock, all on the same inputs.

run        the way of the data: targets built, processes started, outputs compared, rounds run, rows made
process    one backend's process as seen from here (`worker` is the other side): a crash or a hang costs one row
rounds     turns of short slices, so that the machine's noise hits all backends alike
ratios     how many times faster, with the interval that the noise leaves
results    what a bench knows, as the JSON that docs/bench.md describes
report     the same as a terminal's table, as Markdown, and as one HTML page
"""
