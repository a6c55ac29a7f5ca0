#!/usr/bin/env bash
# Makes the virtual environment: setup.sh PYTHON VENV. Everything is pinned by constraints.txt.
set -euo pipefail
python=$1 venv=$2

"$python" - <<'PY' || { echo "setup: $python is too old; run: make setup PYTHON=python3.11" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --quiet --constraint constraints.txt)

echo "setup: installing PyTorch"
"${pip[@]}" torch numpy setuptools wheel ninja psutil py-cpuinfo

# DeepSpeed compiles its CPU communication kernel when a run first needs it, under a lock that a killed run
# leaves behind: every later run then hangs in silence. Compiled here, once, no run ever takes that lock.
# With a GPU the kernel is not used at all.
ahead=0
if [ "$(uname -s)" = Linux ] && ! "$venv/bin/python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    ahead=1
fi
if ! "$venv/bin/python" - "$ahead" 2>/dev/null <<'PY'
import sys
from deepspeed.git_version_info import installed_ops
sys.exit(sys.argv[1] == "1" and not installed_ops.get("deepspeed_shm_comm"))
PY
then
    echo "setup: installing DeepSpeed (compiles one kernel on a machine without GPU: about 90 s)"
    if [ "$ahead" = 1 ] && ! command -v g++ >/dev/null; then
        echo "setup: no g++ found, which DeepSpeed needs on a machine without GPU; on Debian: apt-get install g++" >&2
        exit 1
    fi
    DS_BUILD_SHM_COMM=$ahead "${pip[@]}" --no-build-isolation --no-cache-dir --no-binary deepspeed \
        --force-reinstall --no-deps deepspeed
fi

echo "setup: installing ddscale and what it depends on"
"${pip[@]}" --editable '.[dev]'
echo "setup: done ($("$venv/bin/python" -c 'import torch, deepspeed; print("torch", torch.__version__, "deepspeed", deepspeed.__version__)' 2>/dev/null | tail -n 1))"
