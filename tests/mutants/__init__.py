"""Do our checks find what they are for? Bugs that we plant in a copy of our own source, one at a time.

`python -m tests.mutants [NAME...]` tries them. A file in `patches/` is one bug: a unified diff, whose first
comment line says what the bug is and which invariant of the design it breaks, and whose next ones name the
checks that are expected to notice, the cheapest first.
"""
