"""The graph of steps: what is done again and what is not, whatever stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast import DataError
from occfast.errors import ProcessLost
from occfast.reproduce import graph as steps
from occfast.reproduce import processes
from occfast.reproduce.cost import Rates, forward_flops, predict
from occfast.reproduce.graph import Graph, Step, StepContext, Work, fingerprint
from occfast.reproduce.processes import ProcessGroup
from tests.processes import torchrun
from tests.train.tiny import ROOT, Patterns


class Bench:
    """Steps that count how often they are done: a -> b, c -> d, with data under a and c."""

    def __init__(self, root: Path, settings: dict[str, int] | None = None, data: str = "one") -> None:
        self.made: list[str] = []
        stated = {"a": 1, "b": 2, "c": 3, "d": 4, **(settings or {})}
        needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}

        def step(name: str) -> Step:
            def make(place: StepContext) -> dict[str, Any]:
                self.made.append(name)
                total = stated[name] + sum(done.result["sum"] for done in place.needs.values())
                (place.folder / "sum.txt").write_text(str(total))
                return {"sum": total}

            return Step(name, make, {"value": stated[name]}, needs[name], ("faces",) if name in "ac" else ())

        self.graph = Graph([step(name) for name in "abcd"], root, {"faces": lambda: data})

    def run(self) -> list[Any]:
        return self.graph.run("cpu", progress=False)


def test_each_step_is_done_once_and_gets_what_it_needs(tmp_path):
    bench = Bench(tmp_path)
    found = bench.run()
    assert [done.result["sum"] for done in found] == [1, 3, 4, 11] and bench.made == list("abcd")
    assert (found[3].folder / "sum.txt").read_text() == "11" and all(done.seconds > 0 for done in found)
    again = Bench(tmp_path)
    assert again.run() == found and again.made == []


@pytest.mark.parametrize(
    ("changed", "settings", "data"),
    [
        ("d", {"d": 5}, "one"),
        ("bd", {"b": 5}, "one"),
        ("cd", {"c": 5}, "one"),
        ("abcd", {"a": 5}, "one"),
        ("abcd", {}, "two"),
    ],
)
def test_only_what_a_change_reaches_is_done_again(tmp_path, changed, settings, data):
    Bench(tmp_path).run()
    bench = Bench(tmp_path, settings, data)
    bench.run()
    assert bench.made == list(changed)
    back = Bench(tmp_path)
    assert [done.result["sum"] for done in back.run()] == [1, 3, 4, 11] and back.made == []  # both are kept


@pytest.mark.parametrize("at", range(4))
def test_stopped_at_any_step_no_finished_step_is_lost(tmp_path, at):
    bench = Bench(tmp_path)
    name = "abcd"[at]

    def stopped(place: StepContext) -> dict[str, Any]:
        (place.folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    bench.graph.steps[name] = replace(bench.graph.steps[name], make=stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.made == list("abcd"[:at])
    rest = Bench(tmp_path)
    found = rest.run()
    assert rest.made == list("abcd"[at:]) and found[3].result["sum"] == 11
    assert (found[at].folder / "half.txt").exists()  # what the attempt left is there to go on from
    assert not (found[at].folder / steps.BEGUN).exists()


def test_the_time_of_a_stopped_attempt_counts(tmp_path):
    bench = Bench(tmp_path)
    folder = bench.graph.folder("a")
    folder.mkdir(parents=True)
    (folder / steps.BEGUN).write_text('{"seconds": 100.0}')
    assert bench.run()[0].seconds > 100


def test_a_key_tells_names_settings_needs_data_and_versions(tmp_path, monkeypatch):
    keys = {Bench(tmp_path).graph.key(name) for name in "abcd"}
    assert len(keys) == 4
    monkeypatch.setattr(steps, "__version__", "another")
    assert keys.isdisjoint(Bench(tmp_path).graph.key(name) for name in "abcd")


def test_damaged_results_are_not_used(tmp_path):
    Bench(tmp_path).run()
    path = Bench(tmp_path).graph.folder("b") / steps.DONE
    content = json.loads(path.read_text())
    for text, match in (
        ("{", "expected JSON"),
        ("{}", "incomplete result"),
        (json.dumps({**content, "key": "0"}), "not the result of the step 'b'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            Bench(tmp_path).run()


def test_one_run_at_a_time(tmp_path):
    first, second = Bench(tmp_path), Bench(tmp_path)

    def both(place: StepContext) -> dict[str, Any]:
        second.run()
        return {}

    first.graph.steps["a"] = replace(first.graph.steps["a"], make=both)
    with pytest.raises(ValueError, match="another run is using"):
        first.run()


def test_parts_of_a_graph(tmp_path):
    graph = Bench(tmp_path).graph
    assert list(graph.only(["c"]).steps) == ["a", "c"] and list(graph.only(["d"]).steps) == list("abcd")
    assert graph.only(["c"]).key("c") == graph.key("c")
    assert [[step.name for step in level] for level in graph.levels()] == [["a"], ["b", "c"], ["d"]]
    with pytest.raises(ValueError, match="there is no step 'e'"):
        graph.only(["e"])
    a = graph.steps["a"]
    with pytest.raises(ValueError, match="two are named 'a'"):
        Graph([a, a], tmp_path, {})
    with pytest.raises(ValueError, match="needs 'a', which is not listed before it"):
        Graph([graph.steps["b"], a], tmp_path, {})


def test_work_is_shared_by_its_length():
    lengths = [5.0, 3.0, 3.0, 2.0, 2.0, 1.0]
    some = [Step(str(k), lambda place: {}, work=Work(flops)) for k, flops in enumerate(lengths)]
    shares = [ProcessGroup(rank, 3).share(some) for rank in range(3)]
    assert sorted(step.name for share in shares for step in share) == [step.name for step in some]
    assert [sum(step.work.flops for step in share) for share in shares] == [6.0, 5.0, 5.0]


def test_fingerprints_see_names_labels_and_pixels():
    one, other = Patterns(), Patterns()
    assert fingerprint(one) == fingerprint(other)
    other.images[-1, 0, 0, 0] ^= 1
    assert fingerprint(one) != fingerprint(other)
    named = Patterns()
    named.names[3] = "another"
    assert len({fingerprint(one), fingerprint(other), fingerprint(named)}) == 3


def test_predictions_add_up_by_process(tmp_path):
    def step(name: str, kind: str, flops: float, needs: tuple[str, ...] = (), **more: Any) -> Step:
        return Step(
            name, lambda place: {}, needs=needs, work=Work(flops, kind=kind, disk=10, **more), together=kind == "train"
        )

    graph = Graph(
        [
            step("train", "train", 800.0),
            step("one", "sweep", 400.0, ("train",), speedup=4.0),
            step("two", "embed", 100.0, ("train",)),
        ],
        tmp_path,
        {},
    )
    rates = Rates(train=10.0, forward=20.0, how="given")
    alone = predict(graph, rates)
    assert [row["seconds"] for row in alone["steps"]] == [80.0, 5.0, 5.0]
    assert alone["seconds"] == 90.0 and alone["disk"] == 30
    assert predict(graph, rates, processes=2)["seconds"] == 45.0
    assert predict(graph.spread(), rates, processes=2)["seconds"] == 85.0 and graph.spread().key("train") == graph.key(
        "train"
    )
    graph.run("cpu", progress=False)
    assert predict(graph, rates)["seconds"] == 0.0 and all(row["done"] for row in predict(graph, rates)["steps"])


def test_flops_are_counted_and_rates_measured():
    net = torch.nn.Conv2d(1, 2, 3, padding=1)
    assert forward_flops(net, (1, 8, 8)) == 2 * 9 * 2 * 64
    rates = Rates.measured(net, (4, 1, 8, 8), forward_flops(net, (1, 8, 8)), "cpu")
    assert rates.train > 0 and rates.forward > 0 and "CPU" in rates.how


SCRIPT = """
import os, sys, time
from pathlib import Path
from occfast.reproduce.graph import Graph, Step
from occfast.train import train
from tests.train.tiny import recipe

