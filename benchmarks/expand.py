"""Times expansion, validation and hashing of 10,000 combinations of a study with nested fields and two backends.

Target: at most 1 s. Prints every repetition, since machines are shared; the least one is the cost of the work.

    python benchmarks/expand.py
"""

import time

from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.sweep import expand

BODY = {
    "model": "gpt2",
    "backend": ["pytorch", "vllm"],
    "max_output_tokens": 64,
    "decoder": {"decoding_strategy": "sampling", "top_p": 0.9},
    "warmup": {"n_warmup": 3},
    "sweep": {
        "precision": ["bf16", "fp16"],
        "n": list(range(1, 51)),
        "decoder.temperature": [0.7, 1.0],
        "pytorch.batch_size": list(range(1, 26)),
        "vllm.max_num_seqs": list(range(1, 26)),
    },
}


def main() -> None:
    """Expand five times."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        study = expand(BODY)
        seconds.append(time.perf_counter() - begun)
    assert len(study.experiments) == 10_000
    begun = time.perf_counter()
    for config in study.experiments:
        measurement_config_hash(config)
    hashing = time.perf_counter() - begun
    print(f"10,000 combinations expanded, validated, hashed and compared: {', '.join(f'{s:.2f}' for s in seconds)} s")
    print(f"least {min(seconds):.2f} s, of which hashing about {hashing:.2f} s; target 1 s")


if __name__ == "__main__":
    main()
