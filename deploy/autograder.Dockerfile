# The image of one autograder, built as Gradescope builds it: source/ in its place, run_autograder beside it, setup.sh run
# once. greengrader/autograder.py packs this file together with what it copies; line ends and modes are right already.
# Written for the classic builder: no BuildKit. The network is open while this builds, not while a submission runs.
ARG BASE
FROM ${BASE}

# The base image's own entry point is Gradescope's harness, which phones home.
ENTRYPOINT []
CMD ["/autograder/run_autograder"]
USER root
WORKDIR /autograder
# GREENGRADER tells the fork snippet that this is not Gradescope.
ENV LANG=C.UTF-8 GREENGRADER=1

# Where the snippet was not recognised, it finds this mosquitto_pub: a run must never submit itself again.
# An autograder that uses MQTT for its own purposes still gets the real one.
RUN mkdir -p /autograder/submission /autograder/results /usr/local/bin \
 && printf '%s\n' \
      '#!/bin/sh' \
      'case " $* " in' \
      '  *gradescope_data*|*" -t submissions "*) ;;' \
      '  *) [ ! -x /usr/bin/mosquitto_pub ] || exec /usr/bin/mosquitto_pub "$@" ;;' \
      'esac' \
      'echo "mosquitto_pub: nothing is published from a run of GreenGrader" >&2' \
      > /usr/local/bin/mosquitto_pub \
 && chmod 755 /usr/local/bin/mosquitto_pub

COPY source /autograder/source
COPY run_autograder /autograder/run_autograder

# As on Gradescope, a setup.sh that fails fails the build. A package list that cannot be fetched does not (setup.sh may
# need none), and where setup.sh is missing or has only comments, none is fetched.
ARG DEBIAN_FRONTEND=noninteractive
RUN if grep -qs '^[[:space:]]*[^#[:space:]]' source/setup.sh; then \
      if command -v apt-get > /dev/null; then apt-get update || echo "apt-get update failed"; fi; \
      bash /autograder/source/setup.sh || exit; \
      if command -v apt-get > /dev/null; then apt-get clean; rm -rf /var/lib/apt/lists/*; fi; \
      rm -rf /tmp/* /var/tmp/*; \
    fi
