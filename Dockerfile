# The command `unlearn`, on the CPU; `docker run --gpus all` lets it use a GPU.
#
#   docker build -t unlearn .        (or: make docker)
#   docker run --rm -v unlearn-cache:/cache -v "$PWD:/data" --user "$(id -u):$(id -g)" \
#     unlearn train concept=panda
#
# The run directory is then ./runs/panda-doco-0.
FROM python:3.11-slim

# A second index for pip. PyTorch's index of CPU builds makes the image several GB smaller.
ARG PIP_EXTRA_INDEX_URL
# The largest download comes first: a change of the sources does not repeat it.
WORKDIR /opt/unlearn
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch

# Extras of pyproject.toml, separated by commas: --build-arg EXTRAS=plots,demo
ARG EXTRAS=""
# pyproject.toml puts conf/ into the installed package.
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY conf conf
COPY hydra_plugins hydra_plugins
COPY unlearn unlearn
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"

# Drawn images and downloaded models lie in /cache. Any user may write there and in /data.
ENV XDG_CACHE_HOME=/cache
RUN useradd --create-home unlearn && install -d -m 1777 /cache /data
VOLUME /cache
WORKDIR /data
USER unlearn
ENTRYPOINT ["unlearn"]
CMD ["--help"]
