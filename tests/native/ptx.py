"""The loops of the kernels in a ``.cu`` file, as instructions of PTX: what can be said of their speed without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from occfast.native import build

_LABEL = re.compile(r"^(\$\w+):")
_BRANCH = re.compile(r"^(?:@!?%p\d+ )?bra(?:\.uni)? (\$\w+)$")


class Loop(NamedTuple):
    """The instructions from the target of a backward branch to the branch."""

    instructions: list[str]

    def count(self, pattern: str) -> int:
        """Return the number of instructions in which a regular expression is found."""
        return sum(bool(re.search(pattern, text)) for text in self.instructions)

    def divisions(self) -> int:
        """Return the number of integer divisions and remainders, each of which takes dozens of machine instructions."""
        return self.count(r"\b(div|rem)\.[su](32|64)\b")


class Kernel(NamedTuple):
    """A kernel, by its mangled name."""

    name: str
    instructions: list[str]
    loops: list[Loop]
    innermost: list[Loop]

    def count(self, pattern: str) -> int:
        """Return the number of instructions in which a regular expression is found."""
        return Loop(self.instructions).count(pattern)


def kernels(source: Path, folder: Path, architecture: str = "90") -> list[Kernel]:
    """Compile a ``.cu`` file to PTX, with the flags of a build."""
    output = folder / f"{source.stem}.{architecture}.ptx"
    command = [str(build.nvcc()), *build.nvcc_flags(), "-ptx", f"-arch=compute_{architecture}", str(source)]
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return parse(output.read_text())


def parse(text: str) -> list[Kernel]:
    """Return the kernels of a listing."""
    found = []
    for name, body in re.findall(r"\.entry (\w+)\(.*?^\{$(.*?)^\}$", text, re.DOTALL | re.MULTILINE):
        labels: dict[str, int] = {}
        instructions: list[str] = []
        for line in (line.strip() for line in body.splitlines()):
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif line.endswith(";") and not line.startswith((".", "//")):
                instructions.append(" ".join(line.rstrip(";").split()))
        spans = []
        for k, instruction in enumerate(instructions):
            branch = _BRANCH.match(instruction)
            if branch and labels.get(branch[1], k + 1) <= k:
                spans.append((labels[branch[1]], k + 1))
        inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
        loops, innermost = ([Loop(instructions[a:b]) for a, b in some] for some in (spans, inner))
        found.append(Kernel(name, instructions, loops, innermost))
    return found
