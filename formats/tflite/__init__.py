"""TFLite networks: reader.py opens them, schema.py reads the FlatBuffers tables, graph.py the operators."""
