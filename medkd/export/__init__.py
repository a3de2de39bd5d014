"""Export: ONNX and MONAI bundles, and the proof that they answer as the trained network does."""
