"""Distillation methods of the kind: data free. One file a method."""
