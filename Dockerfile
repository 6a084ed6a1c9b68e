# The image from source, for docker, podman or buildah:
#
#   docker build --tag portolan:v0.2.0 --build-arg REVISION=$(git rev-parse HEAD) --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) .
#
# It has the tree and the labels of `cargo xtask image`, which needs neither of these programs and gives the same bytes each time.
ARG BUILDER=docker.io/library/rust:1.95-slim-bookworm

# On the machine that builds, whatever the image is for: the compilers are cross compilers.
FROM --platform=${BUILDPLATFORM} ${BUILDER} AS build
# Compilers for the parts in C, one for each architecture.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev musl-tools \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
ARG REVISION=unknown
RUN SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PORTOLAN_COMMIT=${REVISION} \
    cargo xtask image --arch "${TARGETARCH:-amd64}" --output /image --tree /tree

FROM scratch
COPY --from=build /tree/ /
ARG VERSION=0.2.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Portolan" \
      org.opencontainers.image.description="Service proxy for Kubernetes nodes, with a VXLAN overlay; replaces kube-proxy and flannel" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# Allocator: give freed memory back at once, take no huge pages.
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin \
    MIMALLOC_ALLOW_THP=0 \
    MIMALLOC_PURGE_DELAY=0
WORKDIR /
ENTRYPOINT ["/usr/local/bin/portolan"]
