"""TFLite networks: reader.py opens them, image.py and schema.py read the FlatBuffers tables, graph.py the operators."""
