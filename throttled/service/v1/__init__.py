"""The protocol of the service, version 1, and what `make proto` generates of it."""
