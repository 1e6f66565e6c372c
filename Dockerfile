# forkpoint and vLLM with CUDA, each in an environment of its own. UNTRIED: it pins what was planned, no machine
# with a GPU has built it yet.
#
#   docker build -t forkpoint .
#   docker run --gpus all --ipc host --shm-size 64g forkpoint forkpoint doctor
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04

RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv python3-dev git \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/forkpoint
WORKDIR /opt/forkpoint
RUN python3 -m venv /opt/train \
    && /opt/train/bin/pip install --no-cache-dir --constraint constraints.txt torch==2.13.0 \
    && /opt/train/bin/pip install --no-cache-dir --constraint constraints.txt '.[math,gym,hub,lora]' \
    && python3 -m venv /opt/vllm \
    && /opt/vllm/bin/pip install --no-cache-dir vllm==0.32.0 transformers==5.19.0

# Nothing in the container needs to be root; runs and weights belong on mounted folders.
RUN useradd --create-home forkpoint
USER forkpoint
WORKDIR /home/forkpoint
ENV PATH=/opt/train/bin:$PATH
CMD ["forkpoint", "doctor"]
