"""Reading and writing files of weights, checkpoints and ONNX graphs."""
