"""What ``healsg new`` writes: the modules of this package, with the user's names instead of ``New...``."""
