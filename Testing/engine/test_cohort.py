"""Many hearts into one table: whole or not at all, past every failure, and the same whoever is killed on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import file_phantoms
import numpy as np
import phantoms
import pytest
import torch
from calid.__main__ import main
from calid.cohort import command, crew, work
from calid.cohort.manifest import CohortCase, cases_of, shard
from calid.cohort.store import Store
from calid.cohort.work import Procedure, do_case
from calid.errors import CalidError, InputError, SettingsError
from calid.heart.figures import SCHEMA_PATH, read_figures
from calid.images.files import read_stack, write_stack
from calid.run.settings import Settings
from jsonschema import Draft202012Validator
from processes import is_alive, wait_until
from test_guidance import heart as guided_heart
from test_segmentation import models  # noqa: F401 (a fixture)

LINEAR = Settings(factor=2, method="linear", device="cpu")
NUM_HEARTS = int(os.environ.get("CALID_TEST_HEARTS", "12"))
BARE = Procedure(LINEAR, is_segmented=False, is_tried=False)


def heart(seed: int = 0) -> phantoms.Stack:
    """A small beating heart, another one for every seed."""
    size = 0.7 + 0.3 * np.random.default_rng(seed).random()
    labels = phantoms.heart_labels((4.0, 4.0, 14.0), seed=seed, contractions=(size, 0.8 * size))
    return phantoms.pictured(labels)


def hearts(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        write_stack(heart(seed), folder / f"heart{seed:02d}.seq.nrrd")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without what differs from run to run."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def done_one_by_one(cases: list[CohortCase], procedure: Procedure, out: Path) -> list[dict[str, str]]:
    """The table of a run that nothing disturbs, in this process."""
    store = Store(out)
    store.begin(procedure.as_json(), [case.name for case in cases])
    for case in cases:
        do_case(case, procedure, out)
    store.sweep()
    store.write_tables()
    return table(out / "cohort.csv")


def left_behind(out: Path) -> list[str]:
    """What is there beside results."""
    results = {"cases", "failures", "cohort.json", "cohort.csv", "failures.csv"}
    paths = [*(path for path in out.iterdir() if path.name not in results), *out.rglob(".*")]
    return sorted(str(path.relative_to(out)) for path in paths)


# --- what a case leaves ----------------------------------------------------------------------------------------------


def test_a_cohort_is_one_table_and_a_folder_for_each_case_and_a_failure_stops_nothing(tmp_path, monkeypatch, capsys):
    folder = hearts(tmp_path / "in", 2)
    (folder / "broken.nrrd").write_text("no volume")
    monkeypatch.setattr(crew, "run_here", in_this_process)
    asked = ["cohort", str(folder), str(tmp_path / "out"), "--method", "linear", "--factor", "2", "--no-segment"]
    assert main(asked) == command.EXIT_FAILURES
    rows = table(tmp_path / "out" / "cohort.csv")
    assert [row["case"] for row in rows] == ["heart00", "heart01"]
    assert rows[0]["slices"] == "13"
    assert rows[0]["acquired_slices"] == "7"
    (failure,) = table(tmp_path / "out" / "failures.csv")
    assert failure["case"] == "broken"
    assert failure["code"]
    assert failure["remedy"]
    assert left_behind(tmp_path / "out") == []
    write_stack(heart(5), folder / "broken.nrrd", overwrite=True)
    capsys.readouterr()
    assert main(asked) == 0
    assert "3 of 3 cases are done" in capsys.readouterr().out
    assert table(tmp_path / "out" / "failures.csv") == []
    assert main(["cohort", "status", str(tmp_path / "out")]) == 0
    assert "3 of 3 cases are done, 0 failed, 0 are to do" in capsys.readouterr().out


def in_this_process(cases, procedure, out, *, on_done, **_):
    for case in cases:
        on_done(case.name, do_case(case, procedure, out))


def test_what_is_asked_to_be_kept_stays_and_can_be_read(tmp_path, models):  # noqa: F811
    write_stack(heart(), tmp_path / "heart.seq.nrrd")
    keep = ("dense", "labels", "meshes", "ed-es")
    procedure = Procedure(LINEAR, is_tried=False, keep=keep, models_folder=models)
    case = CohortCase("A heart", tmp_path / "heart.seq.nrrd")
    (row,) = done_one_by_one([case], procedure, tmp_path / "out")
    kept = tmp_path / "out" / "cases" / "A heart"
    figures = read_figures(kept / "figures.json")
    assert figures["case"] == "A heart"
    Draft202012Validator(json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))).validate(figures)
    assert float(row["shift_mm"]) == pytest.approx(figures["alignment"]["worst_mm"], abs=1e-4)
    dense = read_stack(kept / "dense.seq.nrrd")
    assert dense.num_slices == figures["stack"]["slices"] == 13
    assert read_stack(kept / "labels.seg.nrrd").voxels.shape == dense.voxels.shape
    assert list((kept / "meshes").glob("frame0000-*.vtp"))
    if "missing" not in figures["function"]:
        frame = figures["function"]["ed_frame"]
        np.testing.assert_array_equal(read_stack(kept / "dense-ed.nrrd").voxels, dense.frame(frame).voxels)


def test_models_are_loaded_once_for_all_cases_of_a_process(tmp_path, random_models, monkeypatch):
    from calid.run import reconstruct

    loads = []
    load = reconstruct.load_interpolator
    monkeypatch.setattr(reconstruct, "load_interpolator", lambda *a, **k: loads.append(1) or load(*a, **k))
    reconstruct.kept_interpolator.cache_clear()
    cases = cases_of(hearts(tmp_path / "in", 3))
    procedure = Procedure(
        Settings(factor=2, steps=1, device="cpu"), is_segmented=False, is_tried=False, models_folder=random_models
    )
    rows = done_one_by_one(cases, procedure, tmp_path / "out")
    reconstruct.kept_interpolator.cache_clear()
    assert [row["model"] for row in rows] == ["calid-2d"] * 3
    assert len(loads) == 1


def test_settings_of_a_line_win_over_those_of_the_cohort(tmp_path):
    write_stack(heart(), tmp_path / "heart.seq.nrrd")
    (tmp_path / "list.csv").write_text(
        "case,path,factor,frames,height_cm,weight_kg\nA,heart.seq.nrrd,4,,,\nB,heart.seq.nrrd,,1:2,180,80\n"
    )
    cases = cases_of(tmp_path / "list.csv")
    rows = done_one_by_one(cases, BARE, tmp_path / "out")
    assert [(row["case"], row["slices"], row["frames"]) for row in rows] == [("A", "25", "2"), ("B", "13", "1")]
    assert read_figures(tmp_path / "out" / "cases" / "B" / "figures.json")["body"]["bsa_m2"] == pytest.approx(2)


def test_views_of_a_case_guide_its_slices_unless_its_line_says_otherwise(tmp_path, random_models):
    sax, views = guided_heart()
    write_stack(sax, tmp_path / "heart.seq.nrrd")
    (tmp_path / "views").mkdir()
    for view in views:
        write_stack(view.stack, tmp_path / "views" / f"{view.name}.seq.nrrd")
    (tmp_path / "list.csv").write_text(
        "case,path,views,lax\nA,heart.seq.nrrd,views,\nB,heart.seq.nrrd,views,off\nC,heart.seq.nrrd,,\n"
    )
    procedure = Procedure(
        Settings(factor=2, steps=1, device="cpu"), is_segmented=False, is_tried=False, models_folder=random_models
    )
    rows = done_one_by_one(cases_of(tmp_path / "list.csv"), procedure, tmp_path / "out")
    assert [(row["guides"], row["long_axis_views"]) for row in rows] == [("3", "3"), ("0", "3"), ("0", "0")]
    assert rows[0]["long_axis_agreement"] == ""
    assert float(rows[1]["long_axis_agreement"]) > 0


def test_the_example_of_a_table_of_cases_can_be_read():
    cases = cases_of(Path(__file__).parents[2] / "examples" / "cases.csv")
    assert [case.name for case in cases] == ["P001", "P002", "P003"]
    assert cases[1].views == Path(__file__).parents[2] / "examples" / "studies" / "second" / "long-axis"
    assert cases[1].settings == {"factor": 8}


def test_no_name_but_the_cases_own_is_told_anywhere(tmp_path):
    secret = tmp_path / "Miller_Anna"
    file_phantoms.write_stack(
        secret, file_phantoms.noisy_stack((2, 4, 18, 24)), name=lambda t, z: f"Anna{z}_{t}.dcm", description="Anna M."
    )
    bad = tmp_path / "Miller_Berta"
    file_phantoms.write_stack(bad, file_phantoms.noisy_stack((2, 4, 18, 24)), name=lambda t, z: f"Berta{z}_{t}.dcm")
    (bad / "Berta2_1.dcm").write_bytes((bad / "Berta2_1.dcm").read_bytes()[:400])
    cases = [CohortCase("P1", secret), CohortCase("P2", bad), CohortCase("P3", tmp_path / "Miller_Carla.nrrd")]
    out = tmp_path / "out"
    done_one_by_one(cases, Procedure(LINEAR, is_segmented=False, is_tried=False, keep=("dense",), has_report=True), out)
    told = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()).lower()
    assert (out / "cases" / "P1" / "dense.seq.nrrd").is_file()
    assert {row["case"] for row in table(out / "failures.csv")} == {"P2", "P3"}
    for word in (b"miller", b"anna", b"berta", b"carla", b"secret"):
        assert word not in told
    assert b"file " in (out / "failures" / "P2.json").read_bytes()


def test_an_error_that_nobody_thought_of_stops_one_case_only(tmp_path, monkeypatch):
    cases = cases_of(hearts(tmp_path / "in", 2))
    do = work._do

    def broken(case, *rest):
        if case.name == "heart00":
            raise ZeroDivisionError("of all things")
        do(case, *rest)

    monkeypatch.setattr(work, "_do", broken)
    rows = done_one_by_one(cases, BARE, tmp_path / "out")
    assert [row["case"] for row in rows] == ["heart01"]
    (failure,) = table(tmp_path / "out" / "failures.csv")
    assert (failure["code"], "ZeroDivisionError" in failure["message"]) == ("internal", True)


def test_other_settings_do_not_mix_into_a_cohort(tmp_path):
    cases = cases_of(hearts(tmp_path / "in", 1))
    done_one_by_one(cases, BARE, tmp_path / "out")
    store = Store(tmp_path / "out")
    with pytest.raises(SettingsError, match="other settings"):
        store.begin(Procedure(Settings(factor=4, method="linear"), is_segmented=False).as_json(), ["heart00"])
    store.begin(BARE.as_json(), ["another"])
    assert store.status() == (["heart00"], {}, ["another"])


@pytest.mark.parametrize("wrong", [["--shard", "4/3"], ["--shard", "x"], ["--workers", "0"], ["--factor", "3"]])
def test_what_cannot_be_is_refused_before_any_case(tmp_path, capsys, wrong):
    folder = hearts(tmp_path / "in", 1)
    try:
        code = main(["cohort", str(folder), str(tmp_path / "out"), "--method", "linear", "--no-segment", *wrong])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list((tmp_path / "out").glob("cases/*"))


def test_two_runs_at_one_case_do_not_disturb_each_other_and_dead_ones_are_swept(tmp_path):
    """As after a job that still runs is queued again."""
    store = Store(tmp_path / "out")
    store.begin(BARE.as_json(), ["A"])
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with store.working_folder() as mine:
        left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-"))
        left.mkdir()
        with store.working_folder() as theirs:
            assert not left.exists()
            for folder in (mine, theirs):
                (folder / "results").mkdir()
                (folder / "results" / "figures.json").write_text("{}")
                store.finish("A", folder / "results")
    store.sweep()
    assert store.status() == (["A"], {}, [])
    assert not (tmp_path / "out" / "working").exists()


def test_results_are_not_put_among_the_cases(tmp_path, capsys):
    folder = hearts(tmp_path / "out", 1)
    assert main(["cohort", str(folder), str(folder), "--method", "linear", "--no-segment"]) == 2
    assert "lies in" in capsys.readouterr().err


def test_no_table_replaces_the_manifest_and_no_result_lies_in_an_input(tmp_path, capsys):
    folder = hearts(tmp_path / "in", 1)
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("case,path\nA,in/heart00.seq.nrrd\n")
    words = ["--method", "linear", "--factor", "2", "--no-segment", "--no-trust"]
    assert main(["cohort", str(manifest), str(tmp_path), *words]) == 2  # the case lies in it, too
    assert main(["cohort", str(folder), str(folder / "out"), *words]) == 2
    assert "is an input" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "lists").mkdir()
    moved = tmp_path / "lists" / "cohort.csv"
    moved.write_text("case,path\nA,../in/heart00.seq.nrrd\n")
    assert main(["cohort", str(moved), str(moved.parent), *words]) == 2
    assert "is an input" in capsys.readouterr().err.splitlines()[-1]
    assert moved.read_text().startswith("case,path")


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one for bash")
def test_the_tasks_of_the_slurm_script_do_all_cases_once_and_a_failed_case_is_no_failed_task(tmp_path):
    folder = hearts(tmp_path / "in", 2)
    (folder / "broken.nrrd").write_text("no volume")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "calid"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m calid "$@"\n')
    shim.chmod(0o755)
    script = Path(__file__).parents[2] / "examples" / "slurm-array.sh"
    for task in (1, 2):
        asked = [
            str(folder),
            str(tmp_path / "out"),
            "--method",
            "linear",
            "--factor",
            "2",
            "--no-segment",
            "--no-trust",
        ]
        environment = os.environ | {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
        environment |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        subprocess.run(["bash", str(script), *asked], env=environment, check=True, capture_output=True)
        done = sorted(path.name for path in (tmp_path / "out" / "cases").iterdir())
        assert done == (["heart01"] if task == 1 else ["heart00", "heart01"])
    assert [row["case"] for row in table(tmp_path / "out" / "cohort.csv")] == ["heart00", "heart01"]
    assert [row["case"] for row in table(tmp_path / "out" / "failures.csv")] == ["broken"]


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,path\n", "no column 'case'"),
        ("case,path,kase\n", "column 'kase'"),
        ("case,path\n", "holds no cases"),
        ("case,path\nA,\n", "line 2 has no path"),
        ("case,path\n../A,a.nrrd\n", "cannot be the name"),
        ("case,path\n.A,a.nrrd\n", "cannot be the name"),
        ("case,path\n,a.nrrd\n", "cannot be the name"),
        ("case,path\nA,a.nrrd\na,b.nrrd\n", "Two cases are called"),
        ("case,path\nA,a.nrrd,4\n", "another number of values"),
        ("case,path,factor\nA,a.nrrd,3\n", "factor '3'"),
        ("case,path,factor\nA,a.nrrd,many\n", "factor 'many'"),
        ("case,path,height_cm\nA,a.nrrd,180\n", "line 2"),
        ("case,path,height_cm,weight_kg\nA,a.nrrd,1.8,80\n", "height of 1.8"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_by_line(tmp_path, text, said):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CalidError, match=said):
        cases_of(tmp_path / "list.csv")


def test_a_manifest_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"case,path\nA,\xff\xfe.nrrd\n")
    with pytest.raises(InputError, match="no CSV file in UTF-8"):
        cases_of(tmp_path / "list.csv")
    with pytest.raises(InputError, match="does not exist"):
        cases_of(tmp_path / "none.csv")


def test_shards_are_all_cases_once():
    cases = [CohortCase(f"c{number}", Path("x")) for number in range(10)]
    shards = [shard(cases, index, 3) for index in (1, 2, 3)]
    assert sorted((case for part in shards for case in part), key=lambda case: case.name) == cases


# --- whoever is killed ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, random_models) -> tuple[Path, Procedure, list[dict[str, str]]]:
    """A folder of hearts, what to do with them by an untrained model, and the table of an undisturbed run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    procedure = Procedure(
        Settings(factor=2, method="calid", steps=1, device="cpu"), is_segmented=False, models_folder=random_models
    )
    whole = done_one_by_one(cases_of(hearts(folder / "in", NUM_HEARTS)), procedure, folder / "whole")
    assert len({row["trust"] for row in whole}) == NUM_HEARTS  # figures that could differ
    return folder / "in", procedure, whole


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_worker_and_then_the_whole_run_killed_and_started_again_change_nothing(tmp_path, cohort, monkeypatch):
    folder, procedure, whole = cohort
    out = tmp_path / "out"
    asked = [
        "--method",
        "calid",
        "--steps",
        "1",
        "--factor",
        "2",
        "--no-segment",
        "--models",
        str(procedure.models_folder),
    ]
    line = ["cohort", str(folder), str(out), *asked, "--device", "cpu", "--workers", "2"]
    told = (tmp_path / "told").open("w")
    running = subprocess.Popen([sys.executable, "-m", "calid", "-v", *line], stderr=told, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: finished(out) >= 2)
        victim, other = children(running.pid)[-2:]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: finished(out) >= 6)
        assert other in children(running.pid)
        workers = children(running.pid)
    finally:
        running.kill()
        running.wait()
        told.close()
    wait_until(lambda: not any(is_alive(worker) for worker in workers))
    before = {path: path.stat().st_mtime_ns for path in out.glob("cases/*/figures.json")}
    assert 6 <= len(before) < len(whole)
    loads = (tmp_path / "told").read_text().count(": loading calid-2d\n")
    assert loads in (2, 3), "once in each of the two workers, and in the one that replaced the first if it came so far"
    monkeypatch.setattr(crew, "run_here", in_this_process)
    assert main(line) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert table(out / "cohort.csv") == whole
    assert left_behind(out) == []


