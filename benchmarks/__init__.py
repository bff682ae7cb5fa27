"""Benchmarks of adr: each row of ``docs/performance.md``, with its peers beside it.

``python -m benchmarks [NAME...] [--quick]`` from a checkout prints the tables. One module a
benchmark, listed in `benchmarks.__main__`; what they share stands in `benchmarks.measure`
(running and timing), `benchmarks.table`, `benchmarks.cloud` and `benchmarks.inputs`.

Absolute times depend on the machine and on what else it does. Compare the ratios, which are
taken between runs that alternate, the CPU time, and the number of calls.
"""
