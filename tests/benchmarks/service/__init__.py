"""How fast the service is, as shares of what gRPC itself does."""
