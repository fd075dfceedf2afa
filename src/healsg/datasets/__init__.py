"""Data sets: one file each, subclasses of ``healsg.data.TaskData``."""
