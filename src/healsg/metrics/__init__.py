"""Metrics beside the accuracy, by the kind of task; what they build upon is ``healsg.metric``."""
