# Training on NVIDIA GPUs: docker build -f docker/train.Dockerfile -t ddscale-train .
# NEVER BUILT: there was no Docker daemon where this was written. Tested is only what it names: sources, pins, commands.
#
#   docker run --gpus all --ipc=host -v /data:/data ddscale-train \
#       deepspeed launchers/pretrain.py recipes/pretrain/vit_l.yaml --set 'data.stores=[/data/store]' --set run=/data/run
#
# On several nodes: launchers/kubernetes/train.yaml, launchers/slurm/train.sbatch.
# The devel image for its compilers: DeepSpeed and torch.compile build kernels when a run asks for them.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

# The same CUDA as the image's; the driver must be 580 or newer. The versions are those of constraints.txt, which were
# tested on Python 3.11 and CPUs; this image's Python is 3.12.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-dev python3-venv g++ git libaio-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# Gigabytes that change with the pins alone. DeepSpeed's own set-up needs torch, so it comes second and unisolated.
WORKDIR /app
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch numpy setuptools wheel ninja psutil py-cpuinfo \
    && python -c 'import torch; assert torch.version.cuda, torch.__version__ + " is a build for CPUs: set TORCH_INDEX"'
RUN pip install --constraint constraints.txt --no-build-isolation deepspeed

# What ddscale depends on, before its code, so that an edit does not install them again.
COPY pyproject.toml README.md LICENSE ./
COPY ddscale/__init__.py ddscale/
RUN pip install --constraint constraints.txt '.[diffusion,evaluation,export,wandb]' \
    && pip uninstall --yes ddscale && rm -rf build ddscale.egg-info

COPY ddscale ddscale
COPY export export
COPY launchers launchers
COPY recipes recipes
COPY tools tools
RUN pip install --no-deps --editable .

# The user that launchers/kubernetes/train.yaml names. Ubuntu's image has one of the same number.
RUN userdel --remove ubuntu 2>/dev/null || true; useradd --uid 1000 --create-home ddscale
USER 1000:1000
ENV HOME=/home/ddscale
CMD ["ddscale", "doctor"]
