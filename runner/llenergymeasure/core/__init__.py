"""The pure part that runner and operator share: no clock, no I/O, no randomness."""
