"""An engine on another computer: what is sent there, what comes back, what is left there, and what can go wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
import slicer
from CaLIDReconstructLib import Nodes, RemoteEngine, Results
from CaLIDReconstructLib.EngineProcess import EngineCommand, EngineNotStarted
from CaLIDReconstructLib.Logic import Quiet
from CaLIDReconstructLib.Messages import ModuleError, stageText
from CaLIDReconstructLib.Parameters import Preferences
from CaLIDReconstructLib.Settings import RunSettings
from host.application import MODULE_FOLDER
from opened_panel import MODULE

STAND_IN = Path(__file__).parent / "stand_in_ssh.py"
TIMEOUT_S = 600.0
PATIENT = "DOE^JANE"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in for ssh is a script with a first line")


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def otherAccount() -> tuple[str, str]:
    """(user, how Python is called by it): another account where root runs the tests and Python is in its reach."""
    packages = os.pathsep.join([str(MODULE_FOLDER), *(path for path in sys.path if path.endswith("site-packages"))])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        called = f"PYTHONPATH={packages} OMP_NUM_THREADS=1 exec {python}"
        check = ["/bin/sh", "-c", f"{called} -c 'import numpy, calid'"]
        with contextlib.suppress(OSError, LookupError):  # a root who may not become another one; no such account
            if os.getuid() == 0 and python and not subprocess.run(check, user="nobody", capture_output=True).returncode:
                return "nobody", called
    return "", f"PYTHONPATH={packages} OMP_NUM_THREADS=1 exec {sys.executable}"


USER, PYTHON = otherAccount() if os.name != "nt" else ("", "")


@pytest.fixture
def computer(monkeypatch, tmp_path):
    """The other computer's home folder, and `ssh` as the way to it."""
    home = Path(tempfile.mkdtemp(prefix="calid-other-"))  # beside ours, which another user cannot enter
    for name in ("bin", "tmp"):
        (home / name).mkdir()
    if USER:
        for path in (home, *home.iterdir()):
            shutil.chown(path, USER)
    executable(home / "bin" / "calid", f'#!/bin/sh\n{PYTHON} -m calid "$@"\n')
    programs = tmp_path / "programs"
    programs.mkdir()
    executable(programs / "ssh", f"#!/bin/sh\nexec {sys.executable} {STAND_IN} {home} '{USER}' \"$@\"\n")
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: environment, raising=False)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def logic():
    """logic(host) is the module's logic with runs on that host."""
    made = []

    def make(host: str = "workstation", *, agreed: bool = True):
        preferences = Preferences()
        preferences.interpreter = preferences.modelsFolder = preferences.remoteProgram = ""
        preferences.remoteHost, preferences.agreedHost = host, host if agreed else ""
        made.append(MODULE.CaLIDReconstructLogic(preferences))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.preferences.remoteHost = each.preferences.agreedHost = ""


def left(home: Path) -> list[Path]:
    return list((home / "tmp").iterdir())


def until(condition, logic=None) -> float:
    """Poll until something holds; returns for how many seconds it slept, fewer where other processes are busy."""
    deadline, naps = time.monotonic() + TIMEOUT_S, 0
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        if logic is not None:
            logic.poll()
        time.sleep(0.01)
        naps += 1
    return naps * 0.01


def lines(home: Path) -> list[dict]:
    """What was sent."""
    return [json.loads(line) for line in (home / "sent").read_text().splitlines()]


