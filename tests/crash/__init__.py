"""Crash tests: real processes, real kills."""
