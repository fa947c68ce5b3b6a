"""`python -m throttled`: the same as the command `throttled`."""

from throttled.cli import main

if __name__ == "__main__":
    main()
