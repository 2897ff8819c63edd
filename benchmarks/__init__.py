"""Slow sweeps: scripts, not tests. Each says in its docstring how to run it."""
