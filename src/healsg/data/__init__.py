"""Data: ``TaskData`` and its components. The names that users need are re-exported here."""

from healsg.data.base import Needs as Needs
from healsg.data.base import TaskData as TaskData
from healsg.data.info import DataInfo as DataInfo
from healsg.data.loader import Loader as Loader
from healsg.data.source import DatasetSource as DatasetSource
from healsg.data.source import TensorSource as TensorSource
from healsg.data.splits import stratified_split as stratified_split
