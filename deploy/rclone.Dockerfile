# The image of a pod's `fetch` and `upload`: rclone, a shell, tar. For clusters that cannot pull rclone's own image, and for
# the tests. On the base image of the autograders, whose layers the nodes have anyway.
#
#   DOCKER_BUILDKIT=0 docker build --build-arg BASE=greengrader/base:debian-12 --tag REGISTRY/rclone:debian-12 - \
#       < deploy/rclone.Dockerfile
#   docker push REGISTRY/rclone:debian-12      and GREENGRADER_RCLONE_IMAGE=REGISTRY/rclone:debian-12
ARG BASE
FROM ${BASE}
USER root
ENTRYPOINT []
CMD ["rclone", "version"]
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install --yes --no-install-recommends rclone ca-certificates \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/*
