"""Data sets: one file each, subclasses of ``healsg.data.TaskData``; what several of them share lies in rooms below."""
