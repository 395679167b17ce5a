# medseg3d in a container: `docker build --target cpu` or `--target cuda`; docs/how-to/docker.md says how to run it.
#
# The wheel is built in a stage of its own. Both images run as a user without privileges and need no network: the package, its presets
# and its documentation are inside.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
ENV PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml setup.cfg MANIFEST.in README.md LICENSE constraints.txt ./
COPY medseg3d medseg3d
COPY planners planners
COPY docs docs
RUN pip install --no-cache-dir build "setuptools>=77" wheel
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:${PYTHON}-slim AS runtime
# what matplotlib, torch and others would write into a home that may be read-only
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --gid 1000 medseg3d && \
    useradd --uid 1000 --gid medseg3d --no-create-home --home-dir /tmp medseg3d && \
    mkdir /data && chown medseg3d:medseg3d /data
COPY --from=wheel /source/constraints.txt /tmp/constraints.txt
COPY --from=wheel /dist /tmp/dist
VOLUME /data
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["medseg3d"]
CMD ["--help"]

# For a CPU. The index of PyTorch's CPU builds, which are a tenth of the size, is given as TORCH_INDEX; pytorch.org names it.
FROM runtime AS cpu
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' /tmp/constraints.txt)" && \
    pip install --constraint /tmp/constraints.txt "$(echo /tmp/dist/*.whl)[serve,dicom]" && rm -r /tmp/dist /tmp/constraints.txt
USER medseg3d

# For an NVIDIA GPU: PyTorch's usual Linux wheels bring their CUDA libraries; the driver comes from the host (--gpus all).
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install "$(grep '^torch==' /tmp/constraints.txt)" && \
    pip install --constraint /tmp/constraints.txt "$(echo /tmp/dist/*.whl)[serve,dicom]" && rm -r /tmp/dist /tmp/constraints.txt
USER medseg3d
