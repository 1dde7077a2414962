# The server alone. Build: docker build -t shortlist .
# Run: docker run --rm -p 127.0.0.1:50051:50051 -v "$PWD/models:/models:ro" shortlist
#
# torch comes from whatever index pip is set to. Where that brings a CUDA build, the image takes 5.5 GB, most of it for a
# GPU. On hosts without one, point pip at CPU builds: --build-arg PIP_EXTRA_INDEX_URL=…

FROM python:3.11-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY Makefile pyproject.toml requirements.lock README.md ./
COPY protos protos
COPY client client
COPY server server
COPY trainer trainer
RUN make install VENV=/opt/shortlist EXTRAS=server EDITABLE=

FROM python:3.11-slim-bookworm
COPY --from=build /opt/shortlist /opt/shortlist
RUN useradd --system --no-create-home --uid 10001 shortlist
USER shortlist
ENV PATH=/opt/shortlist/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /models
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["shortlist", "health"]
# Inside a container every address is the container's own: who may reach it is decided by -p.
# Inside it the port is always 50051, where the health check asks; -p chooses the one outside.
# For the same reason --insecure-public: a container that listened on loopback would serve nobody. Publish the port to
# where callers are trusted (-p 127.0.0.1:50051:50051), or mount certificates and give --tls-cert, --tls-key and
# --tokens as arguments, and --health-cmd with the options that `shortlist health` then needs.
ENTRYPOINT ["shortlist", "serve", "--models-dir", "/models", "--host", "0.0.0.0", "--insecure-public"]
