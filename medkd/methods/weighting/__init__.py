"""Distillation methods of the kind: weighting. One file a method."""
