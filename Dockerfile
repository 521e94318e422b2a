# One image for all commands, without an ENTRYPOINT: docker run tickpipe producer | consumer | tickpipe …
# The image has no secrets. Pass TWELVE_DATA_API_KEY, REDIS_URL and DATABASE_URL (or their …_FILE) at run time.

FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements-build.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY producer producer
COPY consumer consumer
COPY tickpipe tickpipe
COPY sql sql
RUN pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist .

FROM python:3.12-slim
# The commands that need no extra. --build-arg REQUIREMENTS=requirements.lock adds the simulator and the dashboard.
ARG REQUIREMENTS=requirements-core.lock
COPY requirements.lock requirements-core.lock /tmp/
RUN pip install --no-cache-dir --require-hashes -r "/tmp/$REQUIREMENTS" && rm /tmp/*.lock
COPY --from=build /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl && rm -r /tmp/dist

# The spool must outlive the container, because prices wait there while Redis is unavailable.
ENV PYTHONUNBUFFERED=1 SPOOL_DIR=/var/lib/tickpipe/spool
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin tickpipe \
    && mkdir -p "$SPOOL_DIR" && chown -R tickpipe:tickpipe /var/lib/tickpipe
VOLUME /var/lib/tickpipe/spool
USER tickpipe
WORKDIR /home/tickpipe
STOPSIGNAL SIGTERM
CMD ["tickpipe", "--help"]
