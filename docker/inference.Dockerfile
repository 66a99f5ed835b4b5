# syntax=docker/dockerfile:1
# Inference: embeddings and similarity, with torch and the MiniLM weights.
# Build from the repository's root: docker build -f docker/inference.Dockerfile -t likeness-inference .
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
    '.[fast,minilm]'

FROM python:${PYTHON}-slim
# The same number in every image: they share a volume.
RUN useradd --uid 10001 --create-home likeness && install --directory --owner likeness --group likeness /data
COPY --from=build /opt/likeness /opt/likeness
ENV PATH=/opt/likeness/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LIKENESS_DATA_DIR=/data \
    LIKENESS_HOST=0.0.0.0 \
    LIKENESS_PORT=8080
USER 10001:10001
WORKDIR /home/likeness
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
CMD ["likeness", "serve", "--role", "inference"]
