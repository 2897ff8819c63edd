"""TensorRT: from an ONNX file to a strongly typed engine, in two libraries that share one API.

The precision is in the ONNX graph already; what is here finds a library, builds, proves what precision the typed
network has, and runs engines where a GPU is. Nothing heavy is imported before it is needed.
"""
