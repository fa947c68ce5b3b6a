"""How fast, how even and how small: ratios measured within one run. `make bench` runs them."""
