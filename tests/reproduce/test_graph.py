"""The graph of steps: what is done again and what is not, whatever stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast import DataError
from occfast.reproduce import graph as steps
from occfast.reproduce.cost import Rates, forward_flops, predict
from occfast.reproduce.graph import Graph, ProcessGroup, Step, StepContext, Work, fingerprint
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
        return self.graph.run("cpu", show=False)


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
        ("{}", "not a whole result"),
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
    with pytest.raises(ValueError, match="another run is at work"):
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
    with pytest.raises(ValueError, match="needs 'a', which does not come before it"):
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
    graph.run("cpu", show=False)
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
found = Graph(steps, Path(sys.argv[1]), {}).run("cpu", show=False)
assert [done.result["processes"] for done in found] == [2, 1, 1, 1], found
assert [done.processes for done in found] == [2, 1, 1, 1]
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_train_together_and_share_the_rest(tmp_path):
    """A step that one process does trains alone, whatever torchrun set."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(tmp_path / "script.py"),
        str(tmp_path / "steps"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "steps").glob("*/done.json"))) == 4
