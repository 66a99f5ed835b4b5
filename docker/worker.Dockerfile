# syntax=docker/dockerfile:1
# The training worker, with torch and the MiniLM weights. One container per GPU; without a GPU it trains on the CPU.
# Build from the repository's root: docker build -f docker/worker.Dockerfile -t likeness-worker .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# pip's own choice of torch on Linux brings CUDA. For another build, give the URL of an index that has it.
ARG TORCH_INDEX=""
RUN python -m venv /opt/likeness
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api_schemas/ api_schemas/
COPY storage/ storage/
COPY encoders/ encoders/
COPY workers/ workers/
COPY service/ service/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/likeness/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    '.[data,torch,minilm]'

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
# It serves nothing that could be asked. A worker that falls silent loses its job to another: that is its health check.
HEALTHCHECK NONE
CMD ["likeness", "worker", "--queue", "gpu"]
