"""Distillation methods of the kind: online. One file a method."""
