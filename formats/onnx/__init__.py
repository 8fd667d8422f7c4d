"""ONNX networks: reader.py opens them, graph.py and nodes.py read their operators."""
