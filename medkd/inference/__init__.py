"""Inference: sliding windows, trained models, files in and files out."""
