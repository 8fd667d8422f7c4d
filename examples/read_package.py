"""Reads a qdeploy package with the standard library and numpy alone, as proof that the form is simple.

    python examples/read_package.py PACKAGE [TENSOR]

Lists the tensors of a package, or decodes one to float32. The form is described at the top of qdeploy/ir/package.py,
the grammar of an encoding at the top of qdeploy/ir/encoding.py. What is left out here: masks, rungs, and checks of a
file that is not trusted.
"""

import json
import sys
from pathlib import Path

import numpy as np

PLAIN = {"U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}


def read_shard(path):
    """A safetensors file: u64 length, JSON header, bytes. Returns {name: array}."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, row in json.loads(data[8:start]).items():
        begin, end = row["data_offsets"]
        raw = np.frombuffer(data, np.uint8, end - begin, start + begin)
        if row["dtype"] == "BF16":  # the upper half of a float32
            raw = (raw.view("<u2").astype("<u4") << 16).view("<f4")
        elif row["dtype"] in PLAIN:
            raw = raw.view(PLAIN[row["dtype"]])
        arrays[name] = raw.reshape(row["shape"])
    return arrays


def unpack(codes, arrays):
    """The integer codes of a grid, in one of the four layouts."""
    kind, *numbers = codes["layout"]
    shape = codes["codes"]
    first = arrays[codes["data"][0][0]]
    if kind == "plain":
        return first.reshape(shape)
    if kind == "bits":  # a little-endian bit stream along the last axis
        width = numbers[0]
        bits = np.unpackbits(first, axis=-1, bitorder="little")[..., : shape[-1] * width]
        weights = 1 << np.arange(width, dtype=np.uint32)
        return (bits.reshape(*shape, width) * weights).sum(-1)
    if kind == "planes":  # most significant first
        planes = [np.unpackbits(arrays[b[0]], axis=-1, bitorder="little")[..., : shape[-1]] for b in codes["data"]]
        return sum(p.astype(np.uint32) << (len(planes) - 1 - i) for i, p in enumerate(planes))
    base, digits = numbers  # radix: the first code is the least significant digit
    spread = first[..., None].astype(np.uint32) // base ** np.arange(digits, dtype=np.uint32) % base
    return spread.reshape(*first.shape[:-1], -1)[..., : shape[-1]]


def named_table(name, codes):
    """The value of a code in a named number format."""
    if name == "sign":
        return codes.astype(np.float32) * 2 - 1
    if name == "ternary":
        return codes.astype(np.float32) - 1
    if name.startswith("int") and codes.dtype.kind == "u":
        bits = int(name[3:])
        return ((codes.astype(np.int64) ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.float32)
    if name == "e8m0":
        return np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    if name == "e2m1":
        half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
        return np.concatenate([half, -half])[codes]
    return codes.astype(np.float32)  # uintN, and floats that read_shard has already given as such


def spread(param, shape, arrays):
    """One number per tile -> one number per element."""
    values = decode(param["values"], arrays)
    if "index" in param:
        values = np.take(values, arrays[param["index"][0]], axis=-1)
    for axis, tile in enumerate(param["tile"]):
        values = np.repeat(values, tile, axis) if tile > 1 else values
    return values[tuple(slice(n) for n in shape)]


def decode(node, arrays):
    """((table[code] - zero) * scale) + offset, float32 in this order; or u @ vt."""
    if "u" in node:
        return decode(node["u"], arrays) @ decode(node["vt"], arrays)
    codes, table = unpack(node, arrays), node["table"]
    if isinstance(table, str):
        value = named_table(table, codes)
    else:
        values = arrays[table["values"][0]].astype(np.float32)  # [tables, levels, *block]
        which = spread(table["select"], codes.shape, arrays).astype(int) if "select" in table else 0
        value = values[which, codes]
        n = codes.ndim
        if value.ndim > n:  # vector codes: the axes of grid and block alternate
            order = [axis for i in range(n) for axis in (i, n + i)]
            value = value.transpose(order).reshape([a * b for a, b in zip(codes.shape, values.shape[2:], strict=True)])
    if "zero" in node:
        value = value - spread(node["zero"], value.shape, arrays)
    if "scale" in node:
        scale = spread(node["scale"], value.shape, arrays)
        value = value / scale if node["scale"].get("divide") else value * scale
    if "offset" in node:
        value = value + spread(node["offset"], value.shape, arrays)
    return value.astype(np.float32)


def read_tensor(folder, name):
    """A tensor of a package as float32."""
    manifest = json.loads((folder / "qdeploy.json").read_text())
    number, shard = manifest["tensors"][name]
    tree = manifest["encodings"][number]
    mine = {k.rsplit("#", 1)[1]: v for k, v in read_shard(folder / shard).items() if k.rsplit("#", 1)[0] == name}
    total = np.zeros(tree["shape"], np.float32)
    for term in tree["terms"]:
        if "where" in term:
            raise SystemExit("this reader leaves masked terms out")
        total += decode(term["values"], mine).ravel()[: total.size].reshape(total.shape)
    for key, apply in (("scale", np.multiply), ("offset", np.add)):
        if key in tree:
            total = apply(total, spread(tree[key], total.shape, mine))
    return total


def main():
    """Lists tensors, or prints one."""
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        manifest = json.loads((folder / "qdeploy.json").read_text())
        for name, (number, shard) in manifest["tensors"].items():
            print(name, manifest["encodings"][number]["shape"], shard)
    else:
        print(read_tensor(folder, sys.argv[2]))


if __name__ == "__main__":
    main()
