"""Distillation methods of the kind: self distillation. One file a method."""
