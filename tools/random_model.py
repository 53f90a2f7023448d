"""Builds a model folder from a configuration with seeded random weights of realistic scale, marked as such.

For machines without a model hub: speed and energy of such a model are those of a trained one of the same shape to
first order, its text is noise. Results carry `random_weights: true`.

    python tools/random_model.py /tmp/llama-1b --layers 16 --hidden 2048 --heads 32 --kv-heads 8
"""

import argparse
import json
from pathlib import Path
from typing import Any

from llenergymeasure.models import RANDOM_MARK

SPECIAL = ["<|endoftext|>", "<|pad|>"]


def build(config: Any, folder: Path, *, seed: int = 0, dtype: str = "bfloat16", device: str = "cpu") -> Path:
    """Write weights, config and a byte-level tokeniser of the config's vocabulary into `folder`, give it back.

    Matrices are normal with standard deviation 1/sqrt(fan_in), which keeps activations near one as training does;
    operand values change power by up to 40 %, so zeros or constants would not do.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name and "wte" not in name:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(str(folder))
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written[RANDOM_MARK] = {"seed": seed}
    (folder / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
    _tokenizer(config.vocab_size).save_pretrained(str(folder))
    return folder


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + len(SPECIAL):
        raise SystemExit(f"--vocabulary {vocabulary}: at least {len(alphabet) + len(SPECIAL)}")
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[1], bos_token=SPECIAL[0]
    )


def main() -> None:
    """Build a Llama-shaped model."""
    from transformers import LlamaConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in {
        "layers": 16,
        "hidden": 2048,
        "heads": 32,
        "kv-heads": 8,
        "intermediate": 8192,
        "vocabulary": 32000,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    config = LlamaConfig(
        num_hidden_layers=a.layers,
        hidden_size=a.hidden,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        intermediate_size=a.intermediate,
        vocab_size=a.vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    print(build(config, a.folder, seed=a.seed, device=a.device))


if __name__ == "__main__":
    main()
