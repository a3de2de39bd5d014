"""Distillation methods of the kind: features. One file a method."""
