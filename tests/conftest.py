"""Fixtures shared by all tests: an empty home, the small real model, a tiny random model."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no finding: no limits of time on generated examples.
settings.register_profile("llem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llem")

REAL_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llenergymeasure"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a home of its own, no hub, and no setting of the developer's machine."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("LLEM_", "HF_", "HUGGING")):
            monkeypatch.delenv(name)
    for name, folder in {
        "HOME": "",
        "XDG_CONFIG_HOME": ".config",
        "XDG_CACHE_HOME": ".cache",
        "HF_HOME": ".hf",
        "LLEM_LOCK_DIR": "locks",
    }.items():
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def shared_model_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's real model cache, where the built-in model has been converted once (tools/model_cache.py)."""
    from llenergymeasure import user_config

    monkeypatch.setenv("XDG_CACHE_HOME", str(REAL_CACHE.parent))
    return user_config.cache_dir()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped model of two layers with seeded random weights, built once per test session."""
    import sys

    sys.path.insert(0, str(ROOT / "tools"))
    from random_model import build
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=320, bos_token_id=0, eos_token_id=0, pad_token_id=1, max_position_embeddings=256,
    )  # fmt: skip
    return build(config, tmp_path_factory.mktemp("tiny") / "tiny-llama", dtype="float32")
