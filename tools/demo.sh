#!/usr/bin/env bash
# The main job end to end on its embedded default: demo.sh BIN. Interrupted, it continues when run again.
set -euo pipefail
bin=$1
export DS_ACCELERATOR=${DS_ACCELERATOR:-$("$bin/python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}

echo "== 1/3 ingest: simulated recordings (real EDF, BDF, BrainVision and FIF files) become a store"
"$bin/ddscale" ingest recipes/ingest/demo.yaml
echo "== 2/3 pretrain: a small masked autoencoder on 2 ranks"
"$bin/deepspeed" --log_level warning --num_accelerators 2 launchers/pretrain.py recipes/pretrain/demo.yaml
echo "== 3/3 report: reconstructions of people the model has not seen"
"$bin/ddscale" report demo/run