def finished(out: Path) -> int:
    return len(list(out.glob("cases/*/figures.json")))


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(word) for word in tasks.read_text().split()]


class DeadlyCase(CohortCase):
    """A case that kills whoever is handed it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_case_that_kills_its_workers_fails_and_the_others_go_on(tmp_path):
    cases = cases_of(hearts(tmp_path / "in", 3))
    cases[1] = DeadlyCase(cases[1].name, cases[1].path)
    out, ended = tmp_path / "out", {}
    Store(out).begin(BARE.as_json(), [case.name for case in cases])
    crew.run_here(cases, BARE, out, workers=2, threads=1, on_done=ended.__setitem__)
    assert ended == {"heart00": "done", "heart01": "failed", "heart02": "done"}
    _, failures, _ = Store(out).status()
    assert failures["heart01"]["code"] == "lost-worker"


@pytest.mark.parametrize(
    ("visible", "count", "names"), [(None, 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("GPU-a", 1, ["GPU-a"]), ("", 0, [])]
)
def test_there_is_a_worker_for_each_gpu_that_this_process_may_use(monkeypatch, visible, count, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(command, "_cores", lambda: 12)
    assert command._gpus("auto") == command._gpus("cuda") == names
    assert command._gpus("cpu") == []
    assert command._workers(None, count) == (count or 3)
    assert command._workers(5, count) == 5


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_on_a_dask_cluster_a_lost_worker_and_a_new_one_change_nothing(tmp_path, cohort):
    distributed = pytest.importorskip("distributed")
    folder, procedure, whole = cohort
    cases = cases_of(folder)
    out, ended = tmp_path / "out", []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:

        def on_done(name, outcome):
            ended.append((name, outcome))
            if len(ended) == 5:
                os.kill(cluster.workers[0].pid, signal.SIGKILL)
                cluster.scale(3)

        command.do_cohort(folder, cases, procedure, out, scheduler=cluster.scheduler_address, on_done=on_done)
    assert sorted(ended) == [(case.name, "done") for case in cases]
    assert table(out / "cohort.csv") == whole
    assert left_behind(out) == []
