"""What a run is expected to take is told before it: time, memory, and whether that is there."""

from __future__ import annotations

import itertools
import os
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calid.errors import Cancelled
from calid.images.files import write_stack
from calid.images.memory import available_on_linux, available_on_macos, free_system_bytes
from calid.method.bisection import plan_bisection
from calid.run.device import Device
from calid.run.job import Job, estimate, expected_memory
from calid.run.settings import Settings
from calid.stack import Stack
from test_reconstruct import cine, quick

CPU = Device(torch.device("cpu"), "test", None)


def memory(stack: Stack, *, factor: int = 8, frames: int = 1, draws: int = 1, pixels: int = 128 * 128) -> dict:
    plan = plan_bisection(stack.num_slices, factor)
    return expected_memory(stack, plan, CPU, frames=frames, draws=draws, pixels=pixels)


def test_the_memory_that_is_told_is_near_the_memory_that_is_taken(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (8, 9, 128, 128)).astype(np.int16)
    stack = Stack(noise, np.diag([1.8, 1.8, 8.0, 1.0]), np.arange(8) * 30.0)
    write_stack(stack, tmp_path / "sparse.nrrd")
    job = Job(tmp_path / "sparse.nrrd", tmp_path / "dense.nrrd", Settings(method="linear", factor=8))
    job.run()
    (tmp_path / "dense.nrrd").unlink()
    tracemalloc.start()
    job.run()
    _, taken = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.6 < memory(stack, frames=8, pixels=0)["memory_bytes"] / taken < 1.8


def test_more_frames_slices_and_draws_need_more_memory():
    stack = cine()
    least = memory(stack)["memory_bytes"]
    assert memory(stack, frames=25)["memory_bytes"] > least
    assert memory(stack, factor=16)["memory_bytes"] > least
    assert memory(stack, draws=8)["memory_bytes"] > least


def test_a_run_that_needs_more_than_is_free_does_not_fit(monkeypatch):
    stack = cine()
    assert memory(stack)["fits"]
    monkeypatch.setattr(Device, "free_bytes", lambda _: 10**6)
    told = memory(stack)
    assert told["free_bytes"] == 10**6 < told["memory_bytes"]
    assert not told["fits"]


def test_the_networks_on_a_graphics_card_count_apart_from_the_voxels(monkeypatch):
    monkeypatch.setattr(Device, "free_bytes", lambda _: 6 * 10**9)
    card = Device(torch.device("cuda"), "test", None)
    plan = plan_bisection(11, 8)
    stack = Stack(np.zeros((1, 11, 128, 128), np.int16), np.eye(4))
    few = expected_memory(stack, plan, card, frames=1, draws=1, pixels=128 * 128)
    many = expected_memory(stack, plan, card, frames=10**6, draws=1, pixels=128 * 128)
    assert few["memory_bytes"] == many["memory_bytes"] == 70 * 128 * 128 * 1600
    assert few["fits"]
    assert not many["fits"]  # a million dense frames are beyond any main memory


def test_one_frame_stands_for_a_whole_cine(random_models):
    one = estimate(cine(frames=1), quick(factor=4), models_folder=random_models)
    whole = estimate(cine(frames=1), quick(factor=4), models_folder=random_models, num_frames=400)
    assert (one["frames"], whole["frames"]) == (1, 400)
    assert whole["seconds"] > 20 * max(one["seconds"], 0.1)
    assert whole["memory_bytes"] > one["memory_bytes"]


def test_what_long_axis_images_cost_is_told_where_they_are_used(random_models, monkeypatch):
    every_part_takes_a_second = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("calid.run.trial.time", every_part_takes_a_second)

    def seconds(views: int, **changes) -> float:
        chosen = quick(factor=4, **changes)
        return estimate(cine(frames=2), chosen, models_folder=random_models, num_frames=400, num_views=views)["seconds"]

    alone, guided = seconds(0), seconds(5)
    assert guided > 1.2 * alone
    assert seconds(5, lax="off") < guided
    assert seconds(5, align="off") < guided


def test_an_estimate_can_be_cancelled(random_models):
    with pytest.raises(Cancelled):
        estimate(cine(frames=1), quick(), models_folder=random_models, is_cancelled=lambda: True)


def test_memory_held_by_caches_counts_as_free():
    meminfo = "MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    9000000 kB\n"
    assert available_on_linux(meminfo) == 9000000 * 1024
    vm_stat = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               100.\n"
        "Pages active:                          500000.\n"
        "Pages inactive:                          2000.\n"
        "Pages speculative:                         30.\n"
        "Pages purgeable:                            4.\n"
    )
    assert available_on_macos(vm_stat) == 2134 * 16384


@pytest.mark.parametrize("reader", [available_on_linux, available_on_macos])
def test_another_systems_answer_is_not_taken_for_a_figure(reader):
    with pytest.raises(ValueError, match=r"Avail|vm_stat"):
        reader("something else")


@pytest.mark.skipif(sys.platform == "win32", reason="sysconf is not there")
def test_free_memory_is_a_part_of_the_machines():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.001 * whole < free_system_bytes() < whole
