"""Distillation methods of the kind: boundary. One file a method."""
