# deploy-prune with what it needs at its core, on the CPU. docs/where-it-runs.md says how to build and start it.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY deploy_prune deploy_prune
COPY recipes recipes
COPY edge_targets edge_targets
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# The names of extras, as in: docker build --build-arg EXTRAS=timm,openvino .
ARG EXTRAS=""
COPY --from=build /wheels /wheels
# The CPU build of torch comes first; otherwise pip takes the one with CUDA, of several gigabytes.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu 'torch>=2.11,<2.14' torchvision \
    && pip install --no-cache-dir "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}" \
    && useradd --create-home --uid 1000 prune \
    && install --directory --owner prune /project
USER prune
WORKDIR /project
ENTRYPOINT ["deploy-prune"]
CMD ["--help"]
