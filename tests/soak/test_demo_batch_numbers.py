"""The batch scenario's targets, over seeds: against every fixed engine.

`TRITON_GOVERNOR_BATCH_SEEDS` says which seeds (1-3), four minutes each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = os.environ.get("TRITON_GOVERNOR_BATCH_SEEDS", "1-3")


@pytest.mark.soak
@pytest.mark.triton
def test_changing_the_batch_size_is_worth_more_than_any_that_stays(tmp_path):
    first, _, last = SEEDS.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        out = tmp_path / f"{seed}.json"
        command = ["-m", "controller.cli.main", "demo", "--scenario", "batch", "--quiet"]
        more = ["--no-plot", "--seed", str(seed), "--json", str(out)]
        subprocess.run([sys.executable, *command, *more], cwd=ROOT, check=True)
        document = json.loads(out.read_text())
        arms = {arm["name"]: arm for arm in document["arms"]}
        governor = arms.pop("governor")
        print(seed, governor, *arms.values(), document["phases"], sep="\n")
        assert governor["failed"] == 0
        assert governor["slo_attainment"] >= 0.97
        best = max(arm["effective_quality"] for arm in arms.values())
        assert governor["effective_quality"] - best >= 0.03
        assert "It serves large in batches of up to" in document["explained"]
        assert document["phases"]["governor"]["night"]["in_time"] >= 0.88