def test_a_run_there_gives_what_a_run_here_gives_and_nothing_but_images_leaves(computer, logic):
    pytest.importorskip("torch")
    volume, sequence = hearts.addPicture(frames=2, name=PATIENT)
    view, _ = Nodes.addStack(hearts.longAxis(hearts.picture(2), phantoms.heart_frame(3)), f"{PATIENT} 4ch")
    away = logic()
    result = away.upsample(volume, method="linear", factor=2, segment=True)
    assert [warning for warning in result.warnings if "No segmentation" in warning] == []
    for frame in range(2):
        acquired = slicer.util.arrayFromVolume(sequence.GetNthDataNode(frame))
        made = slicer.util.arrayFromVolume(result.sequence.GetNthDataNode(frame))
        assert np.array_equal(made[::2], acquired)
    assert result.labels is not None
    assert result.views == [view]
    assert len(Results.readProvenance(result.node)["alignment"]["views"]) == 1

    sent = lines(computer)
    assert [line["command"] for line in sent if line["command"] not in ("put", "alive")] == ["upsample", "segment"]
    names = {line["name"] for line in sent if line["command"] == "put"}
    assert all(re.fullmatch(r"\d+(\.seq)?\.nrrd|\d+/long axis 1\.seq\.nrrd", name) for name in names), names
    assert len(names) == 2  # what it made itself is not sent back to be segmented
    files = b"".join(base64.b64decode(line.pop("data")) for line in sent if line["command"] == "put")
    for word in (PATIENT, "JANE", "4ch", str(Path.home()), tempfile.gettempdir() + "/CaLID"):
        assert word.encode() not in files + json.dumps(sent).encode(), word
    options = (computer / "options").read_text()
    assert "StrictHostKeyChecking=yes" in options
    assert "BatchMode=yes" in options
    if USER:
        assert {path.owner() for path in left(computer)} == {USER}
    (folder,) = left(computer)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    away.close()
    until(lambda: not left(computer))


def test_a_lost_connection_is_said_and_leaves_nothing_on_either_side(computer, logic):
    pytest.importorskip("torch")
    volume, _ = hearts.addPicture(frames=60)
    away, listener = logic(), Quiet()
    before = slicer.mrmlScene.GetNumberOfNodes()

    def cut(fraction: float, _stage: str, _left: float | None) -> None:
        transport = away.client._transport
        if fraction > 0 and transport is not None and transport.isRunning():
            os.killpg(transport.process.pid, signal.SIGKILL)

    listener.progressed = cut
    job = away.start(volume, RunSettings(method="linear", factor=16, align="off"), listener)
    until(lambda: job.isDone, away)
    assert listener.failure.code in ("remote-lost", "engine-killed")
    assert slicer.mrmlScene.GetNumberOfNodes() <= before + 1  # the browser of the input is shown
    until(lambda: not left(computer))


def test_cancel_takes_effect_within_two_seconds_and_nothing_is_left_there(computer, logic):
    pytest.importorskip("torch")
    volume, _ = hearts.addPicture(frames=40)
    away, listener = logic(), Quiet()
    heard = []
    listener.progressed = lambda fraction, stage, _left: heard.append((fraction, stage))
    job = away.start(volume, RunSettings(method="linear", factor=16, align="off"), listener)
    until(lambda: any(fraction > 0 for fraction, _ in heard), away)
    job.cancel()
    assert until(lambda: job.isDone, away) < 2.0
    assert listener.wasCancelled
    away.close()
    until(lambda: not left(computer))


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("refused", "remote-unreachable"),
        ("stranger", "remote-unknown-key"),
        ("changed", "remote-changed-key"),
        ("locked", "remote-denied"),
        ("nowhere", "remote-not-found"),
        ("bare", "remote-no-engine"),
        ("old", "remote-version"),
        ("older", "remote-version"),
        ("-oProxyCommand=evil", "remote-not-found"),
    ],
)
@pytest.mark.usefixtures("computer")
def test_what_can_be_wrong_with_another_computer_is_said_with_a_remedy(logic, host, code):
    volume, _ = hearts.addPicture()
    with pytest.raises(ModuleError) as error:
        logic(host).upsample(volume, method="linear", factor=2)
    assert error.value.failure.code == code
    assert error.value.failure.title
    assert error.value.failure.remedy


def test_nothing_is_sent_before_the_user_agreed(computer, logic):
    volume, _ = hearts.addPicture()
    with pytest.raises(ModuleError) as error:
        logic(agreed=False).upsample(volume, method="linear", factor=2)
    assert error.value.failure.code == "remote-not-agreed"
    assert not (computer / "options").exists()


