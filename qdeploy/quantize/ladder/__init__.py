"""The plane ladder: one code tree, of which every prefix of planes is a weight fitted for that size.

    W_l[n, k] = scale_l[n, group of k] * (code[n, k] with only its first l bits, the rest at the middle)

All levels share the codes; each has its own scales and an output bias. They are fitted jointly to the second moment of
the layer's inputs: rounding column by column as in GPTQ (arXiv 2210.17323), with one error to pass on per level, exact
refits of all scales, and coordinate descent on codes and scales.

    metric.py    a second moment as the loops read it
    loops.py     the loops, compiled (runtime/fit)       oracle.py    the same in numpy
    fit.py       which of them, in which order           tensor.py    the result as a tensor with rungs
    quantizer.py the method and its options
"""
