"""Export of encoders and generators to ONNX and TensorRT, and a runtime that needs no torch."""
