"""Metrics beside the accuracy, by the kind of task; what they build upon is ``healsg.metric``."""

from healsg.metric import Accuracy as Accuracy
from healsg.metric import Metric as Metric
from healsg.metric import precise as precise
