"""Models: one file each, subclasses of ``healsg.model.TaskModel``."""
