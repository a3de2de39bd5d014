"""Distillation methods of the kind: relations. One file a method."""
