"""Methods: one file each, subclasses of ``healsg.method.TaskMethod``."""
