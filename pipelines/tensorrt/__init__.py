"""Compiling a bundle's nets with TensorRT: precision put into the ONNX, checks, the builder, a cache."""
