"""Limits as a service over gRPC: the server, and the client for code that is not async."""
