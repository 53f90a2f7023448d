"""Converts the built-in model into the user's cache, once, before tests use it from two processes."""

from llenergymeasure import models
from llenergymeasure.core.config import BUILTIN_PREFIX
from llenergymeasure.user_config import cache_dir, load_user_config

if __name__ == "__main__":
    found = models.resolve(f"{BUILTIN_PREFIX}{models.BUILTIN}", None, cache=cache_dir(load_user_config()))
    print(f"built-in model: {found.path}")
