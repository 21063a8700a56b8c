"""In place of `ssh`: another "computer" on this one, with a home, a temporary folder and, for root, a user of its own.

    stand_in_ssh.py HOME USER [ssh's options] -- HOST COMMAND

USER is empty for the same one. HOST says what happens: "workstation" runs the command there; the others fail as ssh
fails, or answer as an old engine does. What is sent is kept in HOME/sent, so that a test can look at what left.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path

SAYS = {
    "refused": ("ssh: connect to host refused port 22: Connection refused", 255),
    "stranger": ("No ED25519 host key is known for stranger and you have requested strict checking.\n"
                 "Host key verification failed.", 255),
    "changed": ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", 255),
    "locked": ("me@locked: Permission denied (publickey).", 255),
    "nowhere": ("ssh: Could not resolve hostname nowhere: Name or service not known", 255),
    "bare": ("bash: line 1: calid: command not found", 127),
    "older": ("calid: error: unrecognized arguments: --apart. See calid --help.", 2),
}  # fmt: skip


def main() -> int:
    home, user, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    options, (host, command) = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    (home / "options").write_text(" ".join(options))
    if host in SAYS:
        print(SAYS[host][0], file=sys.stderr, flush=True)
        return SAYS[host][1]
    if host == "old":
        print(json.dumps({"event": "ready", "protocol": 1, "version": "0.1.0"}), flush=True)
        sys.stdin.read()
        return 0
    return run(home, user, command)


def run(home: Path, user: str, command: str) -> int:
    """Run a command as the user of the other computer, with what comes on stdin; it outlives the connection."""
    environment = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    account = pwd.getpwnam(user) if user else None
    options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], env=environment, cwd=home, start_new_session=True, **pipes, **options
    )
    threading.Thread(target=send, args=(home / "sent", process.stdin), daemon=True).start()
    back = [
        threading.Thread(target=pass_on, args=pair, daemon=True)
        for pair in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    ]
    for thread in back:
        thread.start()
    for thread in back:
        thread.join()
    return process.wait()


def send(record: Path, pipe) -> None:
    """What comes on stdin goes on, and is noted; its end goes on too."""
    with record.open("ab", buffering=0) as file:
        while line := sys.stdin.buffer.readline():
            file.write(line)
            pipe.write(line)
            pipe.flush()
    pipe.close()


def pass_on(source, target) -> None:
    while line := source.readline():
        target.write(line)
        target.flush()


if __name__ == "__main__":
    os._exit(main())
