"""ONNX: towers with projector, prefill and decode step as graphs, and a runner on onnxruntime alone."""
