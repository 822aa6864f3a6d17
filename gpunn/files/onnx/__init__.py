"""Models as ONNX graphs: written for other programs, and read."""
