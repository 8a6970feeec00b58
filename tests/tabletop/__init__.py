"""A package, because some of its files have the same names as others in tests/."""
