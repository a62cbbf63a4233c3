"""The mutation score of the rules, after ``mutmut run``: by module, and each survivor that nobody gave a reason for.

A survivor is explained in mutation-survivors.md by a line that holds its change, as this program prints it; its number
would change with the next edit of the file. Ends with 1 when the score is under 90 % or a reason is missing.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
from collections import Counter
from pathlib import Path

MUTANTS = Path("mutants/agentcredits/rules")
REASONS = Path(__file__).with_name("mutation-survivors.md")
WANTED = 0.9
#: How mutmut's exit codes are read: 0 the tests passed, 33 and 5 no test ran, None it was not tried.
SURVIVED = (0, 5, 33, None)


def lines_of_functions(source: str) -> dict[str, list[str]]:
    """The lines of each function in a file of mutants, by name."""
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = [line.strip() for line in lines[node.lineno : node.end_lineno]]
    return found


def change(known: dict[str, list[str]], mutant: str) -> str:
    """What a mutant changed, as ``before → after``."""
    name = mutant.rpartition(".")[2]
    original = name.rpartition("__mutmut_")[0] + "__mutmut_orig"
    lines = list(difflib.ndiff(known[original], known[name]))
    before = " ".join(line[2:] for line in lines if line.startswith("- "))
    after = " ".join(line[2:] for line in lines if line.startswith("+ "))
    return f"`{before}` → `{after}`"


def main() -> int:
    reasons = REASONS.read_text(encoding="utf-8")
    total: Counter[str] = Counter()
    missing = 0
    for meta in sorted(MUTANTS.glob("*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        known = lines_of_functions(meta.with_suffix("").read_text(encoding="utf-8"))
        survivors = [mutant for mutant, code in codes.items() if code in SURVIVED]
        total["mutants"] += len(codes)
        total["survivors"] += len(survivors)
        module = meta.name.removesuffix(".py.meta")
        if codes:
            print(f"{module:16} {1 - len(survivors) / len(codes):6.1%} of {len(codes)}")
        for mutant in survivors:
            function = mutant.rpartition(".")[2].rpartition("__mutmut_")[0].removeprefix("x_")
            text = f"{module}.{function}: {change(known, mutant)}"
            if text not in reasons:
                missing += 1
                print(f"  no reason: {text}")
    score = 1 - total["survivors"] / max(1, total["mutants"])
    print(f"{'rules':16} {score:6.1%} of {total['mutants']}; {missing} survivors without a reason")
    return int(score < WANTED or bool(missing))


if __name__ == "__main__":
    sys.exit(main())
