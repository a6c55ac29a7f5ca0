#!/usr/bin/env bash
# The main job end to end on its embedded default: demo.sh BIN. Interrupted, it continues when run again.
set -euo pipefail
bin=$1
export DS_ACCELERATOR=${DS_ACCELERATOR:-$("$bin/python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
train() { "$bin/deepspeed" --log_level warning --num_accelerators 2 "launchers/$1.py" "recipes/$1/demo.yaml" "${@:2}"; }

echo "== 1/7 ingest: simulated recordings (real EDF, BDF, BrainVision and FIF files) become a store"
"$bin/ddscale" ingest recipes/ingest/demo.yaml
echo "== 2/7 pretrain: a small masked autoencoder on 2 ranks"
train pretrain
"$bin/ddscale" report demo/run
echo "== 3/7 pictures: simulated EEG of people who look at digits, and a toy Stable Diffusion that can draw them"
"$bin/ddscale" ingest recipes/ingest/demo-paired.yaml
"$bin/ddscale" toy demo/toy
echo "== 4/7 fine-tune: from EEG to pictures on 2 ranks; the same with the losses one after the other, and with the"
echo "   U-Net left as it is"
train finetune
train finetune --set run=demo/finetune-sequential --set objective.schedule=sequential
train finetune --set run=demo/finetune-encoder-only --set unet.trained=none
echo "== 5/7 export: ONNX graphs, compared with PyTorch before they are published, and their latency beside it"
"$bin/python" export/to_onnx.py recipes/export/demo.yaml
"$bin/python" export/benchmark.py demo/export/fp32 --rounds 3 --no-compile --tiny-decoder demo/toy/tiny --out demo/benchmark
echo "== 6/7 generate and evaluate: pictures from EEG that was held out, the exported runtime's beside PyTorch's"
"$bin/ddscale" generate demo/finetune --eeg demo/paired --windows 32 --exported demo/export/fp32
"$bin/ddscale" evaluate demo/finetune --set trials=150
for other in sequential encoder-only; do
    "$bin/ddscale" evaluate "demo/finetune-$other" --set trials=150 --set 'controls=[shuffled_eeg]'
done
# The export drawing in few steps with its tiny decoder, and as the original drew: 250 steps without guidance.
exported() { "$bin/ddscale" evaluate demo/finetune --exported demo/export/fp32 --set trials=150 --set 'controls=[shuffled_eeg]' "$@"; }
exported --set generation.steps=4 --set runtime.decoder=tiny
exported --set generation.steps=250 --set generation.scheduler=pndm --set generation.guidance_scale=1
"$bin/python" tools/check_demo.py demo/finetune
echo "== 7/7 report"
"$bin/ddscale" report demo/finetune --beside demo/finetune-sequential --beside demo/finetune-encoder-only \
    --benchmark demo/benchmark/benchmark.json
