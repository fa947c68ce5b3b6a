"""Four processes that share the limits of an LLM service, and a server that enforces these.

`python -m tests.llm` measures what the headroom of the client is good for.
"""
