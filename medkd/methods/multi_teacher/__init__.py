"""Distillation methods of the kind: multi teacher. One file a method."""
