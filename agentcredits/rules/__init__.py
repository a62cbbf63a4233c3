"""The rules: pure functions and facts. No I/O, no clock, no SQL."""
