"""Where each trained student of a sweep spikes against its teacher, head by head.

Run beside the sweep's run folders: `python benchmarks/inter_kd/spikes.py SWEEP.yaml MANIFEST STORE`
writes `spikes.json` into the sweep's results. What stands there of runs whose folder is gone stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.files import write_json
from interkd.pipeline.scoring.measure_spikes import measure_spike_offsets
from interkd.pipeline.scoring.spikes import to_json
from interkd.pipeline.students.checkpoint import load_student
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.report_inputs import SPIKES_FILE, read_spikes
from interkd.pipeline.sweep.runs import expand


def main() -> None:
    """Measures every finished run that still has its checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    sweep = read_sweep(options.sweep)
    manifest, store = read_manifest(options.manifest), TeacherStore.open(options.store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    audio = AudioCache(2**32)
    offsets = read_spikes(sweep)
    for run in expand(sweep):
        if not (run.result.exists() and (run.config.out / "best.json").exists()):
            continue
        student = load_student(run.config.out, device=device)
        found = measure_spike_offsets(
            student.model, manifest, store, device=device, max_seconds=320, audio_cache=audio
        )
        offsets[run.name] = to_json(found)
        final = found["final"]
        print(f"{run.name}: same frame {final.share_same_frame}, mean {final.mean_offset}")
        write_json(sweep.results_folder / SPIKES_FILE, offsets)  # each at once: time may run out


if __name__ == "__main__":
    main()
