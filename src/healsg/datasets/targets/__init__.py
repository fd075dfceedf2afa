"""Targets: names of classes, groups, columns of tables, label noise, labels left out or replaced."""
