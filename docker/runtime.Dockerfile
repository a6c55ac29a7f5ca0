# An exported folder as an HTTP service, without torch: docker build -f docker/runtime.Dockerfile -t ddscale-runtime .
# NEVER BUILT: there was no Docker daemon where this was written. Tested: its files, its packages and its command, the
# last two with the very files that are copied here and nothing else of ddscale.
#
#   docker run --read-only --tmpfs /tmp -v "$PWD/demo/export/fp32:/export:ro" -p 127.0.0.1:8000:8000 ddscale-runtime
#
# For NVIDIA GPUs (see compose.yaml): --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
#   --build-arg ENGINE='onnxruntime-gpu>=1.27', whose first wheels for CUDA 13 those are; and the argument --provider cuda
ARG BASE=python:3.11-slim-bookworm
FROM $BASE

ARG ENGINE=onnxruntime
RUN command -v pip >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY constraints.txt ./
# By name and not as ddscale[serving], which would bring torch and DeepSpeed.
RUN pip install --no-cache-dir --constraint constraints.txt numpy "$ENGINE" fastapi uvicorn

COPY LICENSE ./
COPY ddscale/__init__.py ddscale/
COPY ddscale/signal/__init__.py ddscale/signal/units.py ddscale/signal/
COPY ddscale/deploy/__init__.py ddscale/deploy/manifest.py ddscale/deploy/manifest_reading.py \
    ddscale/deploy/engines.py ddscale/deploy/
COPY ddscale/deploy/runtime ddscale/deploy/runtime
COPY ddscale/deploy/serving ddscale/deploy/serving

USER 65532:65532
EXPOSE 8000
# That the process lives. Whether it can draw, once the model is loaded and checked, is /ready: for load balancers.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "ddscale.deploy.serving"]
CMD ["/export", "--host", "0.0.0.0", "--port", "8000"]
