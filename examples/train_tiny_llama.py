"""Train the small Llama checkpoint of `examples/models/tiny-llama`.

A Llama of 1.1 M parameters learns the tiny Shakespeare text on two CPU cores in a quarter of an hour. It is small
enough to be kept in the repository and trained enough that a wrong scale or a swapped nibble shows in its loss:

    python train_tiny_llama.py --text tinyshakespeare.txt --output models/tiny-llama
    python train_tiny_llama.py --text tinyshakespeare.txt --output models/tiny-llama --evaluate

The weights are trained in float32 and rounded to bfloat16 once, at the end. The last tenth of the text is kept for
validation: neither the weights nor the tokenizer see it.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
VOCABULARY = 512
CONTEXT = 256
VALIDATION_SHARE = 0.1

Logits = Callable[[torch.Tensor], torch.Tensor]


class Loss(NamedTuple):
    """Mean negative log-likelihood of a text, in nats."""

    per_token: float
    per_character: float

    def __str__(self) -> str:
        """Nats per token and per character, and the perplexity per token."""
        perplexity = math.exp(self.per_token)
        return f"{self.per_token:.4f} nats/token (perplexity {perplexity:.3f}), {self.per_character:.4f} nats/character"


def split_text(path: Path) -> tuple[str, str]:
    """Return the training part and the validation part (the last tenth, by characters) of a UTF-8 file."""
    text = path.read_text(encoding="utf-8")
    cut = round(len(text) * (1 - VALIDATION_SHARE))
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with Llama's special ids: `<unk>` 0, `<s>` 1, `</s>` 2. Encoding puts `<s>` in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[UNK, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes: no text is out of vocabulary
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Token ids of `text` without `<s>`, int64 [tokens]."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def configuration() -> LlamaConfig:
    """The architecture. Every input width is a multiple of 128, the usual group size of quantizers."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        attention_bias=False,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def windows(ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Stack windows of one context each: `<s>` and the CONTEXT - 1 tokens from every start, [starts, CONTEXT]."""
    body = ids[starts[:, None] + torch.arange(CONTEXT - 1)]
    return torch.cat([torch.full((len(starts), 1), BOS_ID), body], dim=1)


def next_token_loss(logits: torch.Tensor, batch: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of `batch` [B, T] under `logits` [B, T, V], each position predicting the one after it."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def validation_loss(logits: Logits, tokenizer: Tokenizer, text: str) -> Loss:
    """Loss over `text` cut into contexts that do not overlap, so that every token is scored exactly once."""
    ids = encode(tokenizer, text)
    total = 0.0
    whole = len(ids) - len(ids) % (CONTEXT - 1)
    for starts in torch.arange(0, whole, CONTEXT - 1).split(32):
        batch = windows(ids, starts)
        total += next_token_loss(logits(batch), batch, "sum").item()
    if whole < len(ids):
        rest = torch.cat([torch.tensor([BOS_ID]), ids[whole:]])[None]
        total += next_token_loss(logits(rest), rest, "sum").item()
    return Loss(total / len(ids), total / len(text))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warmup, then a cosine down to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves the norm weights alone."""
    decay = {0.1: [p for p in model.parameters() if p.dim() > 1], 0.0: [p for p in model.parameters() if p.dim() == 1]}
    groups = [{"params": parameters, "weight_decay": weight_decay} for weight_decay, parameters in decay.items()]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))


def add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop out what attention and MLP add to the residual stream while training; Llama's own code has no such place."""

    def drop(module: nn.Module, _: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        hidden, *rest = output if isinstance(output, tuple) else (output,)  # attention also returns its weights
        hidden = functional.dropout(hidden, probability, module.training)
        return (hidden, *rest) if rest else hidden

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def train(model: LlamaForCausalLM, ids: torch.Tensor, args: argparse.Namespace, check: Callable[[], Loss]) -> None:
    """Run `args.steps` steps on random windows of `ids`; print a line now and then, with `check()` every 10 %."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = make_optimizer(model)
    began = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.learning_rate)
        batch = windows(ids, torch.randint(len(ids) - CONTEXT, (args.batch,), generator=generator))
        loss = next_token_loss(model(input_ids=batch, use_cache=False).logits, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % max(1, args.steps // 10) == 0:
            model.eval()
            print(f"  validation: {check()}", flush=True)
            model.train()


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Write a Hugging Face folder: the configs, `model.safetensors` in bfloat16, and the tokenizer."""
    output.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=EOS_ID)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save(str(output / "tokenizer.json"))
    # Written here because save_pretrained names a class that only transformers 5 knows; this name works everywhere.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def sample(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, count: int = 160, seed: int = 0) -> str:
    """Continue `prompt` by up to `count` tokens drawn at temperature 0.8, reproducibly."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(min(count, CONTEXT - len(ids))):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(torch.multinomial(functional.softmax(logits / 0.8, dim=-1), 1, generator=generator)))
        if ids[-1] == EOS_ID:
            break
    return tokenizer.decode(ids)


def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, text: str) -> None:
    """Print the validation loss of `model` and a sample of what it writes."""
    model.eval()
    print(f"validation: {validation_loss(lambda ids: model(input_ids=ids).logits, tokenizer, text)}")
    print(sample(model, tokenizer, "ROMEO:\n"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, metavar="PATH", help="the tiny Shakespeare text")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "models" / "tiny-llama")
    parser.add_argument("--evaluate", action="store_true", help="measure the folder that exists, train nothing")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=24, help="windows of 256 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.1, help="on the residual branches, against overfitting")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    training, validation = split_text(args.text)
    if not args.evaluate:
        torch.manual_seed(args.seed)
        tokenizer = train_tokenizer(training)
        model = LlamaForCausalLM(configuration())
        ids = encode(tokenizer, training)
        print(f"{model.num_parameters():,} parameters, {len(ids):,} training tokens")
        model.train()
        add_dropout(model, args.dropout)
        train(model, ids, args, lambda: validation_loss(lambda b: model(input_ids=b).logits, tokenizer, validation))
        save(model, tokenizer, args.output)
    # Measured from the files, so that the bfloat16 rounding is included; the arithmetic is float32.
    tokenizer = Tokenizer.from_file(str(args.output / "tokenizer.json"))
    evaluate(LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32), tokenizer, validation)


if __name__ == "__main__":
    main()
