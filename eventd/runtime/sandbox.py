"""What a process of a function is started with, decided without touching anything: settings in, a SpawnPlan out.

Isolation is tier A (reliability.md 3.4): a session of its own, resource limits, no_new_privs, a scrubbed environment, a private
TMPDIR, every descriptor but its own closed. The fields for tier B are filled in as data; nothing carries them out yet, and `tier`
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from eventd.model import FunctionSettings, Settings

MIB: Final = 1024 * 1024
UNLIMITED: Final = -1
"""RLIM_INFINITY."""
DATA_HEADROOM_MIB: Final = 512
"""RLIMIT_DATA over the memory limit: 64 threads' stacks of 8 MiB count too (D31, measured.md 5). The watch is the true limit."""
PASSED: Final = ("PATH", "HOME", "LANG")
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


class SpawnPlan(Struct, frozen=True, kw_only=True):
    """One process to be. `argv[0]` is absolute; `fds` are the descriptor numbers it finds open, and no others are.

    Always, and therefore no fields: own session, no_new_privs, SIGKILL when its parent ends.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    rlimits: tuple[tuple[str, int, int], ...]
    fds: tuple[int, ...] = (0, 1, 2, 3)
    subreaper: bool = True
    """What its descendants leave behind comes to it. Not for a template: what its workers leave is the keeper's to end."""
    tier: str = "A"
    read_only: tuple[str, ...] = ()
    """Tier B: paths it could read."""
    writable: tuple[str, ...] = ()
    """Tier B: paths it could write."""
    namespaces: tuple[str, ...] = ("ipc", "mnt", "pid")
    """Tier B: namespaces of its own."""


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every process of ours is allowed to inherit from the daemon, with defaults: PATH, HOME, LANG; TZ is always UTC."""
    base = {name: environ.get(name) or _DEFAULTS[name] for name in PASSED}
    base["TZ"] = ":UTC"
    return base


def function_environment(
    settings: Settings, function: FunctionSettings, *, root: str, handler: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The environment all workers of a version share; this much a template may know. No secrets, no credentials.

    The names are Lambda's (lambda.md 1.7). The function's own `environment` comes last and may not hide EVENTD.
    """
    region = settings.daemon.region
    return {
        **base_environment(environ),
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mib),
        "AWS_LAMBDA_LOG_GROUP_NAME": log_group(function.name),
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "LAMBDA_TASK_ROOT": root,
        "_HANDLER": handler,
        **function.environment,
        "EVENTD": "1",
    }


def worker_environment(
    shared: Mapping[str, str], *, tmpdir: str, log_stream: str, init_type: str, secrets: Mapping[str, str]
) -> dict[str, str]:
    """`function_environment` and what only this one worker has. A variable of the user's own called TMPDIR wins."""
    own = {"TMPDIR": tmpdir, "AWS_LAMBDA_LOG_STREAM_NAME": log_stream, "AWS_LAMBDA_INITIALIZATION_TYPE": init_type}
    return {**own, **shared, **secrets}


def log_group(name: str) -> str:
    return f"/aws/lambda/{name}"


def arn(settings: Settings, name: str, qualifier: str = "") -> str:
    """The ARN a function is invoked by; with its qualifier when it was called by one."""
    plain = f"arn:aws:lambda:{settings.daemon.region}:{settings.daemon.account}:function:{name}"
    return f"{plain}:{qualifier}" if qualifier else plain


def worker_rlimits(memory_mib: int, *, headroom_mib: int = DATA_HEADROOM_MIB) -> tuple[tuple[str, int, int], ...]:
    """No core files, an ordinary number of descriptors, and the backstop of the memory watch. Never RLIMIT_AS (design.md 5)."""
    data = (memory_mib + headroom_mib) * MIB
    return (("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 1024, 4096), ("RLIMIT_DATA", data, data))


def template_rlimits() -> tuple[tuple[str, int, int], ...]:
    """A template runs no handler: its workers set their own limits. It needs descriptors for many forks at once."""
    return (("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 4096, UNLIMITED))


def spawn_plan(
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    root: str,
    memory_mib: int,
    tmpdir: str,
    fds: Sequence[int] = (0, 1, 2, 3),
    headroom_mib: int = DATA_HEADROOM_MIB,
) -> SpawnPlan:
    """A worker process: runs in its task root; could write only its TMPDIR, once tier B is there."""
    return SpawnPlan(
        argv=tuple(argv),
        env=dict(env),
        cwd=root,
        rlimits=worker_rlimits(memory_mib, headroom_mib=headroom_mib),
        fds=tuple(fds),
        read_only=("/usr", "/lib", "/lib64", "/bin", "/etc", root),
        writable=(tmpdir,),
    )


def template_plan(*, argv: Sequence[str], env: Mapping[str, str], root: str) -> SpawnPlan:
    """A template. Its environment is `function_environment`: no secret ever reaches it."""
    return SpawnPlan(
        argv=tuple(argv),
        env=dict(env),
        cwd=root,
        rlimits=template_rlimits(),
        subreaper=False,
        read_only=("/usr", "/lib", "/lib64", "/etc", root),
    )
