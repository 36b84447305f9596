"""`ray start` with a template beside it: `python -m slipway_local.ray_runner.fork_server.start FOLDER ARGUMENTS...`.

Both are in the session of this process, by which a head is found when it must be gone. Ray starts its workers with
`sys.executable`, which names a script in the directory from here on.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from slipway_local.ray_runner.fork_server import request, template

DASHBOARD_MODULES = ("JobHead", "NodeHead", "ServeHead")
"""What jobs_api.py and serve_api.py talk to."""
_MODULES = "--modules-to-load="

_SCRIPT = """\
#!/bin/sh
case "$1" in
*/setup_worker.py | */default_worker.py) exec {python} -I -S {request} {socket} {python} "$@" ;;
esac
exec {python} "$@"
"""


def main() -> NoReturn:
    """Ends as `ray start` does."""
    directory, *arguments = sys.argv[1:]
    sys.executable = launch(Path(directory), sys.executable)
    sys.argv = ["ray", *arguments]
    scripts: Any = importlib.import_module("ray.scripts.scripts")
    # Or `ray start --head` would start the server of Ray Client as well: a process, and a port that takes code.
    scripts.get_ray_client_dependency_error = lambda: "nobody uses it here"
    services: Any = importlib.import_module("ray._private.services")
    services.start_ray_process = _with_lean_dashboard(services.start_ray_process)
    sys.exit(scripts.main())


def _with_lean_dashboard(start: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's function that starts one of its processes, with no more of the dashboard than answers us.

    Every other module is a Python process of its own, for pages that ask for a token which nobody here is told.
    """

    def started(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        if process_type == "dashboard" and not any(one.startswith(_MODULES) for one in command):
            command = [*command, _MODULES + ",".join(DASHBOARD_MODULES)]
        return start(command, process_type, *arguments, **options)

    return started


def launch(directory: Path, python: str, modules: Iterable[str] = ()) -> str:
    """Start the template, which writes its log to the directory; the interpreter to start workers with.

    `modules`: other ones than template.MODULES. A worker that comes before the template listens is started by itself.
    """
    path = directory / "template.sock"
    path.unlink(missing_ok=True)
    with (directory / "template.log").open("wb") as output:
        subprocess.Popen(
            [python, "-P", "-m", template.__name__, path, python, *modules],
            env=template.environment_with_room(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    names = {"python": python, "request": request.__file__, "socket": str(path)}
    script = directory / "python"
    script.write_text(_SCRIPT.format(**{name: shlex.quote(str(value)) for name, value in names.items()}))
    script.chmod(0o700)
    return str(script)


if __name__ == "__main__":
    main()
