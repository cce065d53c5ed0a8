"""Reductions over all pairs of a batch, in memory linear in it, on any mesh.

`program` is the differentiable function, `travel` how columns reach all devices, `sweep` the loop
over tiles, `tile` what a tile knows of its pairs, `statistics` what can be reduced from it, `form`
which of them a loss wants. Losses are made of statistics: none of them has a kernel of its own.
"""
