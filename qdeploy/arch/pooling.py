"""One vector of the tokens' vectors: what sentence models and classifiers take of a sequence."""

from __future__ import annotations

from collections.abc import Callable

from qdeploy.arch.builder import Builder

MASK = "attention_mask"
Pool = Callable[[Builder, str, str], str]
"""Adds what makes one vector of those of all tokens, under a name."""


def first_token(add: Builder, x: str, name: str) -> str:
    """The first token's vector: [B, T, width] -> [B, width]."""
    first = add.node("Slice", x, name=f"{name}.first", starts=[0], ends=[1], axes=[1])
    return add.node("Squeeze", first, name=name, axes=[1])


def last_token(add: Builder, x: str, name: str) -> str:
    """The vector of the last token that the mask lets pass, on whichever side the padding is: [B, width]."""
    return add.node("LastToken", x, MASK, name=name)


def greatest(add: Builder, x: str, name: str) -> str:
    """The greatest of each column among the tokens that the mask lets pass: [B, width]."""
    return add.node("GreatestToken", x, MASK, name=name)


def mean(add: Builder, x: str, name: str) -> str:
    """The mean of the tokens that the mask lets pass: [B, width]."""
    return add.node("MeanPool", x, MASK, name=name)


def root_mean(add: Builder, x: str, name: str) -> str:
    """Their sum divided by the square root of their number: [B, width]."""
    weight = add.node("Cast", MASK, name=f"{name}.mask", to="F32")
    count = add.node("ReduceSum", weight, name=f"{name}.count", axes=[1], keepdims=1)  # [B, 1]
    row = add.node("Unsqueeze", weight, name=f"{name}.row", axes=[1])
    total = add.node("Squeeze", add.node("MatMul", row, x, name=f"{name}.sum"), name=f"{name}.total", axes=[1])
    return add.node("Div", total, add.node("Sqrt", count, name=f"{name}.root"), name=name)
