"""One file per inference engine; `core.registry` finds them by file name."""
