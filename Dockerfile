# mmkd on a CPU, with export to ONNX. mmcv is compiled once, in the first stage, which takes 10 minutes or more.
#   docker build -t mmkd .
#   docker run --rm -v "$PWD:/work" mmkd train CONFIG --device cpu
# Files in /work belong to user 1000; for another one add: --user "$(id -u):$(id -g)" -e HOME=/tmp
FROM python:3.11-slim AS build

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/mmkd
WORKDIR /src
COPY requirements/constraints.txt requirements/
# The second index has torch without CUDA libraries.
ENV PATH=/opt/mmkd/bin:$PATH \
    PIP_CONSTRAINT=/src/requirements/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1
RUN pip install setuptools wheel ninja numpy torch
# Against the torch above, hence without isolation. This layer is kept until a version changes.
ARG MAX_JOBS=2
RUN MMCV_WITH_OPS=1 CFLAGS=-g0 pip install --no-build-isolation --no-binary onedl-mmcv onedl-mmcv
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY mmkd mmkd
COPY configs configs
COPY tools tools
RUN pip install --no-build-isolation ".[onedl,export]"


FROM python:3.11-slim

# Libraries of OpenCV.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home mmkd \
    && install --directory --owner mmkd /work
COPY --from=build /opt/mmkd /opt/mmkd
ENV PATH=/opt/mmkd/bin:$PATH
USER mmkd
WORKDIR /work
ENTRYPOINT ["python", "-m", "mmkd"]
