"""Datasets, volumes, splits and what is known about them: everything between files and arrays."""
