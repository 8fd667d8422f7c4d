"""Quantize `examples/models/tiny-llama` to 4-bit GPTQ with the gptqmodel library.

The result is a file of a third party: qdeploy has no part in it, so that its reader is tested on what others write.

    python quantize_tiny_llama.py --text tinyshakespeare.txt
    python quantize_tiny_llama.py --text tinyshakespeare.txt --evaluate

Calibration uses the training part of the text only; the loss is measured on the part that training never saw.
"""

import argparse
import os
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from train_tiny_llama import CONTEXT, encode, evaluate, split_text, windows
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

MODELS = Path(__file__).parent / "models"


def calibration_samples(tokenizer: Tokenizer, text: str, count: int) -> list[dict[str, list[int]]]:
    """`count` windows of one context each, evenly spaced over `text`."""
    ids = encode(tokenizer, text)
    starts = torch.linspace(0, len(ids) - CONTEXT, count, dtype=torch.float64).long()
    return [{"input_ids": row, "attention_mask": [1] * CONTEXT} for row in windows(ids, starts).tolist()]


def quantize(source: Path, output: Path, text: str, samples: int) -> None:
    """Run GPTQ (4 bits, symmetric, groups of 128, no activation order, format v1) and save what the library saves."""
    from gptqmodel import GPTQModel, QuantizeConfig  # here, because it reads its settings while it is imported
    from gptqmodel.quantization import FORMAT, METHOD

    config = QuantizeConfig(
        bits=4,
        group_size=128,
        sym=True,
        desc_act=False,
        method=METHOD.GPTQ,
        format=FORMAT.GPTQ,
        device="cpu",
        offload_to_disk=False,  # the folder of the offload would be written into the saved config
    )
    calibration = calibration_samples(Tokenizer.from_file(str(source / "tokenizer.json")), text, samples)
    source, output = source.resolve(), output.resolve()
    with TemporaryDirectory() as scratch, chdir(scratch):  # the library leaves a folder of logs where it runs
        model = GPTQModel.load(str(source), config)
        model.quantize(calibration, batch_size=8, tokenizer=AutoTokenizer.from_pretrained(source))
        model.save(str(output))


def dequantized_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the quantized linears as gptqmodel decodes them: name -> float16 [out, in]."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    # float16, not the library's default of bfloat16, which would round the float16 scales of the file.
    loaded = GPTQModel.load(str(folder), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16)
    linears = {name: module for name, module in loaded.model.named_modules() if isinstance(module, TorchLinear)}
    return {f"{name}.weight": linear.dequantize_weight().T.contiguous() for name, linear in linears.items()}


def dequantized_model(folder: Path) -> LlamaForCausalLM:
    """A plain float32 Llama with the weights of `folder`: the linears dequantized, the rest as stored."""
    config = LlamaConfig.from_pretrained(folder)
    del config.quantization_config
    model = LlamaForCausalLM(config)
    names = model.state_dict().keys()
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name in names}
    weights |= dequantized_weights(folder)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, metavar="PATH", help="the tiny Shakespeare text")
    parser.add_argument("--source", type=Path, default=MODELS / "tiny-llama")
    parser.add_argument("--output", type=Path, default=MODELS / "tiny-llama-gptq")
    parser.add_argument("--samples", type=int, default=256, help="calibration windows of 256 tokens")
    parser.add_argument("--evaluate", action="store_true", help="measure the folder that exists, quantize nothing")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # gptqmodel sizes its worker pool from the machine's cores and refuses to start on two of them without this.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(args.threads))
    torch.set_num_threads(args.threads)
    training, validation = split_text(args.text)
    if not args.evaluate:
        quantize(args.source, args.output, training, args.samples)
    tokenizer = Tokenizer.from_file(str(args.output / "tokenizer.json"))
    evaluate(dequantized_model(args.output), tokenizer, validation)


if __name__ == "__main__":
    main()
