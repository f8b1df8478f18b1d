"""Training in two CPU processes of one launch against one process: the same losses, the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.core.paths import ROOT

SCRIPT = """
import json, sys
from pathlib import Path
from src.core.data_utils import load_dataset
from src.teacher.checkpoint import trained_state
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.trainer import TeacherTrainer
from tests.conftest import make_dataset_config
from tests.teacher.conftest import SMALL, TINY, compose_teacher

demo = ["users=60", "items=40", "groups=4", "interactions_per_user=8"]
data = load_dataset(make_dataset_config("demo", *(f"dataset.demo.{d}" for d in demo)))
config = compose_teacher(
    *SMALL, *TINY, "teacher.encoder.max_epochs=1", "teacher.objective.lm=0.5", "teacher.prompt.candidates=5",
    "teacher.lora.dropout=0", "teacher.train.micro_batch_size=5", "teacher.train.device=cpu",
)
teacher = IloraTeacher(config, data)
processes = teacher.open()
ids = teacher.llm_sample_ids()[:80]  # 32 + 32 + 16 samples: 7, 7 and 4 micro-batches, not all in pairs
trainer = TeacherTrainer(
    config, teacher.model, teacher.source, ids, ids[:8], Path(sys.argv[1]), "x", teacher.accelerator
)
teacher.model.train()
losses = [(s.item, s.lm, s.samples) for s in map(trainer.step, range(3))]
if processes.main:
    norms = {f"{p}/{k}": float(v.double().norm()) for p, s in trained_state(teacher.model).items() for k, v in s.items()}
    Path(sys.argv[1], f"{processes.size}.json").write_text(json.dumps({"losses": losses, "norms": norms}))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Dropout 0, a gate without BatchNorm, the same effective batch: losses within 1e-5."""
    env = {**os.environ, "ANYO_DATA_ROOT": str(tmp_path / "data"), "CUDA_VISIBLE_DEVICES": ""}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ]
    found = {}
    for count in (1, 2):
        command = [sys.executable, *(launch if count == 2 else ()), str(script), str(tmp_path)]
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = json.loads(Path(tmp_path, f"{count}.json").read_text())
    one, two = np.array(found[1]["losses"]), np.array(found[2]["losses"])
    assert one[:, 2].tolist() == [32, 32, 16] and (one[:, :2] > 0).all()
    assert np.abs(one - two).max() <= 1e-5
    assert len(np.unique(one[:, 0])) == 3, "the steps changed the weights"
    for name, norm in found[1]["norms"].items():
        assert abs(norm - found[2]["norms"][name]) <= 1e-3 * max(1.0, norm), name
