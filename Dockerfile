# Adapter Studio in a container: the page and the APIs on port 7860. See compose.yaml.
# The default is torch's CPU build; an empty TORCH_INDEX takes the one for NVIDIA GPUs, from pip's own index.
FROM python:3.11.13-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION=2.13.0

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --create-home --uid 1000 studio \
    && mkdir /workspace \
    && chown studio:studio /workspace

WORKDIR /opt/adapter-studio

# torch first: requirements.txt pins the same version, which is then installed already.
COPY requirements.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch==${TORCH_VERSION}" \
    && pip install --no-cache-dir -r requirements.txt

COPY launch.py LICENSE ./
COPY core ./core
COPY studio ./studio
COPY assets ./assets
RUN python -m compileall -q launch.py core studio

# Everything that is written lies in the workspace, downloaded models too.
ENV ADAPTER_STUDIO_WORKSPACE=/workspace \
    HF_HOME=/workspace/.cache/huggingface
VOLUME ["/workspace"]
USER 1000:1000
EXPOSE 7860

HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health', timeout=4)"]

# Beyond loopback the studio starts only with logins: ADAPTER_STUDIO_AUTH_FILE names their file.
ENTRYPOINT ["python", "launch.py", "--host", "0.0.0.0", "--port", "7860", "--no-browser"]
