"""Data sets: one file each, subclasses of ``healsg.data.TaskData``; shared code is in the subpackages."""
