"""What is published: the wheel, the source distribution, and what is there once it is installed.

`building` makes them, and environments for them. The tests look at what they hold and at one fresh
environment; `python -m tests.packaging` (`make check-dist`) tries every extra alone, and the tests
themselves against the wheel, on every Python that it finds.
"""
