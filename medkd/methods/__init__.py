"""Distillation methods: one file each, found through :mod:`medkd.methods.catalogue`."""
