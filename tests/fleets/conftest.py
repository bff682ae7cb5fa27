"""Fixtures for the tests of fleets: the command line as users have it."""

from tests.e2e.conftest import shell

__all__ = ["shell"]
