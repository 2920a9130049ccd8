# lmsearch as an image: docker build -t lmsearch .
FROM python:3.12-slim

# PyTorch's usual wheel brings CUDA and takes gigabytes. Where a CPU is all there is, name PyTorch's index of CPU wheels
# (its installation page tells it): docker build --build-arg TORCH_INDEX=… -t lmsearch .
ARG TORCH_INDEX=""

WORKDIR /source
COPY constraints.txt ./
RUN version=$(grep '^torch==' constraints.txt) \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$version"
COPY pyproject.toml README.md LICENSE ./
COPY lmsearch lmsearch
COPY studies studies
RUN pip install --no-cache-dir '.[s3]' -c constraints.txt

# Volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --create-home lmsearch \
    && mkdir -p /corpora /checkpoints /search/runs \
    && chown -R lmsearch /corpora /checkpoints /search
USER lmsearch
WORKDIR /search
ENV LMSEARCH_CACHE=/corpora PYTHONUNBUFFERED=1
CMD ["lmsearch", "--help"]
