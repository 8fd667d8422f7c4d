"""Which settings a format may have: those that its reader looks at, and those that change no number, with the reason.

Every other setting is refused by its name: nobody read it, so nobody knows what it does to the numbers. Null, false and
an empty text, list or object say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qdeploy.formats.huggingface.words import Settings

_METHOD = ("quant_method", "method")
"""What the reader was chosen by."""


@dataclass(frozen=True)
class Known:
    """The settings on one level of a configuration.

    Attributes:
        read: Those that the reader looks at: other values change what is read, or are refused.
        neutral: Those that change no number, and why.
    """

    read: tuple[str, ...] = ()
    neutral: Mapping[str, str] = field(default_factory=dict)

    def check(self, settings: Settings) -> None:
        """UnsupportedError for a setting that is neither."""
        settings.refuse_others((*_METHOD, *self.read, *self.neutral))


def because(reason: str, *names: str) -> dict[str, str]:
    """Neutral settings that have one reason."""
    return dict.fromkeys(names, reason)


LEFT_OUT = because("stored tensors show which layers are quantized", "modules_to_not_convert", "lm_head")
STORED = "every layer stores it, or shows it by its shapes"
SEARCH = "says how codes were found"
KERNEL = "says which code computes with the layer, or how"
INPUTS = "speaks of inputs, whose quantization is refused or noted as not applied"
AUTHOR = "says who wrote the file"
WORDS = {
    **LEFT_OUT,
    **because(STORED, "sym", "zero_point", "scale_dtype", "true_sequential", "block_name_to_quantize"),
    **because(INPUTS, "act_data_type", "act_dynamic", "act_group_size", "act_sym"),
    **because(
        SEARCH,
        "damp_percent",
        "damp_auto_increment",
        "static_groups",
        "act_group_aware",
        "mse",
        "dataset",
        "batch_size",
        "nsamples",
        "seqlen",
        "model_seqlen",
        "tokenizer",
        "pad_token_id",
        "cache_block_outputs",
        "module_name_preceding_first_block",
        "modules_in_block_to_quantize",
        "iters",
        "lr",
        "minmax_lr",
        "enable_quanted_input",
        "enable_minmax_tuning",
        "enable_norm_bias_tuning",
        "gradient_accumulate_steps",
        "low_gpu_mem_usage",
        "amp",
        "offload_to_disk",
        "offload_to_disk_path",
        "to_quant_block_names",
        "quant_block_list",
        "supported_types",
    ),
    **because(
        KERNEL,
        "use_exllama",
        "disable_exllama",
        "exllama_config",
        "use_cuda_fp16",
        "max_input_length",
        "do_fuse",
        "fuse_max_seq_len",
        "modules_to_fuse",
    ),
    **because(
        AUTHOR, "meta", "provider", "autoround_version", "quantizer", "model_name_or_path", "model_file_base_name"
    ),
}
"""What GPTQ, AWQ and AutoRound write into each other's configurations."""
NUMBERS = ("data_type", "act_bits")
"""What AutoRound says of numbers, in its own files and those that it writes as GPTQ or AWQ."""
