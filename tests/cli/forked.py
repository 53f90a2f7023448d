"""A process with llem loaded that forks one child per request: a `llem` of its own in milliseconds instead of 0.4 s.

Requests come as JSON lines on stdin: {argv, cwd, env, out, err}; the child's exit code goes back on stdout.
"""

import json
import os
import sys

from llenergymeasure import cli, machine, study  # noqa: F401  (loaded once, for every child)
from llenergymeasure.core import config, introspection, result, sweep  # noqa: F401  (likewise)


def become_llem(request: dict) -> None:
    """Turn this fork into `llem ARGV…` and end with its exit code."""
    for descriptor, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = ["llem", *request["argv"]]
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    assert not {"torch", "transformers", "vllm"} & set(sys.modules), "loading llem's modules must load no engine"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become_llem(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
