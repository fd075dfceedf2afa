"""What ``healsg new`` writes: the modules of this package, with names of the user's own in the place of ``New...``."""
