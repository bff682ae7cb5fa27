"""The tests of adr; started servers stand in `servers`, the fault-injecting proxy in `proxy`."""
