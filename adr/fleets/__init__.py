"""Where workers run: one module for each kind of fleet, and the seam they share."""
