# Runs edf_jax with everything that it needs; EXTRA says for what.
#
#   docker build -t edf_jax .                             CPU
#   docker build -t edf_jax --build-arg EXTRA=[cuda12] .  NVIDIA GPUs, with their container toolkit
#
#   docker run --rm -v "$PWD/runs:/edf/runs" edf_jax run --config=configs/cluttered_digits.py:demo
#   docker run --rm --gpus=all -v /data:/data -v "$PWD/runs:/edf/runs" edf_jax run \
#     --config=configs/imagenette.py:ipc10 --config.data.path=/data/imagenet
FROM python:3.12-slim

ARG EXTRA=
COPY . /src
RUN pip install --no-cache-dir "/src$EXTRA" && rm -rf /src
WORKDIR /edf
ENTRYPOINT ["edf"]
CMD ["--help"]
