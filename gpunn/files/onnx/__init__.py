"""Export models as ONNX graphs, and import them."""
