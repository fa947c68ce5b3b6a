"""The pages about moving from another library: what they say of it is true of that library.

Each package gets an environment of its own under `.benchmarks/`, made once, so that none of them
is a dependency of this project. See `python -m tests.migration --help`.
"""
