"""Metrics by kind of task, in addition to accuracy; their base is ``healsg.metric``."""