def together(place):
    found = train(recipe("classify", "epochs=1", "device=cpu"), place.folder / "run", resume=True, progress=False)
    return {"steps": found.steps, "processes": int(os.environ["WORLD_SIZE"])}

def alone(place):
    found = train(recipe("classify", "epochs=1", "device=cpu"), place.folder / "run", resume=True, progress=False)
    return {"steps": found.steps, "processes": int(os.environ.get("WORLD_SIZE", "1"))}

steps = [Step("t", together, together=True), *[Step(f"a{k}", alone, needs=("t",)) for k in range(3)]]
found = Graph(steps, Path(sys.argv[1]), {}).run("cpu", progress=False)
assert [done.result["processes"] for done in found] == [2, 1, 1, 1], found
assert [done.processes for done in found] == [2, 1, 1, 1]
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_train_together_and_share_the_rest(tmp_path):
    """A step that one process does trains alone, whatever torchrun set."""
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun(tmp_path / "script.py", tmp_path / "steps")
    assert len(list((tmp_path / "steps").glob("*/done.json"))) == 4


# -- unfinished work ------------------------------------------------------------------------------------


def stopped_in_b(folder: Path) -> Bench:
    bench = Bench(folder)

    def stop(context: StepContext) -> dict[str, Any]:
        raise KeyboardInterrupt

    bench.graph.steps["b"] = replace(bench.graph.steps["b"], make=stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    return bench


def test_an_unfinished_run_is_neither_resumed_nor_deleted_unasked(tmp_path):
    folder = stopped_in_b(tmp_path).graph.folder("b")
    again = Bench(tmp_path)
    assert again.graph.unfinished() == ["b"]
    with pytest.raises(
        ValueError, match=r"output: .* unfinished run, stopped in the step 'b'; .*--resume.*--overwrite"
    ):
        again.graph.run("cpu", progress=False, resume=None)
    assert folder.exists() and again.made == []
    again.graph.run("cpu", progress=False, resume=True)
    assert again.made == list("bcd") and again.graph.unfinished() == []
    again.graph.run("cpu", progress=False, resume=None)  # finished steps are reused without a word
    assert again.made == list("bcd")
    again.graph.run("cpu", progress=False, resume=False)
    assert again.made == list("bcdabcd")


@pytest.mark.parametrize("begun", [None, '{"seconds": 3.0}', '{"seconds": 1.0, "versions": {"occfast": "0.0.1"}}'])
def test_unfinished_steps_of_another_version_are_refused(tmp_path, begun):
    bench = Bench(tmp_path)
    old = tmp_path / "b-0123456789ab"
    old.mkdir(parents=True)
    if begun is not None:
        (old / steps.BEGUN).write_text(begun)
    (tmp_path / "another-0123456789ab").mkdir()  # not a step of this graph
    with pytest.raises(ValueError, match=r"output: .*b-0123456789ab was begun by another version .* can't be resumed"):
        bench.run()
    assert bench.made == [] and old.exists()
    bench.graph.run("cpu", progress=False, resume=False)
    assert bench.made == list("abcd") and not old.exists() and (tmp_path / "another-0123456789ab").exists()


def test_unfinished_steps_of_other_settings_are_left_alone(tmp_path):
    other = stopped_in_b(tmp_path).graph.folder("b")
    bench = Bench(tmp_path, {"b": 5})
    bench.graph.run("cpu", progress=False, resume=None)
    assert bench.made == ["b", "c", "d"] and other.exists()


def test_progress_is_lines_or_a_function(tmp_path, capsys):
    seen: list[tuple[int, int | None]] = []
    Bench(tmp_path).graph.run("cpu", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and capsys.readouterr().err == ""
    Bench(tmp_path / "lines").graph.run("cpu", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[::2] == [f"{name} …" for name in "abcd"] and all(line.endswith(" s") for line in lines[1::2])


# -- several processes that are started by hand ----------------------------------------------------------

BY_HAND = """
import os, sys, time
from pathlib import Path
from occfast.reproduce import processes
from occfast.reproduce.graph import Graph, Step, Work
from occfast.errors import ProcessLost

processes.BEAT, processes.GRACE = 0.2, 0.5
if len(sys.argv) > 3:
    processes.SILENCE = processes.START = float(sys.argv[3])

def fast(context):
    return {}

def slow(context):
    (context.folder / "begun").touch()
    if sys.argv[2] == "fail":
        raise ValueError("no memory left")
    time.sleep(600)
    return {}

# The first is rank 0's, the second rank 1's.
made = [Step("fast", fast, work=Work(2.0)), Step("slow", slow, work=Work(1.0)), Step("last", fast, needs=("slow",))]
if sys.argv[2] == "together":  # as a process waits for another one in PyTorch
    made = [Step("slow", slow, together=True)]
try:
    Graph(made, Path(sys.argv[1]), {}).run("cpu", progress=False)
except (ProcessLost, ValueError) as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def by_hand(folder: Path, rank: int, *arguments: str, size: int = 2) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(BY_HAND)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    command = [sys.executable, str(folder / "script.py"), str(folder / "steps"), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.05)


def test_a_killed_process_ends_the_others(tmp_path):
    processes_ = [by_hand(tmp_path, rank, "sleep") for rank in range(2)]
    try:
        wait_for(tmp_path / "steps", "slow-*/begun")
        wait_for(tmp_path / "steps", "fast-*/done.json")
        processes_[1].kill()
        out, _ = processes_[0].communicate(timeout=60)  # it was not waited for: a zombie must not count as alive
        assert processes_[0].returncode == 3 and out.startswith("ProcessLost process 1 of 2 died"), out
    finally:
        for one in processes_:
            one.kill()
            one.wait()


def test_a_killed_process_ends_others_that_wait_for_it_in_pytorch(tmp_path):
    processes_ = [by_hand(tmp_path, rank, "together") for rank in range(2)]
    try:
        wait_for(tmp_path / "steps", "slow-*/begun")
        time.sleep(1)
        processes_[1].kill()
        _, said = processes_[0].communicate(timeout=60)
        assert processes_[0].returncode == 1 and said.startswith("occfast: process 1 of 2 died (pid "), said
        assert said.endswith("; --resume continues\n") and said.count("\n") == 1
    finally:
        for one in processes_:
            one.kill()
            one.wait()


def test_a_failed_process_ends_the_others_with_its_message(tmp_path):
    processes_ = [by_hand(tmp_path, rank, "fail") for rank in range(2)]
    outputs = [one.communicate(timeout=120)[0] for one in processes_]
    assert [one.returncode for one in processes_] == [3, 3]
    assert outputs == [
        "ProcessLost process 1 of 2 stopped: ValueError: no memory left\n",
        "ValueError no memory left\n",
    ]


def test_a_process_that_never_starts_ends_the_others(tmp_path):
    alone = by_hand(tmp_path, 0, "sleep", "2")
    out, _ = alone.communicate(timeout=120)
    assert alone.returncode == 3 and out.startswith("ProcessLost process 1 of 2 did not start within"), out


def test_a_process_without_a_sign_of_life_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.05)
    with processes.Heartbeat(tmp_path, ProcessGroup(0, 2)) as mine:
        other = processes.Heartbeat(tmp_path, ProcessGroup(1, 2))
        other._write(host="another machine")
        mine.check()
        other._write()
        mine.check()
        monkeypatch.setattr(processes, "SILENCE", 0.1)
        time.sleep(0.2)
        with pytest.raises(
            ProcessLost, match=r"process 1 of 2 on another machine has shown no sign of life for 0\.1 s"
        ):
            mine.check()


def test_what_an_earlier_run_left_is_no_sign_of_life(tmp_path):
    with pytest.raises(RuntimeError), processes.Heartbeat(tmp_path, ProcessGroup(1, 2)):
        raise RuntimeError("earlier")
    with processes.Heartbeat(tmp_path, ProcessGroup(0, 2)) as mine:
        mine.check()
        assert not mine.alone
        with processes.Heartbeat(tmp_path, ProcessGroup(1, 2)):
            mine.check()
            assert not mine.alone
        mine.check()
        assert mine.alone


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("RANK", "-1"), ("WORLD_SIZE", "two")])
def test_wrong_environment(monkeypatch, name, value):
    for key, good in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(key, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}: expected"):
        ProcessGroup.from_environment()
