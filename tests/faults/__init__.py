"""Real faults under load: what callers see, and what is admitted.

`load` has the callers, `stages` what befalls a single server, `failovers` what befalls servers that
stand in for one another, `fleet` several processes at once. The tests hold what they find within
bounds; `python -m tests.faults` runs the same for longer, and prints the tables of
docs/reliability.md.
"""