def test_a_computer_without_ssh_says_so():
    with pytest.raises(EngineNotStarted) as error:
        RemoteEngine.sshCommand("workstation", "", environment={"PATH": "/nowhere"})
    assert error.value.code == "remote-no-ssh"


def test_the_computers_name_is_never_an_option_of_ssh():
    good = ("gpu", "me@gpu.example.org", "ssh://me@gpu:2222", "10.0.0.7", "ssh://[::1]:22", "a_b-c")
    assert [name for name in good if not RemoteEngine.isHost(name)] == []
    bad = ("-oProxyCommand=x", "", "a b", "me@-x", "a;b", "$(x)", "a\nb", "ssh://-x")
    assert [name for name in bad if RemoteEngine.isHost(name)] == []


@pytest.mark.parametrize("name", ["image.dcm", "models.json", "notes.txt"])
def test_a_file_that_the_module_did_not_write_for_a_run_stays_here(tmp_path, name):
    (tmp_path / name).write_text("PatientName")
    record = tmp_path / "record"
    program = f"import sys; print('{{}}'); open({str(record)!r}, 'w').write(sys.stdin.read())"
    engine = RemoteEngine.RemoteEngine(EngineCommand((sys.executable, "-c", program), os.environ, str(tmp_path)))
    engine.start()
    engine.send({"id": "1", "command": "check", "input": str(tmp_path / name)})
    events = []
    until(lambda: events.extend(engine.receive()) or any(event["event"] == "error" for event in events))
    assert [event["code"] for event in events if event["event"] == "error"] == ["remote-files"]
    engine.close()
    assert "PatientName" not in record.read_text()


def test_a_file_that_nobody_asked_for_is_not_written(tmp_path):
    names = RemoteEngine._Names()
    names.expect(tmp_path / "output.nrrd", "3.nrrd")
    names.expect(tmp_path / "frames", "4")
    assert names.place("3.nrrd") == tmp_path / "output.nrrd"
    assert names.place("4/frame0000.nrrd") == tmp_path / "frames" / "frame0000.nrrd"
    for name in ("5.nrrd", "../x", "/etc/passwd", "3.nrrd/x/y", "4/..", "4/a/b", ""):
        place = names.place(name)
        assert place is None or place.parent == tmp_path / "frames", name
    assert names.place("4/..") is None


def test_how_far_files_are_is_said_in_words():
    assert stageText("sending 3 of 40 MB") == "Sending 3 of 40 MB"
    assert stageText("receiving 3 of 40 MB") == "Receiving 3 of 40 MB"


# --- the panel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """asked.texts are the questions to the user, asked.answer is the answer."""

    class Asked:
        texts: list[str] = []  # noqa: RUF012
        answer = True

    asked = Asked()
    asked.texts = []
    monkeypatch.setattr(
        slicer.util, "confirmOkCancelDisplay", lambda text, **_: asked.texts.append(text) or asked.answer, raising=False
    )
    return asked


def test_the_user_is_told_what_leaves_and_where_to_and_may_refuse(opened, asked):
    hearts.addPicture()
    panel = opened()
    panel.ui.remoteHostEdit.text = "me@gpu"
    asked.answer = False
    panel.ui.remoteButton.click()
    assert "me@gpu" in asked.texts[0]
    assert "Sent there: the voxels" in asked.texts[0]
    assert "Not sent: names of patients" in asked.texts[0]
    assert not panel.logic.isRemote
    assert panel.commands == []
    asked.answer = True
    panel.ui.remoteButton.click()
    panel.until(lambda: "Connected" in panel.ui.remoteLabel.text)
    assert panel.logic.preferences.agreedHost == panel.logic.preferences.remoteHost == "me@gpu"
    assert "me@gpu" in panel.ui.setupLabel.text
    assert panel.ui.remoteButton.text == "Disconnect"
    assert "me@gpu" not in panel.panel.report()
    panel.ui.remoteButton.click()
    assert not panel.logic.isRemote
    assert panel.ui.remoteButton.text == "Connect..."


