"""One file per source of joules; `core.registry` finds them by file name."""
