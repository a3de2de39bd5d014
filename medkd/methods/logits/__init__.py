"""Distillation methods of the kind: logits. One file a method."""