def test_a_computer_that_fails_is_not_taken(opened, asked):
    panel = opened(lambda _request: [{"event": "exit", "code": 255, "stderr": "x", "kind": "remote-denied"}])
    panel.ui.remoteHostEdit.text = "gpu"
    panel.ui.remoteButton.click()
    assert len(asked.texts) == 1
    panel.until(lambda: not panel.panel.remote.isTrying)
    assert panel.ui.remoteLabel.text.startswith("\u2716")
    assert "does not let you in" in panel.ui.remoteLabel.text
    assert not panel.logic.isRemote


def test_dicom_folders_are_read_on_this_computer(opened, monkeypatch, tmp_path):
    panel = opened()
    panel.logic.preferences.remoteHost = panel.logic.preferences.agreedHost = "gpu"
    monkeypatch.setattr(panel.panel.study, "chooseFolder", lambda: str(tmp_path))
    panel.ui.dicomButton.click()
    assert panel.logic.beside.isRunning
    assert not panel.logic.client.isRunning
    panel.logic.preferences.remoteHost = ""


# --- a real ssh -------------------------------------------------------------------------------------------------------


def _sshd() -> str | None:
    found = os.environ.get("CALID_SSHD") or shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    canRun = os.getuid() != 0 or os.environ.get("CALID_SSHD_USER")
    return found if found and canRun and shutil.which("ssh") and shutil.which("ssh-keygen") else None


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An sshd on this computer; CALID_SSHD and CALID_SSHD_USER name its program and, for root, another account."""
    user = os.environ.get("CALID_SSHD_USER") if os.getuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="calid-sshd-"))
    (home / "tmp").mkdir()
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shutil.copy(home / "mine.pub", home / "authorized")
    (home / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nSetEnv TMPDIR={home}/tmp PYTHONPATH={MODULE_FOLDER}\n"
    )
    (tmp_path / "mine").write_bytes((home / "mine").read_bytes())
    (tmp_path / "mine").chmod(0o600)
    kind, key = (home / "host.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (tmp_path / "config").write_text(
        f"Host other\n HostName 127.0.0.1\n Port {port}\n IdentityFile {tmp_path}/mine\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {tmp_path}/known\n" + (f" User {user}\n" if user else "")
    )
    executable(tmp_path / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n')
    if user:
        for path in (home, *home.iterdir()):
            shutil.chown(path, user)
    process = subprocess.Popen(
        [_sshd(), "-D", "-e", "-f", str(home / "sshd_config")],
        stderr=(tmp_path / "log").open("w"),
        **({"user": user, "group": user, "extra_groups": []} if user else {}),
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: environment, raising=False)
    until(lambda: "Server listening" in (tmp_path / "log").read_text() or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()
    yield home
    process.kill()
    process.wait()
    shutil.rmtree(home)


@pytest.mark.skipif(_sshd() is None, reason="no sshd that this user can start, see Testing/README.md")
def test_a_run_through_a_real_ssh_and_a_stranger_in_its_place(server, logic, tmp_path):
    pytest.importorskip("torch")
    volume, _ = hearts.addPicture()
    away = logic("other")
    away.preferences.remoteProgram = f"{PYTHON} -m calid"
    result = away.upsample(volume, method="linear", factor=2)
    acquired = slicer.util.arrayFromVolume(volume)
    assert np.array_equal(slicer.util.arrayFromVolume(result.volume)[::2], acquired)
    assert len(left(server)) == 1
    away.close()
    until(lambda: not left(server))
    known = tmp_path / "known"
    known.write_text(known.read_text().replace("AAAAC3", "AAAAC4"))
    with pytest.raises(ModuleError) as error:
        away.upsample(volume, method="linear", factor=2)
    assert error.value.failure.code in ("remote-unknown-key", "remote-changed-key", "remote-lost")
    assert left(server) == []
