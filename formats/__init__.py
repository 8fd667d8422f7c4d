"""The front door: one file per published format.

A format is a module with

    NAME, TITLE                       what it is called, and one line about it
    WRITES                            whether source files can be written back from its tensors
    sniff(folder) -> Sniff            how surely this folder or file is of this format, and why
    read(folder) -> Model             tensors by their source names; nothing large is read yet
    codecs(source) -> tuple        how each source tensor is written back (only with WRITES)

(`qdeploy.contracts.formats`), and a row here says what its checkpoints look like, so that no module is imported that
cannot be meant. Other people's formats register a module or a row under the entry point group `qdeploy.formats`.
"""

from __future__ import annotations

from qdeploy.contracts.clues import INDEX, PACKAGE
from qdeploy.contracts.formats import NOT_MINE, FormatRow, Looks, Sniff

__all__ = ["BUILT_IN", "NOT_MINE", "Sniff"]

_HUGGINGFACE, _NETWORKS = "qdeploy.formats.huggingface", "qdeploy.formats.networks"
_SAFETENSORS, _PICKLED = (".safetensors",), (".pth.tar", ".pth", ".pt")
_CONFIG = ("config.json",)
_LIBRARY, _LAYOUT = "library", "published layout"

BUILT_IN = (
    FormatRow(
        "safetensors",
        f"{_HUGGINGFACE}.safetensors",
        looks=(Looks(suffixes=_SAFETENSORS, methods=("",)), Looks(files=(INDEX,), methods=("",))),
        tested=_LIBRARY,
    ),
    FormatRow(
        "gptq",
        f"{_HUGGINGFACE}.gptq",
        looks=(Looks(methods=("gptq", "marlin", "bitblas", "gptq_marlin")),),
        tested=_LIBRARY,
    ),
    FormatRow("awq", f"{_HUGGINGFACE}.awq", looks=(Looks(methods=("awq",)),), tested=_LIBRARY),
    FormatRow(
        "autoround",
        f"{_HUGGINGFACE}.autoround",
        looks=(Looks(methods=("auto-round", "auto_round", "intel/auto-round")),),
        tested=_LIBRARY,
    ),
    FormatRow(
        "compressed-tensors",
        f"{_HUGGINGFACE}.compressed_tensors",
        looks=(Looks(methods=("compressed-tensors",)),),
        tested=_LIBRARY,
    ),
    FormatRow("fp8", f"{_HUGGINGFACE}.fp8", looks=(Looks(methods=("fp8",)),), tested=_LAYOUT),
    FormatRow(
        "bitsandbytes", f"{_HUGGINGFACE}.bitsandbytes", looks=(Looks(methods=("bitsandbytes",)),), tested=_LIBRARY
    ),
    FormatRow("hqq", f"{_HUGGINGFACE}.hqq", looks=(Looks(methods=("hqq",)),), tested=_LIBRARY),
    FormatRow("quanto", f"{_HUGGINGFACE}.quanto", looks=(Looks(files=("quanto_qmap.json",)),), tested=_LIBRARY),
    FormatRow("mlx", f"{_HUGGINGFACE}.mlx", looks=(Looks(methods=("mlx",)),), tested=_LIBRARY),
    FormatRow("mxfp4", f"{_HUGGINGFACE}.gptoss", looks=(Looks(methods=("mxfp4",)),), tested=_LAYOUT),
    FormatRow("bitnet", f"{_HUGGINGFACE}.bitnet", looks=(Looks(methods=("bitnet",)),), tested=_LIBRARY),
    FormatRow("fbgemm", f"{_HUGGINGFACE}.fbgemm", looks=(Looks(methods=("fbgemm_fp8",)),), tested=_LAYOUT),
    FormatRow("eetq", f"{_HUGGINGFACE}.eetq", looks=(Looks(methods=("eetq",)),), tested=_LAYOUT),
    FormatRow("anyprec", f"{_HUGGINGFACE}.anyprec", looks=(Looks(methods=("",), keys=("anyprec",)),), tested=_LAYOUT),
    FormatRow("anybcq", f"{_HUGGINGFACE}.anybcq", looks=(Looks(methods=("",), keys=("anybcq",)),), tested=_LAYOUT),
    FormatRow("aqlm", f"{_HUGGINGFACE}.aqlm", looks=(Looks(methods=("aqlm",)),), tested=_LIBRARY),
    FormatRow("vptq", f"{_HUGGINGFACE}.vptq", looks=(Looks(methods=("vptq",)),), tested=_LIBRARY),
    FormatRow("quark", f"{_HUGGINGFACE}.quark", looks=(Looks(methods=("quark",)),), tested=_LIBRARY),
    FormatRow("torchao", f"{_HUGGINGFACE}.torchao", looks=(Looks(methods=("torchao",)),), tested=_LIBRARY),
    FormatRow(
        "modelopt",
        f"{_HUGGINGFACE}.modelopt",
        looks=(Looks(methods=("modelopt", "modelopt_fp4", "modelopt_mixed")),),
        tested=_LIBRARY,
    ),
    FormatRow(
        "exl2",
        f"{_HUGGINGFACE}.exl2",
        looks=(Looks(methods=("exl2",)), Looks(methods=("",), tensors=r'\.q_weight"')),
        tested=_LAYOUT,
    ),
    FormatRow("spqr", f"{_HUGGINGFACE}.spqr", looks=(Looks(methods=("spqr",)),), tested=_LAYOUT),
    FormatRow("higgs", f"{_HUGGINGFACE}.higgs", looks=(Looks(methods=("higgs",)),), tested=_LAYOUT),
    FormatRow("exl3", f"{_HUGGINGFACE}.exl3", looks=(Looks(methods=("exl3",)),), tested=_LAYOUT),
    FormatRow(
        "bitstack", f"{_HUGGINGFACE}.bitstack", looks=(Looks(methods=("",), tensors=r'\.qweight_0"'),), tested=_LAYOUT
    ),
    FormatRow(
        "gguf",
        "qdeploy.formats.gguf.reader",
        looks=(Looks(magic=(b"GGUF",)), Looks(suffixes=(".gguf",))),
        tested=_LIBRARY,
    ),
    FormatRow("onnx", "qdeploy.formats.onnx.reader", looks=(Looks(suffixes=(".onnx",)),), tested=_LIBRARY),
    FormatRow("tflite", "qdeploy.formats.tflite.reader", looks=(Looks(suffixes=(".tflite",)),), tested=_LIBRARY),
    FormatRow(
        "litertlm",
        "qdeploy.formats.tflite.bundle",
        looks=(Looks(magic=(b"LITERTLM",)), Looks(suffixes=(".litertlm", ".task"))),
        tested=_LIBRARY,
    ),
    FormatRow("openvino", "qdeploy.formats.openvino.reader", looks=(Looks(suffixes=(".xml",)),), tested=_LIBRARY),
    FormatRow("coreml", "qdeploy.formats.coreml.reader", looks=(Looks(suffixes=(".mlmodel",)),), tested=_LIBRARY),
    FormatRow("hawq", f"{_NETWORKS}.hawq", looks=(Looks(files=("quantized_checkpoint.pth.tar",)),), tested=_LAYOUT),
    FormatRow(
        "apot",
        f"{_NETWORKS}.apot",
        looks=(
            Looks(files=("apot.json",)),
            Looks(suffixes=_SAFETENSORS, without=_CONFIG, tensors=r'\.act_alpha"|"quantizer"'),
            Looks(suffixes=_PICKLED, without=_CONFIG),
        ),
        tested=_LIBRARY,
    ),
    FormatRow(
        "lsq",
        f"{_NETWORKS}.lsq",
        looks=(
            Looks(files=("lsq.json",)),
            Looks(suffixes=_SAFETENSORS, without=_CONFIG, tensors=r'\.quan_w_fn\.s"'),
            Looks(suffixes=_PICKLED, without=_CONFIG),
        ),
        tested=_LAYOUT,
    ),
    FormatRow("package", "qdeploy.formats.package", looks=(Looks(files=(PACKAGE,)),)),
)
"""The formats of this project, and what their checkpoints look like."""
