"""Networks that keep keys and values between runs, read as the decoders that they are.

    reading.py     the walk: from nodes of ONNX to composites with states; what stands in its way is named
    rows.py        operators that mean the same here, and casts, splits and reshapes that mean less
    attention.py   GroupQueryAttention and the rotations before it
    rotation.py    tables of cosines and sines as frequencies
    gates.py       products behind an activation as one MLP
    generator.py   genai_config.json

What a decoder is here: token ids in, logits out, and caches that only its attention takes. Values are float32, whatever
type they have between two nodes of the source.
"""
