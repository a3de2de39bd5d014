"""Distillation methods of the kind: adversarial. One file a method."""
