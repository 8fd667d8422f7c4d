"""Networks of integers in ONNX: lowering.py in integer operators alone, fast.py on the 8-bit kernels."""
